"""The picture of a query crop and its dictionary neighbours."""

import json

import numpy as np
import pytest
import torch

from fgssl.callbacks.neighbours import framed
from fgssl.cli.main import main
from fgssl.data.datamodule import DataModule
from fgssl.data.datasets.digits import Digits
from fgssl.data.views import ContrastiveCrop, PairViews

pytestmark = pytest.mark.slow

TINY = (
    "--config", "experiments/mls_digits.yaml", "--data.protocol.label_fraction", "0.1", "--model.memory", "40",
    "--model.backbone.options", "{layers: [1, 1, 1, 1], channels: [4, 4, 8, 8]}", "--retrieval.grid", "0",
    "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
    "--trainer.callbacks", "fgssl.callbacks.neighbours.Neighbours",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    every = ("--trainer.callbacks.every_n_epochs", "2", "--trainer.max_epochs", "3")
    assert main(["fit", *TINY, *every, "--run.root", str(root), "--run.name", "drawn"]) == 0
    return root / "mls_digits" / "drawn"


def test_neighbours_is_drawn_every_so_many_epochs_and_at_the_end(run):
    assert sorted(path.name for path in run.glob("neighbours*")) == ["neighbours_0002.png", "neighbours_0003.png"]


def test_neighbours_is_drawn_from_a_checkpoint_of_the_same_data_alone(run):
    place = ("--run.root", str(run.parents[1]), "--ckpt_path", str(run))
    assert main(["test", *TINY, *place, "--run.name", "again"]) == 0
    assert (run.parent / "again" / "neighbours.png").is_file()
    with pytest.warns(UserWarning, match="another data set or seed"):
        assert main(["test", *TINY, *place, "--run.name", "other", "--seed_everything", "1"]) == 0
    assert not (run.parent / "other" / "neighbours.png").exists()


def test_drawing_leaves_training_as_it_is(run):
    flags = [flag for flag in TINY if "Neighbours" not in flag and flag != "--trainer.callbacks"]
    place = ("--run.root", str(run.parents[1]), "--run.name", "plain", "--trainer.max_epochs", "3")
    assert main(["fit", *flags, *place]) == 0
    ours, theirs = (
        torch.load(r / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for r in (run, run.parent / "plain")
    )
    for name, value in theirs.items():
        assert not isinstance(value, torch.Tensor) or torch.equal(ours[name], value), name
    metrics = [json.loads((r / "results.json").read_text())["metrics"] for r in (run, run.parent / "plain")]
    assert metrics[0]["test/map"] == metrics[1]["test/map"]


@pytest.mark.parametrize("views", [PairViews("digits", 32), ContrastiveCrop("digits", 32)], ids=["plain", "around"])
def test_the_frame_is_around_the_crop_that_was_trained_on(views):
    data = DataModule(Digits(), views=views, batch_size=4, num_workers=0)
    if isinstance(views, ContrastiveCrop):
        data.setup("fit")
        data.objects[:] = torch.tensor([0.0, 0.0, 0.4, 0.6])  # the upper left part
    batch = next(iter(data.train_loader(epoch=0)))
    for place in range(4):
        row, draw = int(batch.index[place]), int(batch.draw[place])
        picture = framed(data, row, draw, 1, "#ffd400")
        assert picture.shape == (160, 160, 3)
        yellow = (picture == np.array([255, 212, 0])).all(axis=2)
        ys, xs = yellow.nonzero()
        pixels = data.parts.index.pixels[row]
        scale = 160 / pixels.shape[0]
        box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / scale
        x0, y0, x1, y1 = box.round().astype(int)
        part = torch.from_numpy(pixels[y0:y1, x0:x1]).permute(2, 0, 1)[None]
        cut = torch.nn.functional.interpolate(part, size=(32, 32), mode="bilinear", antialias=True)[0]
        assert (cut.float() - batch.views[1][place].float()).abs().max() <= 1


def test_the_frame_of_a_whole_image_is_along_its_sides(monkeypatch):
    monkeypatch.setattr("fgssl.callbacks.neighbours.image_of", lambda index, row: np.zeros((40, 40, 3), np.uint8))
    data = DataModule(Digits(), views=PairViews(size=8), batch_size=4, num_workers=0)
    monkeypatch.setattr(type(data.views), "boxes", lambda views, size, numbers: [(0, 0, 40, 40)] * 2)
    yellow = (framed(data, 0, 0, 0, "#ffff00") == np.array([255, 255, 0])).all(axis=2)
    inner = np.zeros((160, 160), bool)
    inner[4:-4, 4:-4] = True  # lines of 4 px
    assert np.array_equal(yellow, ~inner)


@pytest.mark.parametrize(
    ("shape", "rows", "columns"), [((20, 40), (40, 120), (0, 160)), ((40, 30), (0, 160), (20, 140))]
)
def test_an_image_is_in_the_middle_of_its_square(shape, rows, columns, monkeypatch):
    monkeypatch.setattr("fgssl.callbacks.neighbours.image_of", lambda index, row: np.zeros((*shape, 3), np.uint8))
    data = DataModule(Digits(), views=PairViews(size=8), batch_size=4, num_workers=0)
    seen = (framed(data, 0, 0, 0, "#ffd400") != 255).any(axis=2)  # the square is white
    assert [int(side) for side in (seen.any(axis=1).argmax(), seen.any(axis=1).sum())] == [rows[0], rows[1] - rows[0]]
    assert [int(side) for side in (seen.any(axis=0).argmax(), seen.any(axis=0).sum())] == [
        columns[0], columns[1] - columns[0],
    ]  # fmt: skip
