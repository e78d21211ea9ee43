"""Faults in training: one clear message each, and the last good checkpoint stays."""

import re

import pytest
import torch

from fgssl.cli.main import main
from tests import trees
from tests.methods.runs import arguments, results, rival_line, state

pytestmark = pytest.mark.slow


def fit(root, *flags: str, name: str = "run") -> int:
    return main(arguments("maskcon", root, name, *flags))


def spoiled(*batches: int) -> tuple[str, str]:
    options = f"init_args: {{batches: [{', '.join(map(str, batches))}]}}"
    return "--trainer.callbacks", f"{{class_path: tests.trust.callbacks.SpoilInput, {options}}}"


def finite(weights: dict) -> bool:
    return all(torch.isfinite(v).all() for v in weights.values() if isinstance(v, torch.Tensor))


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_good_checkpoint(tmp_path, capsys):
    every = ("--checkpoint.every_n_train_steps", "2")
    assert fit(tmp_path, *every, *spoiled(5), "--model.variant", "coins") == 2
    said = capsys.readouterr().err
    assert "the loss is not finite at step 5 (epoch 1, batch 5): loss nan, ce nan, contrastive nan." in said
    assert "Data-set rows of the batch: " in said
    assert "--model.max_skips" in said
    run = tmp_path / "maskcon" / "run"
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
    assert finite(state(run))
    assert results(run)["status"] == "failed"
    assert "not finite" in results(run)["error"]


def test_steps_may_be_left_out_up_to_a_number_in_a_row(tmp_path, capsys):
    assert fit(tmp_path, *spoiled(2, 3, 6), "--model.max_skips", "2") == 0
    assert finite(state(tmp_path / "maskcon" / "run"))
    capsys.readouterr()
    assert fit(tmp_path, *spoiled(2, 3, 4), "--model.max_skips", "2", name="three") == 2
    assert "the loss is not finite at step 4 (epoch 1, batch 4)" in capsys.readouterr().err


def test_a_step_that_was_left_out_changes_nothing(tmp_path):
    """All steps of the second epoch are skipped: weights, teacher and memory are those after the first epoch."""
    first = ("--model.optim.name", "sgd", "--model.optim.momentum", "0", "--model.momentum", "1.0")
    flags = (*first, "--trainer.max_epochs", "1", *spoiled(*range(1, 8)), "--model.max_skips", "7")
    assert fit(tmp_path, *flags, "--model.optim.warmup", "0", "--trainer.max_steps", "8") == 0
    flags = (*first, "--trainer.max_epochs", "1", "--trainer.max_steps", "1", "--model.optim.warmup", "0")
    assert fit(tmp_path, *flags, name="one") == 0
    ours, theirs = state(tmp_path / "maskcon" / "run"), state(tmp_path / "maskcon" / "one")
    for name, value in theirs.items():
        same = torch.equal(ours[name], value) if isinstance(value, torch.Tensor) else ours[name] == value
        assert same, name


def test_weights_that_are_not_finite_are_no_checkpoint(tmp_path, capsys):
    assert fit(tmp_path, "--trainer.callbacks", "tests.trust.callbacks.SpoilWeights") == 2
    assert "no checkpoint is written at step 16: query." in capsys.readouterr().err
    assert finite(state(tmp_path / "maskcon" / "run"))


def test_a_data_loader_process_that_dies_names_what_it_read(tmp_path, capsys):
    kill = ("--trainer.callbacks", "tests.trust.callbacks.KillWorker", "--data.num_workers", "1")
    assert fit(tmp_path, *kill, "--data.prefetch", "1") == 2
    said = capsys.readouterr().err
    assert "a data-loader process died while it was reading " in said
    assert "digit" in said.split("while it was reading ")[1].split("(")[0], said
    # PyTorch's reason: the second one where its poll of the process reads the status before its signal handler does
    assert re.search(r"\(DataLoader worker \(pid.*(is killed by signal|exited unexpectedly)", said), said


def test_a_batch_of_one_image_says_why_it_cannot_be_trained(tmp_path, capsys):
    assert main(rival_line("byol", tmp_path, "run", "--data.batch_size", "1", "--trainer.max_epochs", "1")) == 2
    assert "BatchNorm cannot be trained on one image of a process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--trainer.val_check_interval", "999"), "`val_check_interval` (999) must be less than or equal to"),
        (("--trainer.overfit_batches", "2"), "trainer.overfit_batches is not supported"),
        (
            ("--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val/recal@1"),
            "Early stopping conditioned on metric `val/recal@1` which is not available",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_options_of_lightning_that_do_not_fit_are_one_line(flags, said, tmp_path, capsys):
    assert fit(tmp_path, *flags, "--trainer.limit_train_batches", "2") == 2
    assert said in capsys.readouterr().err


def test_a_full_gpu_says_which_numbers_to_lower(tmp_path, capsys):
    assert fit(tmp_path, "--trainer.callbacks", "tests.trust.callbacks.GpuFull") == 2
    said = capsys.readouterr().err
    for word in ("2.00 GiB", "data.batch_size", "model.memory", "bf16-mixed"):
        assert word in said


def folder(tmp_path, classes: dict[str, int]):
    """A labelled folder with the given numbers of images of each class."""
    for part in ("train", "test"):
        for name, count in classes.items():
            for number in range(count):
                where = tmp_path / part / name
                where.mkdir(parents=True, exist_ok=True)
                trees.write_image(where / f"{number}.jpg")
    return tmp_path


@pytest.mark.parametrize(
    ("classes", "recall", "without_match"),
    [({"only": 8}, 1.0, 0), ({name: 1 for name in "abcdefgh"}, 0.0, 8)],
    ids=["one class", "no relevant pair"],
)
def test_degenerate_test_sets_have_their_documented_values(classes, recall, without_match, tmp_path):
    dataset = f"{{class_path: Folder, init_args: {{root: {folder(tmp_path / 'data', classes)}}}}}"
    flags = ("--data.dataset", dataset, "--model.variant", "selfcon", "--data.batch_size", "4", "--model.memory", "4")
    assert fit(tmp_path, *flags, "--data.protocol.label_fraction", "1.0", "--data.num_workers", "0") == 0
    metrics = results(tmp_path / "maskcon" / "run")["metrics"]
    assert metrics["test/recall@1"] == recall
    assert metrics["test/map"] == recall
    assert metrics["test/queries_without_match"] == without_match
