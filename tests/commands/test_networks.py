"""The flags that name a network: the same network by every command that takes one."""

import argparse

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from fgssl.cli.command_parser import CommandParser
from fgssl.cli.main import main
from fgssl.commands.networks import (
    add_network_flags,
    backbone_of,
    check_network_flags,
    network_configuration,
    parse_network,
)
from fgssl.commands.probe import _parser as probes_parser
from fgssl.commands.probe import probe_of
from fgssl.errors import UserError
from fgssl.evaluation.store import read_embeddings
from fgssl.nn.backbones import Backbone
from fgssl.report.runs import read_run
from tests.cli.test_cli import fit
from tests.evaluation.test_davis import make_davis

pytestmark = pytest.mark.slow

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


@pytest.fixture(scope="module")
def moco(tmp_path_factory):
    """A MoCo checkpoint of timm's smallest ResNet, and the network with the same weights."""
    torch.manual_seed(0)
    network, path = (
        timm.create_model("test_resnet", num_classes=0).eval(),
        tmp_path_factory.mktemp("moco") / "moco.pth.tar",
    )
    state = {f"module.encoder_q.{name}": weight for name, weight in network.state_dict().items()}
    torch.save({"arch": "resnet", "state_dict": state}, path)
    return path, network


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("runs"), epochs=1)


def flags(*words: str) -> argparse.Namespace:
    parser = CommandParser(prog="fgssl test")
    add_network_flags(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no network is named"),
        (["--config", "experiments/maskcon_digits.yaml"], "no network is named"),
        (["--ckpt_path", "run", "--model", "timm/resnet18"], "Give one of them"),
        (["--ckpt_path", "run", "--weights", "file.pth"], "needs --model timm/NAME"),
        (["--model", "timm/resnet18", "--weights", "absent.pth"], "--weights: no file absent.pth"),
        (["--model", "timm/resnet18", "--network", "teacher"], "--network chooses a network"),
    ],
)
def test_flags_that_name_no_network_or_two_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        check_network_flags(flags(*words))


def test_a_network_in_one_word(moco):
    path, _ = moco
    args = parse_network(f"timm/test_resnet={path}")
    assert (args.model, args.weights, args.ckpt_path) == ("timm/test_resnet", str(path), None)
    assert parse_network("timm/resnet18").weights is None
    assert parse_network("runs/a=b").ckpt_path == "runs/a=b"
    with pytest.raises(UserError, match="no file absent"):
        parse_network("timm/resnet18=absent")


def test_images_are_normalised_for_the_weights_not_for_the_name(moco):
    """timm's weights of test_resnet use mean and deviation 0.5, MoCo's those of ImageNet."""
    path, _ = moco
    own = network_configuration(flags("--model", "timm/test_resnet"))
    theirs = network_configuration(flags("--model", "timm/test_resnet", "--weights", str(path)))
    assert own["data"]["mean"] == [0.5, 0.5, 0.5]
    assert theirs["data"]["mean"] == [0.485, 0.456, 0.406]
    given = network_configuration(flags("--model", "timm/test_resnet"), ["--data.mean", "[0.1, 0.1, 0.1]"])
    assert "mean" not in given["data"]  # the command line's stands


def test_a_public_network_sees_images_as_timm_describes():
    """vit_small: 0.9 of the shorter side, which timm rounds down (248.9)."""
    vit = network_configuration(flags("--model", "timm/vit_small_patch16_224"))["data"]
    assert (vit["eval_size"], vit["eval_resize"], vit["eval_resample"]) == (224, 248, "bicubic")
    resnet = network_configuration(flags("--model", "timm/resnet50.tv_in1k"))["data"]
    assert (resnet["eval_resize"], resnet["eval_resample"]) == (256, "bilinear")
    given = network_configuration(flags("--model", "timm/vit_small_patch16_224"), ["--data.eval_resample=bilinear"])
    assert "eval_resample" not in given["data"]  # the command line's stands


def test_embed_takes_weights_from_a_file(moco, tmp_path):
    path, _ = moco
    data = ["--data", "digits", "--data.protocol.label_fraction", "0.05", "--data.num_workers", "0"]
    data += ["--data.eval_size", "32", "--data.eval_resize", "32", "--retrieval.grid", "0", *QUIET]
    network = ["--model", "timm/test_resnet", "--weights", str(path)]
    assert main(["embed", *network, *data, "--run.root", str(tmp_path)]) == 0
    folder = tmp_path / "embed" / "test_resnet_moco_digits"
    assert read_run(folder).method == "timm/test_resnet (moco.pth.tar)"
    backbone = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["backbone"]
    assert (backbone["weights"], backbone["pretrained"]) == (str(path), False)


