"""Boxes of objects: from known feature maps, and in runs that are interrupted."""

from pathlib import Path

import pytest
import torch

from fgssl.callbacks.object_boxes import object_boxes
from fgssl.cli.main import main
from fgssl.data.datamodule import DataModule
from fgssl.data.datasets.digits import Digits
from fgssl.data.protocols import Protocol
from fgssl.data.views import ContrastiveCrop
from fgssl.methods import MaskCon
from fgssl.optim import Optim
from tests.methods.runs import assert_same_state, losses, rival_line, state
from tests.tiny import BACKBONE, tiny_trainer

SIZE = 56  # 7 positions of 8 px
PLAIN = ("--trainer.precision", "32-true", "--trainer.limit_test_batches", "0")


def spot(row: int, column: int) -> torch.Tensor:
    """[3, 7, 7] map whose sum over the channels is 1 at a position and -5 elsewhere."""
    channels_377 = torch.randn(3, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    channels_377[2] -= channels_377.sum(dim=0) + 5
    channels_377[1, row, column] += 6
    return channels_377


def test_box_is_around_the_large_values_of_each_map():
    """A bright position in the middle of column 4, 36 px: (1 - d / 8 px)(1 - 0.5 / 8) > 0.1 for |d| < 7.147 px, the
    pixels of middles 29.5 to 42.5; row 2 is at 20 px. At the border, the values beyond are the border's."""
    maps = torch.stack([spot(2, 4), spot(6, 0), spot(2, 4) * -1, torch.full((3, 7, 7), 3.0)])
    boxes = object_boxes(maps, SIZE, threshold=0.1) * SIZE
    assert boxes.dtype == torch.float64
    assert boxes.round().tolist() == [[29, 13, 42, 26], [0, 45, 10, 55], [0, 0, 55, 55], [0, 0, 56, 56]]


def test_higher_threshold_gives_a_smaller_box():
    """(1 - d / 8)(1 - 0.5 / 8) > 0.5 for |d| < 3.73 px."""
    (box,) = (object_boxes(spot(2, 4)[None], SIZE, 0.5) * SIZE).round().tolist()
    assert box == [32, 16, 39, 23]


def test_boxes_of_a_map_that_is_not_square_are_shares_of_both_sides():
    maps = torch.zeros(1, 1, 4, 8)
    maps[0, 0, 1, 6] = 1
    x0, y0, x1, y1 = (object_boxes(maps, 64, 0.1) * 64).round().tolist()[0]
    assert (x0 + x1 + 1) / 2 == 6.5 * 8
    assert (y0 + y1 + 1) / 2 == 1.5 * 16


def boxes_of_a_training(threshold: float) -> torch.Tensor:
    """Boxes [N, 4] of the training images after the first of two epochs; a learning rate of 1e-30 keeps the network."""
    views = ContrastiveCrop("digits", 32, threshold=threshold, warmup=1, every=1)
    data = DataModule(Digits(), Protocol(label_fraction=0.02), views, batch_size=8, num_workers=0)
    torch.manual_seed(0)
    optim = Optim(lr=1e-30, warmup=0)
    method = MaskCon(BACKBONE, variant="selfcon", memory=16, dim=4, hidden=8, optim=optim)
    tiny_trainer(max_epochs=2, limit_train_batches=1).fit(method, data)
    return data.objects[data.parts.train]


def test_threshold_of_the_views_is_that_of_the_boxes():
    low, high = boxes_of_a_training(0.1), boxes_of_a_training(0.7)
    assert (low[:, :2] <= high[:, :2]).all()
    assert (low[:, 2:] >= high[:, 2:]).all()
    assert (low != high).any(dim=1).float().mean() > 0.5


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Folder of a run of two epochs of four steps, the boxes computed between them, and of two of its checkpoints."""
    root = tmp_path_factory.mktemp("whole")
    copies = [f"{{step: {step}, path: {root}/{step}.ckpt}}" for step in (4, 6)]
    keep = ", ".join(f"{{class_path: tests.trust.callbacks.Keep, init_args: {copy}}}" for copy in copies)
    flags = ("--checkpoint.every_n_train_steps", "2", "--trainer.callbacks", f"[{keep}]")
    assert main(rival_line("contrastive_crop", root, "run", *flags, *PLAIN)) == 0
    return root


def objects(path: Path) -> torch.Tensor:
    return torch.load(path, weights_only=True)["DataModule"]["objects"]


@pytest.mark.slow
def test_boxes_of_all_training_images_are_computed_once_the_warm_up_is_over(whole):
    assert objects(whole / "4.ckpt").isnan().all()
    boxes = objects(whole / "contrastive_crop" / "run" / "checkpoints" / "last.ckpt")
    train = Protocol(label_fraction=0.1).apply(Digits().index()).train
    assert sorted(boxes[:, 0].isfinite().nonzero()[:, 0].tolist()) == sorted(train.tolist())
    known = boxes[train]
    assert (known[:, :2] <= known[:, 2:]).all()
    assert len(known.unique(dim=0)) > 20
    assert torch.equal(objects(whole / "6.ckpt")[train], known)


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 6])
def test_run_resumed_where_boxes_are_due_or_known_equals_the_whole_one(step, whole, tmp_path):
    """With loader processes, which read ahead before the epoch starts."""
    flags = ("--ckpt_path", str(whole / f"{step}.ckpt"), "--data.num_workers", "2")
    assert main(rival_line("contrastive_crop", tmp_path, "on", *flags, *PLAIN)) == 0
    on, run = tmp_path / "contrastive_crop" / "on", whole / "contrastive_crop" / "run"
    assert_same_state(state(on), state(run))
    assert losses(on) == losses(run)[step:]
