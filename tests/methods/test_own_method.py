"""A method of the user's own package: the file of docs/methods.md, as it stands, goes through every command."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fgssl.cli.main import main
from tests.methods.runs import ROOT, environment, finish, results, state
from tests.warm import Forked

PAGE = (ROOT / "docs" / "methods.md").read_text()
NETWORK = "{layers: [1, 1, 1, 1], channels: [8, 8, 16, 16], norm_layer: groupnorm1}"
SHORT = (
    "--model.backbone.options", NETWORK, "--data.protocol.label_fraction", "0.1", "--data.batch_size", "16",
    "--data.num_workers", "0", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false",
    "--trainer.enable_model_summary", "false", "--trainer.accelerator", "cpu", "--retrieval.grid", "0",
)  # fmt: skip


def block(language: str, first_line: str) -> str:
    """The code block of the page that begins with a comment line."""
    (found,) = re.findall(rf"^```{language}\n({re.escape(first_line)}.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the page's method and experiment, and one short run of it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "alignment.py").write_text(block("python", "# alignment.py"))
    (folder / "own_digits.yaml").write_text(block("yaml", "# own_digits.yaml"))
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(folder / "photo.png")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    assert main(["fit", "--config", "own_digits.yaml", *SHORT, "--run.name", "a"]) == 0
    yield folder
    patch.undo()
    sys.modules.pop("alignment", None)


def run_of(folder: Path, name: str = "a") -> Path:
    return folder / "runs" / "own_digits" / name


def test_run_is_written_under_the_methods_own_name(folder):
    assert results(run_of(folder))["method"] == "Alignment"
    assert 0 < results(run_of(folder))["metrics"]["test/recall@1"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["test", "--config", "own_digits.yaml", *SHORT, "--ckpt_path", "runs/own_digits/a", "--run.name", "t"],
        ["predict", "--config", "own_digits.yaml", *SHORT, "--ckpt_path", "runs/own_digits/a", "--run.name", "p"],
        ["probe", "--ckpt_path", "runs/own_digits/a", "--blocks", "1", "--augment", "false", *SHORT[-10:]],
        ["maps", "gradcam", "photo.png", "--ckpt_path", "runs/own_digits/a"],
        ["export", "--ckpt_path", "runs/own_digits/a", "--formats", "timm", "torch"],
        ["compare", "runs"],
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_command_takes_the_run(command, folder):
    assert main(command) == 0


@pytest.mark.slow
def test_embedded_images_can_be_searched(folder):
    assert main(["embed", "--ckpt_path", "runs/own_digits/a", "--retrieval.grid", "0", *SHORT[-8:-2]]) == 0
    assert main(["search", "runs/own_digits/a_embed", "photo.png"]) == 0


@pytest.mark.slow
def test_fit_resumes(folder):
    resumed = [*SHORT, "--trainer.max_epochs", "2", "--ckpt_path", "runs/own_digits/a"]
    assert main(["fit", "--config", "own_digits.yaml", *SHORT, "--run.name", "b"]) == 0
    resumed[-1] = "runs/own_digits/b"
    assert main(["fit", "--config", "own_digits.yaml", *resumed]) == 0
    assert results(run_of(folder, "b"))["epochs"] == 2


@pytest.mark.slow
def test_finetune_starts_from_its_backbone(folder):
    start = ["--model.init_from", "runs/own_digits/a", *SHORT, "--run.name", "f"]
    assert main(["fit", "--config", str(ROOT / "experiments" / "finetune_digits.yaml"), *start]) == 0


@pytest.mark.ddp
def test_two_processes_train_what_one_trains(folder):
    line = ["fit", "--config", "own_digits.yaml", *SHORT, "--trainer.precision", "64-true", "--run.name"]
    assert main([*line, "one"]) == 0
    several = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    status, said = finish(Forked([*line, "two", *several], folder, environment()))
    assert status == 0, said[-3000:]
    ours, theirs = state(run_of(folder, "two")), state(run_of(folder, "one"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)
