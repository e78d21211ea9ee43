"""Every experiment parses and does one real training step, on a tiny tree in the data set's official layout."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser

from fgssl.cli.compose import compose
from fgssl.cli.defaults import fill_in, method_of
from fgssl.cli.main import main
from fgssl.data.protocols import read_sop_list
from fgssl.methods.base import Method
from tests import trees
from tests.recipes import _data, resolve

pytestmark = pytest.mark.slow

EXPERIMENTS = sorted((Path(__file__).parents[1] / "experiments").glob("*.yaml"))
RIVALS = sorted((Path(__file__).parents[1] / "experiments" / "rivals").rglob("*.yaml"))
RIVALS = [path for path in RIVALS if path.parent.name != "sweeps"]
ABLATIONS = sorted((Path(__file__).parents[1] / "experiments").glob("*_ablations/*.yaml"))
SMALL_NETWORK = "{layers: [1, 1, 1, 1], channels: [4, 4, 8, 8]}"
SMALL_VIT = {"embed_dim": 16, "depth": 4, "num_heads": 2, "img_size": 32}


CMD_SMALL = ["--model.backbone.name", "resnet18", "--model.prototypes", "16", "--model.hidden", "16"]


def make_sop_of_the_lists(root: Path) -> Path:
    """Stanford Online Products with every image of MaskCon's lists: one picture under 50,000 names."""
    picture = root / "picture.jpg"
    trees.write_image(picture)
    products: dict[str, str] = {}
    lines = {"train": [], "test": []}
    for name in ("sop_split1_train", "sop_split1_test", "sop_split2_train", "sop_split2_test"):
        part = name.rsplit("_", 1)[1]
        for paths in read_sop_list(name):
            for path in paths:
                if path not in products:
                    products[path] = part
                    folder = root / path.split("/")[0]
                    folder.mkdir(exist_ok=True)
                    os.link(picture, root / path)
    supers = sorted({path.split("/")[0] for path in products})
    classes = {name: n for n, name in enumerate(sorted({path.rsplit("_", 1)[0] for path in products}), 1)}
    for number, (path, part) in enumerate(products.items(), 1):
        super_class = supers.index(path.split("/")[0]) + 1
        lines[part].append(f"{number} {classes[path.rsplit('_', 1)[0]]} {super_class} {path}")
    for part, rows in lines.items():
        trees.write_lines(root / f"Ebay_{part}.txt", ["image_id class_id super_class_id path", *rows])
    return root


TREES = {
    "CUB": trees.make_cub,
    "Cars": trees.make_cars,
    "CIFARToy": trees.make_cifar10,
    "CIFAR10": trees.make_cifar10,
    "CIFAR100": trees.make_cifar100,
    "ImageNet": trees.make_imagenet,
    "ImageNet32": trees.make_imagenet32,
    "SOP": trees.make_sop,
    "COCO": trees.make_coco,
    "Aircraft": trees.make_aircraft,
    "Flowers": trees.make_flowers,
    "Pets": trees.make_pets,
    "DTD": trees.make_dtd,
    "Indoor67": trees.make_indoor67,
    "VOC2007": trees.make_voc2007,
    "VOC0712": trees.make_voc0712,
    "UAVDT": trees.make_uavdt,
    "COCOInstances": trees.make_coco_instances,
    "ADE20K": trees.make_ade20k,
    "Cityscapes": trees.make_cityscapes,
}


def dataset_of(experiment: Path) -> str:
    dataset = compose([experiment])["data"]["dataset"]
    return dataset if isinstance(dataset, str) else dataset["class_path"]