def test_test_takes_a_network_that_flags_alone_name(moco, tmp_path):
    path, _ = moco
    network = ["--model", "Frozen", "--model.backbone.name", "test_resnet", "--model.backbone.weights", str(path)]
    data = ["--data.dataset", "Digits", "--data.protocol.label_fraction", "0.05", "--data.num_workers", "0"]
    place = ["--run.root", str(tmp_path), "--run.name", "flags", "--retrieval.grid", "0"]
    assert main(["test", *network, *data, "--data.eval_size", "32", *place, *QUIET]) == 0
    assert read_run(tmp_path / "fgssl" / "flags").method == "timm/test_resnet (moco.pth.tar)"


def test_embed_takes_the_network_of_a_checkpoint_that_is_asked_for(run):
    for flags in ([], ["--network", "student"], ["--network", "teacher"]):
        assert main(["embed", "--ckpt_path", str(run), *flags, "--retrieval.grid", "0", *QUIET]) == 0
    names = (f"{run.name}_embed", f"{run.name}_embed_student", f"{run.name}_embed_teacher")
    evaluated, student, teacher = (read_embeddings(run.with_name(name)).embedding for name in names)
    assert np.array_equal(student, evaluated)  # MaskCon evaluates its student
    assert not np.allclose(teacher, student)
    assert read_run(run.with_name(names[2])).method == f"timm/resnet18 ({run.name}, teacher)"


def test_probe_takes_weights_from_a_file(moco):
    path, _ = moco
    args = probes_parser().parse_args(["--model", "timm/test_resnet", "--weights", str(path)])
    config = network_configuration(args)
    probe_of(config, args)
    probe = config["model"]["init_args"]
    assert (probe["backbone"]["weights"], probe["init_from"], probe["network"]) == (str(path), None, None)
    assert probe["of"] == "timm/test_resnet (moco.pth.tar)"
    assert config["run"]["name"] == "test_resnet_moco_data"


def test_davis_takes_weights_from_a_file(moco, tmp_path):
    path, _ = moco
    root = make_davis(tmp_path / "davis_data", still=(0, 0), moving=(1, -1))
    small = ["--root", str(root), "--partial", "--short_side", "32", "--radius", "2", "--run.root", str(tmp_path)]
    assert main(["davis", "--model", "timm/test_resnet", "--weights", str(path), *small]) == 0
    assert (tmp_path / "davis" / "test_resnet_moco" / "results.json").is_file()


def test_export_takes_weights_from_a_file(moco, tmp_path):
    path, network = moco
    out = tmp_path / "export"
    asked = ["--model", "timm/test_resnet", "--weights", str(path), "--out", str(out), "--formats", "timm"]
    assert main(["export", *asked]) == 0
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        back = timm.create_model(f"local-dir:{out}", pretrained=True).eval()(images)
        torch.testing.assert_close(back, network(images))
    card = (out / "README.md").read_text()
    assert "- network: test_resnet, weights of moco.pth.tar" in card
    assert "trained on" not in card


def test_maps_draws_a_run_beside_a_public_network(moco, run, tmp_path):
    path, _ = moco
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    out = tmp_path / "out.png"
    picture = ["maps", "gradcam", str(tmp_path / "a.png"), "--out", str(out)]
    widths = []
    for beside in ([f"timm/test_resnet={path}"], [str(run)]):
        assert main([*picture, "--ckpt_path", str(run), "--beside", *beside]) == 0
        widths.append(Image.open(out).width)
    assert main([*picture, "--model", "timm/test_resnet", "--weights", str(path)]) == 0
    assert Image.open(out).width < widths[0] == widths[1]


def test_a_run_is_evaluated_without_the_file_that_it_started_from(tmp_path):
    file, options = tmp_path / "start.pth", {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}
    start = Backbone("resnet18", options=options).build().state_dict()
    torch.save(start, file)
    begun = fit(tmp_path, "begun", "--model.backbone.weights", str(file), "--trainer.max_steps", "1", epochs=1)
    file.unlink()
    assert main(["embed", "--ckpt_path", str(begun), "--retrieval.grid", "0", *QUIET]) == 0
    checkpoint = torch.load(begun / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["evaluates"] == "student"
    weight = checkpoint["state_dict"]["query.backbone.conv1.weight"]
    assert torch.allclose(weight, start["conv1.weight"], atol=1e-3)


def test_backbone_of_a_method_that_passes_its_options_to_its_parent():
    own, chosen = "experiments.evidence.mls_labels.LabelledMLS", {"backbone": {"name": "test_resnet"}}
    assert backbone_of({"class_path": own, "init_args": chosen}) == backbone_of(
        {"class_path": "MLS", "init_args": chosen}
    )
