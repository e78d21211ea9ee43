"""The global batch: what a step sees, kept in the checkpoint, and the same when a run goes on."""

import csv
from pathlib import Path

import pytest
import torch

from fgssl.cli.main import main
from tests.methods.runs import arguments

pytestmark = pytest.mark.slow


def run(root: Path, name: str, *flags: str) -> int:
    return main(arguments("maskcon", root, name, *flags))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run that ended after 12 steps of 8 images, within its first epoch."""
    root = tmp_path_factory.mktemp("stopped")
    every = ("--checkpoint.every_n_train_steps", "12", "--trainer.max_steps", "12")
    assert run(root, "run", "--data.batch_size", "8", *every) == 0
    return root / "maskcon" / "run"


def copy(run_folder: Path, root: Path) -> str:
    """A checkpoint alone, so that going on from it leaves the run as it is."""
    folder = root / "maskcon" / "old" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").write_bytes((run_folder / "checkpoints" / "last.ckpt").read_bytes())
    return str(folder.parent)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--data.batch_size", "32"), "was trained with 8 images per optimiser step, but this run has 32."),
        (
            ("--data.batch_size", "8", "--trainer.accumulate_grad_batches", "2"),
            "was trained with 8 images per optimiser step, but this run has 16.",
        ),
        (
            ("--data.batch_size", "4", "--trainer.accumulate_grad_batches", "2"),
            "was written within an epoch, after 12 batches of 8 images.",
        ),
    ],
)
def test_resuming_with_another_batch_is_refused_with_the_options_that_go_on(flags, reason, stopped, tmp_path, capsys):
    status = run(tmp_path, "new", "--ckpt_path", copy(stopped, tmp_path), *flags, "--trainer.max_epochs", "3")
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2
    assert reason in said
    assert "Resume with --data.batch_size 8 --trainer.accumulate_grad_batches 1, on any number of processes" in said


def test_resuming_with_the_same_batch_goes_on_at_the_learning_rate_of_the_schedule(stopped, tmp_path):
    flags = ("--ckpt_path", copy(stopped, tmp_path), "--data.batch_size", "8", "--trainer.max_epochs", "2")
    assert run(tmp_path, "new", *flags) == 0
    with (tmp_path / "maskcon" / "new" / "metrics.csv").open() as file:
        rates = {int(row["step"]): float(row["train/lr"]) for row in csv.DictReader(file) if row["train/lr"]}
    assert list(rates) == list(range(12, 34))  # 17 steps an epoch
    assert 0 < min(rates.values()) < 0.1 * rates[12]


def test_evaluation_of_a_checkpoint_takes_any_batch_size(stopped, tmp_path):
    flags = ("--ckpt_path", copy(stopped, tmp_path), "--data.batch_size", "32")
    assert main(arguments("maskcon", tmp_path, "test", *flags, command="test")) == 0


def test_checkpoint_keeps_batch_size_and_accumulation(stopped):
    kept = torch.load(stopped / "checkpoints" / "last.ckpt", weights_only=True)["global_batch"]
    assert kept == {"batch_size": 8, "accumulate_grad_batches": 1}