def tree_of(experiment: Path, root: Path) -> Path:
    """The data set's tree; the lists of MaskCon's splits need all of theirs."""
    name = dataset_of(experiment)
    lists = name == "SOP" and "sop_split" in (compose([experiment])["data"].get("protocol") or {}).get("split", "")
    return make_sop_of_the_lists(root) if lists else TREES[name](root)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_takes_a_step(experiment, tmp_path, monkeypatch):
    name = dataset_of(experiment)
    flags = []
    if name != "Digits":
        (tmp_path / "data").mkdir()
        root = tree_of(experiment, tmp_path / "data")
        flags = ["--data.dataset.root", str(root), "--data.dataset.partial", "true"]
        config = compose([experiment])
        views = fill_in(config, method_of(config))["data"].get("views")  # detectors see whole images
        if views and "crops" not in views["init_args"]:
            flags += ["--data.views.size", "32"]
    method = compose([experiment])["model"]["class_path"]
    flags += {
        "MaskCon": ["--model.memory", "4"],
        "MLS": ["--model.memory", "4"],
        "OBDSD": ["--data.images_per_class", "2"],
        "CMD": CMD_SMALL,
        "Detect": ["--model.sizes", "[64]", "--model.width", "8"],
        "Segment": ["--data.size", "32", "--data.short_side", "32", "--model.width", "8"],
    }.get(method, [])
    if method == "CMD" and name != "Digits":
        flags += ["--data.views.local_size", "16"]
    backbone = compose([experiment])["model"]["init_args"]["backbone"]
    small = SMALL_NETWORK
    if backbone["name"].startswith("vit"):
        small = json.dumps(backbone.get("options", {}) | SMALL_VIT)
    elif "output_stride" in backbone.get("options", {}):
        small = json.dumps(backbone["options"] | {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]})
    status = main(
        [
            "fit", "--config", str(experiment), *flags, "--run.root", str(tmp_path / "runs"),
            "--data.batch_size", "2", "--data.num_workers", "0", "--retrieval.grid", "0",
            "--model.backbone.pretrained", "false", "--model.backbone.options", small,
            "--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.max_steps", "1",
            "--trainer.limit_test_batches", "4", "--trainer.enable_progress_bar", "false",
            "--trainer.enable_model_summary", "false",
        ]
    )  # fmt: skip
    assert status == 0
    (run,) = (tmp_path / "runs" / experiment.stem).iterdir()
    assert {"config.yaml", "metrics.csv", "results.json", "checkpoints"} <= {path.name for path in run.iterdir()}


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_opens_with_paper_result_command_and_cost(experiment):
    first = experiment.read_text().splitlines()[:4]
    assert all(line.startswith("# ") for line in first)
    assert f"fgssl fit --config experiments/{experiment.name}" in first[2]


@pytest.mark.parametrize("ablation", ABLATIONS, ids=lambda path: path.stem)
def test_ablation_takes_a_step(ablation, tmp_path):
    """After the experiment on digits, the smallest of its method; the header says what the paper has."""
    base = ablation.parents[1] / f"{ablation.parent.name.removesuffix('_ablations')}_digits.yaml"
    assert ablation.read_text().startswith("# ")
    assert "aper" in ablation.read_text().split("\n\n")[0]
    flags = ["--model.distillation.checkpoint", str(tmp_path / "runs" / "first" / "checkpoints" / "last.ckpt")]
    bar = compose([base, ablation])["model"]["init_args"].get("distillation", {}).get("teacher") == "pretrained"

    def fit(*more: str) -> int:
        return main(
            [
                "fit", "--config", str(base), *more, "--run.root", str(tmp_path), "--run.experiment", "runs",
                "--data.protocol.label_fraction", "0.2", "--retrieval.grid", "0", "--retrieval.extra", "[]",
                "--model.backbone.pretrained", "false", "--model.backbone.options", SMALL_NETWORK,
                "--trainer.limit_train_batches", "1", "--trainer.max_epochs", "2", "--trainer.limit_test_batches", "1",
                "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
            ]
        )  # fmt: skip

    same = ("--model.backbone.name", "resnet18")
    if bar:
        assert fit(*same, "--run.name", "first", "--model.distillation.teacher", "none") == 0
    assert fit("--config", str(ablation), *same, "--run.name", "second", *(flags if bar else [])) == 0


@pytest.mark.parametrize("rival", RIVALS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_rival_resolves_and_its_method_is_built(rival):
    """Every option is valid, the class takes them, and the data module has the views that the method needs.

    Networks of the published size on the meta device, where weights have a shape alone.
    """
    name = str(rival.relative_to(EXPERIMENTS[0].parent).with_suffix(""))
    model = copy.deepcopy(resolve(name)["model"])
    model["init_args"]["backbone"] |= {"pretrained": False, "weights": None}
    if model["class_path"].endswith("MetricLearning"):
        model["init_args"]["train_classes"] = [0, 1, 2]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Method, "model")
    with torch.device("meta"):
        method = parser.instantiate_classes(parser.parse_object({"model": model})).model
    assert len(_data(name).views.crops) >= 1
    assert any(parameter.requires_grad for parameter in method.parameters())
