"""Backbones that cannot be built, and images that they do not take: one message that says which it is."""

import pytest
import timm
import torch

from fgssl.cli.main import main
from fgssl.errors import UserError
from fgssl.nn.backbones import Backbone, check_size

SMALL = {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}


def error_of(backbone: Backbone) -> str:
    with pytest.raises(UserError) as fault:
        backbone.build()
    return str(fault.value)


def test_missing_network_is_said(monkeypatch):
    def fail(*_, **__):
        raise FileNotFoundError("we cannot find the requested files in the local cache")

    monkeypatch.setattr(timm, "create_model", fail)
    said = error_of(Backbone("resnet18", pretrained=True))
    assert "could not be had (we cannot find the requested files" in said
    assert "without a network" in said


def test_weights_that_do_not_fit_the_options_are_no_missing_network(tmp_path):
    weights = timm.create_model("resnet18", layers=(1, 1, 1, 1), channels=(4, 4, 8, 16), num_classes=0).state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "weights.pth"), "num_classes": 0}}
    said = error_of(Backbone("resnet18", pretrained=True, options=SMALL | overlay))
    assert "cannot be built with pretrained weights and options {'layers': [1, 1, 1, 1]" in said
    assert "size mismatch" in said
    assert "network, put them" not in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet200", {}, "No pretrained weights exist for resnet200"),
        ("resnet18.foo", {}, "Invalid pretrained tag (foo) for resnet18"),
        ("resnet18", {"layer": 3}, "model.backbone.options: timm cannot build 'resnet18'"),
    ],
)
def test_other_faults_of_pretrained_networks_are_no_missing_network(name, options, message):
    said = error_of(Backbone(name, pretrained=True, options=options))
    assert message in said
    assert "could not be had" not in said


VIT = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 16, "num_heads": 2}


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({}, 32, None),
        ({}, 48, "takes images of 32 px, but the data module gives 48 px. Set --model.backbone.options '{img_size"),
        ({"dynamic_img_size": True}, 48, None),
        ({"dynamic_img_size": True}, 44, "44 px, is no multiple of a patch, 8 px"),
        ({"dynamic_img_size": True, "dynamic_img_pad": True}, 44, None),
    ],
)
def test_size_check_agrees_with_the_network(options, size, message):
    network = Backbone("vit_tiny_patch16_224", options=VIT | options).build()
    images = torch.zeros(1, 3, size, size)
    if message is None:
        check_size(network, size)
        network(images)
        return
    with pytest.raises(UserError) as fault:
        check_size(network, size)
    assert message in str(fault.value)
    with pytest.raises(AssertionError):
        network(images)


@pytest.mark.parametrize("size", [32, 64])
def test_convolutional_networks_take_every_size(size):
    check_size(Backbone("resnet18", options=SMALL).build(), size)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["fit", "test"])
def test_vit_at_another_size_is_one_line_before_anything_is_written(command, tmp_path, capsys):
    from tests.cli.test_cli import DIGITS

    line = [command, "--config", DIGITS, "--run.root", str(tmp_path), "--model.backbone.name", "vit_tiny_patch16_224"]
    assert main(line) == 2
    said = capsys.readouterr().err
    assert "this network takes images of 224 px, but the data module gives 32 px" in said
    assert not list(tmp_path.iterdir())
