"""Scenes of several photographs (experiments/evidence/scenes.py), and FLSL and DINO on them."""

import csv
import io
import json
import runpy
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from fgssl.cli.main import main
from fgssl.data.datasets import Folder
from fgssl.nn.backbones import Backbone

EVIDENCE = Path(__file__).parents[2] / "experiments" / "evidence"
SCENES = runpy.run_path(str(EVIDENCE / "scenes.py"))
START = runpy.run_path(str(EVIDENCE / "vit_start.py"))
PLACES = runpy.run_path(str(EVIDENCE / "token_places.py"))
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
    run = PLACES["network_of"](str(tmp_path / experiment / "run"))
    assert PLACES["tokens_of"](run, torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, 64, 12)


# ---- the start of the ViT -------------------------------------------------------------------------------------------


def test_mirrored_map_is_that_of_the_mirrored_image():
    columns = torch.arange(64.0).expand(1, 1, 64, 64)
    places = torch.nn.functional.avg_pool2d(columns, 8).flatten(2).transpose(1, 2)  # the mean column of each patch
    images, maps = START["mirrored"](columns, places)
    assert torch.equal(torch.nn.functional.avg_pool2d(images, 8).flatten(2).transpose(1, 2), maps)
    assert not torch.equal(maps, places)


def test_maps_of_the_teacher_have_a_place_for_each_patch_and_are_standardised():
    scenes = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    maps = START["teacher_maps"](Backbone("tf_efficientnet_lite0").build().eval(), scenes)
    assert maps.shape == (6, 64, 320)
    varied = maps.float().std(dim=(0, 1)) > 0
    assert maps.float().mean(dim=(0, 1))[varied].abs().max() < 0.02
    assert (maps.float().std(dim=(0, 1))[varied] - 1).abs().max() < 0.02


@pytest.mark.slow
def test_start_of_the_vit_is_learnt_and_is_what_the_experiments_read(scenes, tmp_path):
    torch.manual_seed(0)
    save_file(Backbone("tf_efficientnet_lite0").build().state_dict(), tmp_path / "teacher.safetensors")
    teacher, start = str(tmp_path / "teacher.safetensors"), tmp_path / "start.safetensors"
    first, last = (START["make_start"](scenes.parent, teacher, start, epochs, batch=4) for epochs in (1, 10))
    assert last < min(first, 1)
    for experiment in ("flsl", "dino_patches"):
        content = yaml.safe_load((EVIDENCE / f"{experiment}.yaml").read_text())
        options = content["model.backbone.options"]
        backbone = Backbone(content["model.backbone.name"], options=options, weights=str(start))
        network = backbone.build()
        assert all(torch.equal(network.state_dict()[name], value) for name, value in load_file(start).items())
        assert backbone.normalisation() == ((0.5,) * 3, (0.5,) * 3)  # as the images were


def test_folder_without_scenes_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="holds no scene"):
        START["read_scenes"](tmp_path)


# ---- what the tokens stand for --------------------------------------------------------------------------------------


def unit(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(values, dim=-1)


def test_variance_of_place_is_1_of_places_and_0_of_scenes():
    generator = torch.Generator().manual_seed(0)
    of_place = unit(torch.randn(1, 64, 12, generator=generator)).expand(50, -1, -1)
    of_scene = unit(torch.randn(50, 1, 12, generator=generator)).expand(-1, 64, -1)
    assert PLACES["variance_of_place"](of_place) == pytest.approx(1)
    assert PLACES["variance_of_place"](of_scene) == pytest.approx(0, abs=1e-6)


def test_patches_in_a_box_lie_in_it_and_those_outside_do_not_touch_it():
    inside, outside = (part.reshape(8, 8) for part in PLACES["inside_and_outside"](np.array([3, 16, 28, 41]), 8, 64))
    assert inside.nonzero()[0].tolist() == [2, 2, 3, 3, 4, 4]  # rows 16 to 40 of 8 px each
    assert inside.nonzero()[1].tolist() == [1, 2] * 3
    assert not outside[2:6, :4].any()
    assert outside[:2].all()
    assert outside[6:].all()
    assert outside[:, 4:].all()


def test_cosines_tell_objects_from_places():
    boxes = np.array([[0, 0, 24, 24], [40, 40, 64, 64]])
    scenes = PLACES["Scenes"](torch.zeros(2, 3, 64, 64, dtype=torch.uint8), boxes)
    objects = torch.zeros(2, 8, 8, 2)
    objects[..., 0] = 1
    objects[0, :3, :3] = objects[1, 5:, 5:] = torch.tensor([0.0, 1.0])
    of_box, to_rest, same_place = PLACES["cosines"](objects.flatten(1, 2), scenes)
    assert (of_box, to_rest) == (1, 0)
    assert same_place == pytest.approx(1 - 18 / 64)
    places = torch.eye(64).expand(2, -1, -1)
    assert PLACES["cosines"](places, scenes) == (0, 0, 1)


def test_maps_of_clusters_show_the_places_of_tokens_that_are_places():
    places = torch.eye(64)[:, :16].roll(5, dims=0)  # 16 places of their own; the others are alike
    places[(places == 0).all(dim=1)] = unit(torch.ones(16))
    maps = PLACES["maps_of_clusters"](places.expand(6, -1, -1))
    assert maps.shape == (20, 8, 8)
    assert maps.sum(axis=0) == pytest.approx(1)
    assert maps[0].sum() == 48


def test_token_places_prints_a_line_for_each_network_and_draws_them(scenes, tmp_path, monkeypatch, capsys):
    experiment = yaml.safe_load((EVIDENCE / "flsl.yaml").read_text())
    torch.manual_seed(0)
    backbone = Backbone(experiment["model.backbone.name"], options=experiment["model.backbone.options"])
    save_file(backbone.build().state_dict(), tmp_path / "start.safetensors")
    weights, picture = str(tmp_path / "start.safetensors"), tmp_path / "places.png"
    monkeypatch.setattr("sys.argv", ["token_places", str(scenes.parent), f"random={weights}", "--out", str(picture)])
    PLACES["main"]()
    header, line, *_ = (text for text in capsys.readouterr().out.splitlines() if "weights of" not in text)
    assert header.split()[:3] == ["variance", "of", "place"]
    assert line.startswith("random")
    assert Image.open(picture).width > 1000
