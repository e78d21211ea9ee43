"""Several processes give what one gives: the same training on the same global batch, the same evaluation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

DIGITS = str(Path(__file__).parents[2] / "experiments" / "maskcon_digits.yaml")
# GroupNorm: BatchNorm sees each process's part of the batch, and is not meant to give the same.
NETWORK = "{layers: [1, 1, 1, 1], channels: [8, 8, 16, 16], norm_layer: groupnorm1}"

pytestmark = pytest.mark.ddp


def fgssl(command: str, root: Path, name: str, processes: int, *flags: str) -> Path:
    arguments = [
        command, "--config", DIGITS, "--run.root", str(root), "--run.name", name, "--retrieval.grid", "0",
        "--model.backbone.options", NETWORK, "--model.memory", "50", "--data.protocol.label_fraction", "0.1",
        "--trainer.accelerator", "cpu", "--trainer.devices", str(processes), "--trainer.max_epochs", "2",
        "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", *flags,
    ]  # fmt: skip
    if processes > 1:
        arguments += ["--trainer.strategy", "ddp"]
    done = subprocess.run([sys.executable, "-m", "fgssl", *arguments], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return root / "maskcon_digits" / name


def last(run: Path) -> dict:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def metrics(run: Path) -> dict[str, float]:
    said = json.loads((run / "results.json").read_text())["metrics"]
    return {name: value for name, value in said.items() if name.startswith("test/")}


@pytest.mark.parametrize("variant", ["maskcon", "coins"])
def test_two_processes_train_the_same_weights_teacher_and_memory(variant, tmp_path):
    flags = ("--model.variant", variant, "--model.weight", "0.7", "--trainer.precision", "64-true")
    one = fgssl("fit", tmp_path, "one", 1, "--data.batch_size", "16", *flags)
    two = fgssl("fit", tmp_path, "two", 2, "--data.batch_size", "8", *flags)
    ours, theirs = last(two), last(one)
    assert torch.equal(ours["memory.index_K"], theirs["memory.index_K"])
    assert torch.equal(ours["memory.labels_K"], theirs["memory.labels_K"])
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
        else:
            assert ours[name] == value, name


def test_evaluation_is_the_same_for_any_number_of_processes(tmp_path):
    """450 test digits: 4 processes do not divide them, and batches of 64 do not divide their parts."""
    alone = metrics(fgssl("test", tmp_path, "alone", 1))
    assert metrics(fgssl("test", tmp_path, "four", 4)) == alone
