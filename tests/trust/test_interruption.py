"""Interrupted equals uninterrupted, and nothing on disk is lost."""

import csv
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fgssl.callbacks.record import Record
from fgssl.checkpoint import AtomicCheckpointIO, read_checkpoint
from fgssl.cli.main import main
from fgssl.errors import UserError
from tests.methods.runs import (
    RUNS,
    arguments,
    assert_same_state,
    complete,
    environment,
    finish,
    in_a_terminal,
    losses,
    results,
    start,
    state,
)

pytestmark = pytest.mark.slow

EVERY = ("--checkpoint.every_n_train_steps", "5")


def at(batch: int, number: int = signal.SIGKILL) -> str:
    return f"{{class_path: tests.trust.callbacks.KillAt, init_args: {{batch: {batch}, number: {int(number)}}}}}"


@pytest.mark.parametrize("method", RUNS)
def test_a_killed_run_resumes_to_the_same_losses_and_weights(method, tmp_path):
    assert_killed_equals_whole(method, tmp_path)


def assert_killed_equals_whole(method: str, tmp_path: Path, *flags: str, **variables: str) -> None:
    """16 steps; killed after the 13th, in the middle of the second epoch, with the last checkpoint of step 10.

    Args:
        method: entry of RUNS.
        tmp_path: folder of the runs.
        flags: options of all runs, such as the device.
        variables: environment of all runs.
    """
    whole = complete(method, tmp_path, "whole", *EVERY, *flags, **variables)
    kill = ("--trainer.callbacks", at(12))
    status, said = finish(start(method, tmp_path, "killed", *EVERY, *flags, *kill, **variables))
    assert status == -signal.SIGKILL, said[-2000:]
    killed = tmp_path / method / "killed"
    assert results(killed)["status"] == "running"
    assert torch.load(killed / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 10

    complete(method, tmp_path, "killed", *EVERY, *flags, "--run.resume", "true", **variables)
    assert [step for step, _ in losses(killed)] == [str(step) for step in range(16)]
    assert losses(killed) == losses(whole)
    assert_same_state(state(killed), state(whole))
    ours, theirs = (results(run)["metrics"] for run in (killed, whole))
    assert {k: v for k, v in ours.items() if k.startswith("test/")} == {
        k: v for k, v in theirs.items() if k.startswith("test/")
    }


def test_sigterm_writes_a_checkpoint_and_ends_cleanly(tmp_path):
    whole = complete("maskcon", tmp_path, "whole")
    flags = ("--trainer.callbacks", at(11, signal.SIGTERM), "--data.num_workers", "1")
    status, said = finish(start("maskcon", tmp_path, "stopped", *flags))
    assert status == 128 + signal.SIGTERM, said[-2000:]
    assert "Traceback" not in said
    assert "Stopped by SIGTERM" in said
    stopped = tmp_path / "maskcon" / "stopped"
    assert results(stopped)["status"] == "interrupted"
    assert torch.load(stopped / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 12

    complete("maskcon", tmp_path, "stopped", "--run.resume", "true")
    assert losses(stopped) == losses(whole)
    assert_same_state(state(stopped), state(whole))


# ---- between two epochs, and further than planned -------------------------------------------------------------------

OF_18_STEPS = ("--trainer.max_epochs", "-1", "--trainer.max_steps", "18")
BY_6_STEPS = ("--checkpoint.every_n_train_steps", "6")


def fit(root: Path, name: str, *flags: str) -> int:
    """In this process: epochs of 6 steps, each with a validation, and a schedule that does not ask for their number."""
    same = ("--data.protocol.val_fraction", "0.25", "--model.optim.schedule", "steps", "--data.num_workers", "0")
    return main(arguments("finetune", root, name, *OF_18_STEPS, *same, "--run.resume", "true", *flags))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    assert fit(root, "run") == 0
    return root / "finetune" / "run"


def assert_equal_runs(ours: Path, whole: Path) -> None:
    assert losses(ours) == losses(whole)
    for checkpoint in ("last.ckpt", "best.ckpt"):
        assert_same_state(state(ours, checkpoint), state(whole, checkpoint))
    tested, expected = (
        {name: value for name, value in results(run)["metrics"].items() if name.startswith("test/")}
        for run in (ours, whole)
    )
    assert tested == expected


def ended(name: str, step: int) -> tuple[str, str]:
    return "--trainer.callbacks", f"{{class_path: tests.trust.callbacks.{name}, init_args: {{step: {step}}}}}"


def rows(run: Path) -> list[str]:
    with (run / "metrics.csv").open() as file:
        return [row["step"] for row in csv.DictReader(file)]


@pytest.mark.parametrize("every", [(), BY_6_STEPS], ids=["by epoch", "by step"])
def test_a_run_of_steps_that_is_stopped_between_two_epochs_goes_on_with_the_next(every, whole, tmp_path, capsys):
    """At the last batch of an epoch, in the next epoch, and in the validation after that."""
    last, inside = (("--trainer.callbacks", at(batch, signal.SIGTERM)) for batch in (5, 8))
    for stop in (last, inside, ended("StopInValidation", 12)):
        assert fit(tmp_path, "run", *every, *stop) == 128 + signal.SIGTERM
    assert fit(tmp_path, "run", *every) == 0
    assert_equal_runs(tmp_path / "finetune" / "run", whole)
    assert rows(tmp_path / "finetune" / "run") == rows(whole)
    assert "could not find the monitored key" not in capsys.readouterr().err


def test_a_run_of_steps_can_be_made_longer(whole, tmp_path):
    """At the end of an epoch and, twice, inside one."""
    for steps in (6, 8, 9, 18):
        assert fit(tmp_path, "run", "--trainer.max_steps", str(steps)) == 0
    assert_equal_runs(tmp_path / "finetune" / "run", whole)


def test_a_run_that_its_time_ended_inside_an_epoch_goes_on_there(whole, tmp_path):
    assert fit(tmp_path, "run", *ended("EndAt", 8)) == 0
    assert losses(tmp_path / "finetune" / "run")[-1][0] == "7"
    assert fit(tmp_path, "run") == 0
    assert losses(tmp_path / "finetune" / "run") == losses(whole)
    assert_same_state(state(tmp_path / "finetune" / "run"), state(whole))


def test_a_run_that_fails_after_an_epoch_goes_on_twice(whole, tmp_path):
    """Its checkpoint is that of the last step of the epoch."""
    epochs = ("--trainer.max_epochs", "3", "--trainer.max_steps", "-1", *BY_6_STEPS)
    with pytest.raises(RuntimeError, match="at step 6"):
        fit(tmp_path, "run", *epochs, "--trainer.callbacks", "tests.trust.callbacks.FailAt")
    assert fit(tmp_path, "run", *epochs, "--trainer.callbacks", at(8, signal.SIGTERM)) == 128 + signal.SIGTERM
    assert fit(tmp_path, "run", *epochs) == 0
    assert_equal_runs(tmp_path / "finetune" / "run", whole)


def test_a_run_that_is_lost_right_after_its_last_epoch_counts_that_one(tmp_path, monkeypatch):
    """A start that goes on from there trains nothing, and keeps the number."""
    monkeypatch.setattr(Record, "on_fit_end", lambda *_: None)
    assert fit(tmp_path, "run", "--trainer.limit_test_batches", "0") == 0
    assert results(tmp_path / "finetune" / "run")["epochs"] == 3


def test_a_checkpoint_written_right_after_the_last_batch_of_an_epoch_goes_on_twice(whole, tmp_path):
    """Lightning's own callback writes it before the validation and before the end of the epoch."""
    own = f"{{dirpath: {tmp_path / 'own'}, filename: own, every_n_train_steps: 6}}"
    own = f"{{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {own}}}"
    assert fit(tmp_path, "run", "--trainer.max_steps", "7", "--trainer.callbacks", own) == 0
    shutil.copy(tmp_path / "own" / "own.ckpt", tmp_path / "finetune" / "run" / "checkpoints" / "last.ckpt")
    assert fit(tmp_path, "run", "--trainer.callbacks", at(8, signal.SIGTERM)) == 128 + signal.SIGTERM
    assert fit(tmp_path, "run") == 0
    assert losses(tmp_path / "finetune" / "run") == losses(whole)
    assert_same_state(state(tmp_path / "finetune" / "run"), state(whole))


# ---- between accumulated batches, and at validations inside an epoch ------------------------------------------------

# Three epochs of three steps, each of two batches, with a validation behind each step.
HALVES = (
    "--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "0.34", "--trainer.max_steps", "9",
    "--checkpoint.monitor", "val/recall@1",
)  # fmt: skip
EACH_STEP = ("--checkpoint.every_n_train_steps", "1")


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("halves")
    assert fit(root, "run", *HALVES) == 0
    run = root / "finetune" / "run"
    best = read_checkpoint(str(run / "checkpoints" / "best.ckpt"))
    assert best["global_step"] % 3, "the best validation is to lie inside an epoch"
    return run


def test_a_run_that_early_stopping_ended_inside_an_epoch_goes_on_there(halves, tmp_path):
    good = "{monitor: val/recall@1, mode: max, stopping_threshold: 0}"
    stopping = f"{{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {good}}}"
    assert fit(tmp_path, "run", *HALVES, "--trainer.callbacks", stopping) == 0
    assert results(tmp_path / "finetune" / "run")["steps"] == 1
    assert fit(tmp_path, "run", *HALVES) == 0
    assert_equal_runs(tmp_path / "finetune" / "run", halves)


def test_a_run_ends_after_an_optimiser_step(halves, tmp_path):
    """And not between two accumulated batches, whose first would be lost."""
    end = "{class_path: tests.trust.callbacks.EndAfter, init_args: {batch: 6}}"
    assert fit(tmp_path, "run", *HALVES, "--trainer.callbacks", end) == 0
    assert results(tmp_path / "finetune" / "run")["steps"] == 4
    assert fit(tmp_path, "run", *HALVES) == 0
    assert_equal_runs(tmp_path / "finetune" / "run", halves)


def test_a_run_that_fails_between_accumulated_batches_twice_goes_on(halves, tmp_path):
    """The checkpoint holds no gradients, so none is written there by the second start."""
    fail = ("--trainer.callbacks", "{class_path: tests.trust.callbacks.FailBefore, init_args: {batch: 5}}")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="before batch 5"):
            fit(tmp_path, "run", *HALVES, *EACH_STEP, *fail)
    assert fit(tmp_path, "run", *HALVES, *EACH_STEP) == 0
    assert_equal_runs(tmp_path / "finetune" / "run", halves)


def test_a_run_that_fails_in_a_validation_inside_an_epoch_repeats_it(halves, tmp_path):
    with pytest.raises(RuntimeError, match="in the validation after step 5"):
        fit(tmp_path, "run", *HALVES, *EACH_STEP, *ended("FailInValidation", 5))
    assert fit(tmp_path, "run", *HALVES, *EACH_STEP) == 0
    assert_equal_runs(tmp_path / "finetune" / "run", halves)
    assert rows(tmp_path / "finetune" / "run") == rows(halves)


def test_a_run_that_is_stopped_at_a_validation_inside_an_epoch_knows_its_best_score(halves, tmp_path):
    best = read_checkpoint(str(halves / "checkpoints" / "best.ckpt"))["global_step"]
    assert fit(tmp_path, "run", *HALVES, "--trainer.callbacks", at(2 * best - 1, signal.SIGTERM)) == 143
    assert fit(tmp_path, "run", *HALVES) == 0
    assert_equal_runs(tmp_path / "finetune" / "run", halves)


# ---- Ctrl-C ---------------------------------------------------------------------------------------------------------


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_resume(tmp_path):
    """In a terminal the loader processes get the signal too; 3 steps of the second epoch are missing afterwards."""
    whole = complete("maskcon", tmp_path, "whole")
    press = "{class_path: tests.trust.callbacks.CtrlC, init_args: {batches: [11]}}"
    line = arguments("maskcon", tmp_path, "stopped", "--trainer.callbacks", press, "--data.num_workers", "2")
    status, said = in_a_terminal(line, tmp_path)
    assert status == 128 + signal.SIGINT, said[-2000:]
    assert "Traceback" not in said
    assert "Ctrl-C: the step is finished and last.ckpt written. Ctrl-C again stops at once." in said
    stopped = tmp_path / "maskcon" / "stopped"
    assert "Stopped by Ctrl-C. To go on: fgssl fit --ckpt_path maskcon/stopped\n" in said
    assert results(stopped)["status"] == "interrupted"
    assert torch.load(stopped / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 12

    assert main(["fit", "--ckpt_path", str(stopped), "--trainer.callbacks", "null"]) == 0
    assert losses(stopped) == losses(whole)
    assert_same_state(state(stopped), state(whole))


def test_a_second_ctrl_c_stops_at_once(tmp_path, capfd):
    press = "[tests.trust.callbacks.CtrlCTwice]"
    assert main(arguments("maskcon", tmp_path, "run", "--trainer.callbacks", press)) == 128 + signal.SIGINT
    said = capfd.readouterr()
    assert "Stopped by Ctrl-C; no checkpoint was written yet." in said.out
    assert not (tmp_path / "maskcon" / "run" / "checkpoints").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_the_evaluation_after_training_keeps_the_trained_weights(tmp_path, capfd):
    press = ("--trainer.callbacks", "tests.trust.callbacks.CtrlCAtTest", "--trainer.max_epochs", "1")
    assert main(arguments("maskcon", tmp_path, "run", *press)) == 128 + signal.SIGINT
    run = tmp_path / "maskcon" / "run"
    assert f"Stopped by Ctrl-C. To go on: fgssl fit --ckpt_path {run}" in capfd.readouterr().out
    assert main(["fit", "--ckpt_path", str(run), "--trainer.callbacks", "null"]) == 0
    assert results(run)["status"] == "finished"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_memory_is_filled_ends_the_run(number, tmp_path, capfd, monkeypatch):
    from fgssl.methods.maskcon import MaskCon

    filled, prefill = [], MaskCon.prefill

    def press(self, batch):
        filled.append(len(batch.index))
        os.kill(os.getpid(), number)
        return prefill(self, batch)

    monkeypatch.setattr(MaskCon, "prefill", press)
    assert main(arguments("maskcon", tmp_path, "run")) == 128 + number
    assert filled == [16]  # of 50 keys
    assert "; no checkpoint was written yet." in capfd.readouterr().out
    assert results(tmp_path / "maskcon" / "run")["status"] == "interrupted"


def test_resume_starts_a_run_that_is_not_there_and_needs_its_name(tmp_path):
    run = complete("maskcon", tmp_path, "new", "--run.resume", "true", "--trainer.max_epochs", "1")
    assert results(run)["status"] == "finished"
    status, said = finish(start("maskcon", tmp_path, "null", "--run.resume", "true"))
    assert status == 2
    assert "--run.resume needs --run.name" in said


def _write_for_ever(path: Path) -> None:
    writer, number = AtomicCheckpointIO(), 0
    while True:
        number += 1
        writer.save_checkpoint({"number": number, "weights": torch.full((500_000,), float(number))}, path)


def test_a_process_killed_while_it_writes_leaves_a_whole_checkpoint(tmp_path):
    path, seen, partial = tmp_path / "last.ckpt", 0, 0
    rng = random.Random(0)
    for _ in range(20):
        process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(path,))
        process.start()
        while not path.exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0.01, 0.05))
        process.kill()
        process.join()
        partial += path.with_name("last.ckpt.partial").exists()
        checkpoint = read_checkpoint(str(path))
        assert (checkpoint["weights"] == checkpoint["number"]).all()
        seen += 1
    assert seen == 20
    assert partial > 0, "no kill fell into a write: the test shows nothing"


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from fgssl.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_full_disk_is_one_error_and_leaves_what_was_there(tmp_path):
    """A limit on the size of files makes the write fail as a full disk does."""
    run = complete("maskcon", tmp_path, "run", "--trainer.max_epochs", "1")
    last = run / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    line = [sys.executable, "-c", LIMITED.format(limit=len(before) // 2)]
    line += arguments("maskcon", tmp_path, "run", "--run.resume", "true")
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=1200)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "last.ckpt could not be written" in done.stderr
    assert "Earlier checkpoints are unchanged" in done.stderr
    assert "Traceback" not in done.stderr
    assert last.read_bytes() == before
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
    assert results(run)["status"] == "failed"


def test_a_folder_that_cannot_be_written_is_said_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    assert main(arguments("maskcon", tmp_path / "file", "run")) == 2
    said = capsys.readouterr().err
    assert "run.root" in said
    assert str(tmp_path / "file") in said


def test_a_truncated_checkpoint_names_the_others(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "best.ckpt")
    whole = (tmp_path / "best.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"last.ckpt is not a checkpoint.*Other checkpoints in the folder: .*best.ckpt"):
        read_checkpoint(str(tmp_path / "last.ckpt"))
    assert (tmp_path / "best.ckpt").read_bytes() == whole
