"""Scenes of several photographs (experiments/evidence/scenes.py), and FLSL and DINO on them."""

import csv
import io
import json
import runpy
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgssl.cli.main import main
from fgssl.data.datasets import Folder

EVIDENCE = Path(__file__).parents[2] / "experiments" / "evidence"
SCENES = runpy.run_path(str(EVIDENCE / "scenes.py"))
CLASSES = {"bird": (200, 30, 30), "cat": (30, 200, 30), "ship": (30, 30, 200), "truck": (200, 200, 30)}
EACH = 10  # photographs of a class and part


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Plain photographs whose colour is their class."""
    path = tmp_path_factory.mktemp("cifar") / "cifar.tar"
    with tarfile.open(path, "w") as tar:
        for part in ("train", "test"):
            for label, colour in CLASSES.items():
                for number in range(EACH):
                    file = io.BytesIO()
                    Image.new("RGB", (32, 32), tuple(value + number for value in colour)).save(file, "JPEG")
                    member = tarfile.TarInfo(f"{part}/{label}/{number:04d}.jpg")
                    member.size = file.tell()
                    file.seek(0)
                    tar.addfile(member, file)
    return path


@pytest.fixture(scope="module")
def scenes(archive, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    return SCENES["write_scenes"](archive, folder, {"train": 12, "test": 8}, 0)


def test_box_of_a_scene_holds_the_labelled_photograph(scenes):
    index = Folder(str(scenes)).index()
    assert index.split.tolist() == ["train"] * 12 + ["test"] * 8
    assert np.bincount(index.fine).tolist() == [5] * 4
    for path, label, (x0, y0, x1, y1) in zip(index.paths, index.fine, index.boxes.astype(int), strict=True):
        pixels = np.asarray(Image.open(path)).astype(int)
        assert pixels.shape == (64, 64, 3)
        assert x1 - x0 == y1 - y0
        assert 24 <= x1 - x0 <= 32
        colour = np.array(CLASSES[index.fine_names[label]])
        assert np.abs(pixels[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2] - colour).max() < 40


def test_box_of_a_scene_is_the_photograph_and_no_more(archive):
    """Before another class, all pixels of the class's colour are in the box, and fill it."""
    of_class = {photograph.label: photograph for photograph in SCENES["read_photographs"](archive)["train"]}
    objects = [of_class[label] for label in ("ship", "bird", "cat")]
    for seed in range(10):
        scene, (x0, y0, x1, y1) = SCENES["draw_scene"](objects, of_class["truck"], np.random.default_rng(seed))
        colour = np.array(CLASSES["ship"]) + EACH - 1
        alike = (np.abs(np.asarray(scene).astype(int) - colour).max(axis=2) < 20).nonzero()
        assert [*(place.min() for place in alike), *(place.max() + 1 for place in alike)] == [y0, x0, y1, x1]


def test_scenes_are_determined_by_the_seed(archive, scenes, tmp_path):
    again, other = (
        SCENES["write_scenes"](archive, tmp_path / str(seed), {"train": 12, "test": 8}, seed) for seed in (0, 1)
    )
    assert again.read_text() == scenes.read_text() != other.read_text()
    for row in csv.DictReader(scenes.open()):
        assert (again.parent / row["path"]).read_bytes() == (scenes.parent / row["path"]).read_bytes()


def test_groups_have_different_classes_and_use_no_photograph_twice(archive):
    photographs = SCENES["read_photographs"](archive)["train"]
    groups = SCENES["groups_of"](photographs, 4 * EACH // 3, np.random.default_rng(0))
    assert all(len({photograph.label for photograph in group}) == 3 for group in groups)
    used = [(photograph.label, photograph.content) for group in groups for photograph in group]
    assert len(set(used)) == len(used)


def test_too_many_scenes_are_refused(archive, tmp_path):
    with pytest.raises(SystemExit, match="14 scenes need 42 photographs"):
        SCENES["write_scenes"](archive, tmp_path, {"train": 14}, 0)


VIT = (
    "{class_token: false, global_pool: avg, fc_norm: false, dynamic_img_size: true, img_size: 64, patch_size: 8, "
    "depth: 1, embed_dim: 12, num_heads: 2}"
)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["flsl", "dino_patches"])
def test_experiment_on_scenes_measures_the_patches_in_the_boxes(experiment, scenes, tmp_path):
    status = main(
        [
            "fit", "--config", str(EVIDENCE / f"{experiment}.yaml"), "--data.dataset.root", str(scenes),
            "--run.root", str(tmp_path), "--run.name", "run", "--model.backbone.options", VIT, "--data.batch_size", "4",
            "--model.prototypes", "8", "--model.hidden", "8", "--model.bottleneck", "4", "--trainer.max_steps", "1",
        ]
    )  # fmt: skip
    assert status == 0
    metrics = json.loads((tmp_path / experiment / "run" / "results.json").read_text())["metrics"]
    # plain colours: even random features of a patch tell them apart, if it is one inside the box
    assert metrics["test/box_knn_patches"] > 0.8
    assert metrics["test/patch_purity"] > 0.8
    assert 0 < metrics["test/patch_nmi"] <= 1
