"""Mean and standard deviation of a run: what is given, else the starting weights' own, else ImageNet's."""

from pathlib import Path

import pytest
import torch
import yaml

from fgssl.cli.defaults import set_normalisation
from fgssl.cli.main import main
from fgssl.data.augment import IMAGENET_MEAN, IMAGENET_STD
from fgssl.data.datamodule import DataModule
from fgssl.data.datasets.digits import Digits
from fgssl.data.normalisation import difference, normalisation
from fgssl.nn.backbones import Backbone
from tests.methods.runs import arguments

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CIFAR = ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276))


@pytest.mark.parametrize("trained", [None, HALF])
def test_given_values_stand(trained):
    assert normalisation(*CIFAR, trained) == CIFAR
    assert normalisation(CIFAR[0], None, HALF) == (CIFAR[0], HALF[1])


def test_null_takes_the_weights_own_and_imagenets_where_there_are_none():
    assert normalisation(None, None, HALF) == HALF
    assert normalisation(None, None, None) == (IMAGENET_MEAN, IMAGENET_STD)
    data = DataModule(Digits())
    assert (data.mean, data.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_difference_names_both_and_is_silent_where_there_is_none():
    assert difference(*CIFAR, None) is None
    assert difference(*HALF, HALF) is None
    said = difference(*CIFAR, HALF)
    assert said is not None
    assert str(list(CIFAR[0])) in said
    assert str(list(HALF[1])) in said


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Trains two steps from weights that were trained with a mean and deviation of 0.5; what it saved and saw."""
    monkeypatch.setattr(Backbone, "normalisation", lambda self: HALF)
    seen: list[torch.Tensor] = []
    original = DataModule.on_after_batch_transfer

    def watch(self, batch, dataloader_idx):
        result = original(self, batch, dataloader_idx)
        seen.extend(result.views)
        return result

    monkeypatch.setattr(DataModule, "on_after_batch_transfer", watch)

    def start(*flags: str) -> tuple[dict, torch.Tensor]:
        limits = ("--trainer.max_steps", "2", "--trainer.limit_test_batches", "2")
        assert main(arguments("maskcon", Path(tmp_path), "run", *limits, *flags)) == 0
        config = yaml.safe_load((tmp_path / "maskcon" / "run" / "config.yaml").read_text())
        return config["data"], torch.cat([view.flatten() for view in seen])

    return start


@pytest.mark.parametrize("flags", [(), ("--data.mean", "null", "--data.std", "null")])
def test_weights_normalisation_reaches_the_images_and_the_saved_configuration(flags, run):
    data, seen = run(*flags)
    assert (tuple(data["mean"]), tuple(data["std"])) == HALF
    assert (seen.min(), seen.max()) == (-1, 1)  # black and white of 0.5 and 0.5


def test_values_that_differ_from_the_weights_own_are_used_and_said(run):
    with pytest.warns(UserWarning, match=r"data.mean \[0.0, .* trained with, \[0.5, 0.5, 0.5\]") as warned:
        data, seen = run("--data.mean", "[0.0, 0.0, 0.0]", "--data.std", "[1.0, 1.0, 1.0]")
    assert data["mean"] == [0.0, 0.0, 0.0]
    assert (seen.min(), seen.max()) == (0, 1)
    assert sum("data.mean" in str(warning.message) for warning in warned) == 1


@pytest.mark.parametrize("flags", [(), ("--data.mean", "null", "--data.std", "null")])
def test_evaluating_a_run_takes_its_own_numbers_and_asks_no_weights(flags, run, tmp_path, monkeypatch):
    run()

    def refuse(self):
        raise AssertionError("the run has the numbers")

    monkeypatch.setattr(Backbone, "normalisation", refuse)
    folder = tmp_path / "maskcon" / "run"
    line = ["--config", f"{folder}/config.yaml", "--ckpt_path", str(folder), "--run.name", "again", *flags]
    assert main(["test", *line, "--trainer.limit_test_batches", "1"]) == 0
    data = yaml.safe_load((folder.parent / "again" / "config.yaml").read_text())["data"]
    assert (tuple(data["mean"]), tuple(data["std"])) == HALF


@pytest.mark.parametrize("arguments", [{}, {"backbone": "resnet18"}, {"backbone": {"width": 3}}])
def test_a_method_with_another_kind_of_backbone_gets_imagenets(arguments):
    data = {"mean": None, "std": None}
    assert set_normalisation(data, {"class_path": "mine.SimCLR", "init_args": arguments}) is None
    assert (data["mean"], data["std"]) == (IMAGENET_MEAN, IMAGENET_STD)


OF_CIFAR = {"mean": list(CIFAR[0]), "std": list(CIFAR[1])}


@pytest.mark.parametrize(
    "kept",
    [
        {"config": {"data": OF_CIFAR}},  # up to version 0.2.0
        {"preprocessing": OF_CIFAR},  # of Trainer.save_checkpoint, which knows no configuration
        {"preprocessing": OF_CIFAR, "config": {"data": {"mean": None, "std": None}}},
    ],
)
def test_a_task_takes_the_normalisation_of_the_run_that_it_starts_from(kept, tmp_path):
    path = tmp_path / "start.ckpt"
    torch.save({"method": "MaskCon", "pytorch-lightning_version": "2.6.0", "state_dict": {}} | kept, path)
    data = {"mean": None, "std": None}
    set_normalisation(data, {"init_args": {"backbone": {"name": "resnet18"}, "init_from": str(path)}})
    assert (data["mean"], data["std"]) == CIFAR


def test_a_network_without_weights_asks_for_imagenets_normalisation():
    assert Backbone("vit_small_patch16_224").normalisation() is None
    known = Backbone("vit_small_patch16_224", pretrained=True).normalisation()
    assert known is not None
    assert tuple(map(tuple, known)) == HALF
