"""Every experiment parses and does one real training step, on a tiny tree in the data set's official layout."""

import os
from pathlib import Path

import pytest

from fgssl.cli import main
from fgssl.config import compose
from fgssl.data.protocols import read_sop_list
from tests import trees

EXPERIMENTS = sorted((Path(__file__).parents[1] / "experiments").glob("*.yaml"))
SMALL_NETWORK = "{layers: [1, 1, 1, 1], channels: [4, 4, 8, 8]}"


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
    "CIFAR100": trees.make_cifar100,
    "ImageNet32": trees.make_imagenet32,
    "SOP": make_sop_of_the_lists,
}


def dataset_of(experiment: Path) -> str:
    dataset = compose([experiment])["data"]["dataset"]
    return dataset if isinstance(dataset, str) else dataset["class_path"]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_takes_a_step(experiment, tmp_path, monkeypatch):
    name = dataset_of(experiment)
    flags = []
    if name != "Digits":
        (tmp_path / "data").mkdir()
        root = TREES[name](tmp_path / "data")
        flags = ["--data.dataset.root", str(root), "--data.dataset.partial", "true", "--data.views.size", "32"]
    status = main(
        [
            "fit", "--config", str(experiment), *flags, "--run.root", str(tmp_path / "runs"),
            "--data.batch_size", "2", "--data.num_workers", "0", "--retrieval.grid", "0",
            "--model.memory", "4", "--model.backbone.pretrained", "false", "--model.backbone.options", SMALL_NETWORK,
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
