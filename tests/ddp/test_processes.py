"""Several processes give what one gives: the same training on the same global batch, the same evaluation."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.multiprocessing import ProcessRaisedException

from fgssl.cli.main import main
from tests.ddp.ranks import run_by
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

pytestmark = pytest.mark.ddp

DDP = ("--trainer.strategy", "ddp")


def metrics(run: Path, part: str = "test/") -> dict[str, float]:
    return {name: value for name, value in results(run)["metrics"].items() if name.startswith(part)}


def on(processes: int, batch: int = 16) -> tuple[str, ...]:
    """Flags for the same global batch on several processes."""
    return ("--data.batch_size", str(batch), "--trainer.devices", str(processes), *DDP)


# What is compared is the training; test_evaluation_is_the_same_... compares the rest.
DOUBLE = ("--trainer.precision", "64-true", "--trainer.limit_test_batches", "0")


def trained_by(world: int, folder: Path, *methods: str) -> Path:
    """Train entries of RUNS by ``world`` processes; returns the folder of the runs."""
    run_by(world, folder, *(arguments(name, folder, "several", *on(world), *DOUBLE) for name in methods))
    return folder


@pytest.fixture(scope="module")
def by_two(tmp_path_factory) -> Path:
    """Runs of all methods by one pair of processes."""
    return trained_by(2, tmp_path_factory.mktemp("by_two"), *RUNS)


@pytest.mark.parametrize("method", RUNS)
def test_two_processes_train_the_same_weights_teacher_and_memory(method, by_two, tmp_path):
    several = by_two / method / "several"
    assert results(several)["processes"] == 2
    assert main(arguments(method, tmp_path, "one", *DOUBLE)) == 0
    assert_equal_states(state(several), state(tmp_path / method / "one"))


def test_four_processes_train_the_same(tmp_path):
    several = trained_by(4, tmp_path, "maskcon") / "maskcon" / "several"
    assert main(arguments("maskcon", tmp_path, "one", *DOUBLE)) == 0
    assert_equal_states(state(several), state(tmp_path / "maskcon" / "one"))


def assert_processes_train_the_same(method: str, processes: int, tmp_path: Path, *flags: str) -> None:
    """Weights, teacher and memory of several processes are those of one; ``flags`` choose the device."""
    several = complete(method, tmp_path, "several", *flags, *on(processes), *DOUBLE)
    assert_equal_states(state(several), state(complete(method, tmp_path, "one", *flags, *DOUBLE)))


def assert_equal_states(ours: dict, theirs: dict) -> None:
    """But for the order of sums."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if not isinstance(value, torch.Tensor):
            assert ours[name] == value, name  # a memory's pointer and fill
        elif value.is_floating_point():
            torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
        else:
            assert torch.equal(ours[name], value), name  # a memory's labels and rows


def test_a_run_of_one_process_goes_on_as_two_with_the_same_global_batch(tmp_path):
    every = ("--checkpoint.every_n_train_steps", "5", "--trainer.precision", "64-true")
    kill = "{class_path: tests.trust.callbacks.KillAt, init_args: {batch: 7}}"
    status, said = finish(start("maskcon", tmp_path, "moved", *every, "--trainer.callbacks", kill))
    assert status == -signal.SIGKILL, said[-3000:]
    run_by(2, tmp_path, arguments("maskcon", tmp_path, "moved", *on(2), *every, "--run.resume", "true"))
    ours = state(tmp_path / "maskcon" / "moved")
    theirs = state(complete("maskcon", tmp_path, "whole", *every))
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path):
    said = run_by(2, tmp_path, arguments("maskcon", tmp_path, "run", *on(2, batch=15)), status=2)
    assert "data.batch_size is 15 images over all processes, and 2 processes cannot share them equally" in said
    assert "Set it to 14 or 16" in said


def test_evaluation_is_the_same_for_any_number_of_processes(tmp_path):
    """A prime number of rows: every number of processes pads, and batches of 17 do not divide a process's part."""
    flags = ("--data.protocol.val_fraction", "0.25", "--data.eval_batch_size", "17", *DDP)
    alone, *others = (tmp_path / str(world) / "maskcon" / "run" for world in (1, 2, 3))
    for world in (1, 2, 3):
        (tmp_path / str(world)).mkdir()
        on_it = ("--trainer.devices", str(world), *flags)
        run_by(
            world, tmp_path / str(world), arguments("maskcon", tmp_path / str(world), "run", *on_it, command="validate")
        )
    assert results(alone)["data"]["val"]["images"] == 337
    expected = metrics(alone, "val/")
    assert 0 < expected["val/recall@1"] < 1
    for other in others:
        assert metrics(other, "val/") == expected


def test_sigterm_to_one_process_ends_all_with_a_checkpoint(tmp_path):
    kill = "{class_path: tests.trust.callbacks.KillAt, init_args: {batch: 9, number: 15, rank: 1}}"
    status, said = finish(start("maskcon", tmp_path, "run", *on(2), "--trainer.callbacks", kill))
    assert status == 128 + signal.SIGTERM, said[-3000:]
    assert "Traceback" not in said
    last = torch.load(tmp_path / "maskcon" / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 11  # asked for after the 10th step, agreed in the check of the 11th
    run_by(2, tmp_path, arguments("maskcon", tmp_path, "run", *on(2), "--run.resume", "true"))
    assert results(tmp_path / "maskcon" / "run")["steps"] == 16


def test_a_run_of_steps_on_two_processes_can_be_made_longer(tmp_path):
    """After an epoch of 8 steps."""
    same = ("--trainer.max_epochs", "-1", "--model.optim.schedule", "steps", "--trainer.limit_test_batches", "0")
    same += ("--run.resume", "true", "--data.num_workers", "0", *on(2))
    made = [("whole", 9), ("longer", 8), ("longer", 9)]
    lines = (arguments("finetune", tmp_path, name, *same, "--trainer.max_steps", str(steps)) for name, steps in made)
    run_by(2, tmp_path, *lines)
    whole, longer = tmp_path / "finetune" / "whole", tmp_path / "finetune" / "longer"
    assert losses(longer) == losses(whole)
    assert_same_state(state(longer), state(whole))


def test_ctrl_c_ends_all_processes_with_a_checkpoint(tmp_path):
    press = "{class_path: tests.trust.callbacks.CtrlC, init_args: {batches: [9]}}"
    status, said = in_a_terminal(arguments("maskcon", tmp_path, "run", *on(2), "--trainer.callbacks", press), tmp_path)
    assert status == 128 + signal.SIGINT, said[-3000:]
    assert "Traceback" not in said
    assert "sync_dist" not in said  # Lightning's advice at the end of an epoch
    assert said.count("Ctrl-C: the step is finished") == said.count("Stopped by Ctrl-C. To go on: ") == 1
    last = torch.load(tmp_path / "maskcon" / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 11  # asked for after the 10th step, agreed in the check of the 11th


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_other_with_a_message(rank, tmp_path):
    assert_a_death_ends_the_run(rank, tmp_path)


def assert_a_death_ends_the_run(rank: int, tmp_path: Path, *flags: str) -> None:
    """A process that is killed ends the other one; ``flags`` choose the device."""
    kill = f"{{class_path: tests.trust.callbacks.KillAt, init_args: {{batch: 3, rank: {rank}}}}}"
    process = start("maskcon", tmp_path, "run", *on(2), *flags, "--trainer.callbacks", kill)
    status, said = finish(process)  # PATIENCE is below the half hour that the collectives would wait
    assert status != 0
    # Under NCCL, the watchdog takes the process down that waits for the dead one, whose own message it is.
    messages = ("lost its connection", "terminated with code", "taking the entire process down")
    assert any(message in said for message in messages), said[-3000:]
    survivors = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout.split()
    assert not survivors


def test_a_process_that_hangs_is_given_up_after_the_timeout_of_the_configuration(tmp_path):
    """Rank 1 is stopped (SIGSTOP), as by a dead network; rank 0 waits 30 seconds, not the default's half hour."""
    strategy = "{class_path: DDPStrategy, init_args: {timeout: '0:00:30', process_group_backend: gloo}}"
    hang = (
        f"{{class_path: tests.trust.callbacks.KillAt, init_args: {{batch: 3, number: {int(signal.SIGSTOP)}, rank: 1}}}}"
    )
    flags = ("--trainer.devices", "2", "--trainer.strategy", strategy, "--trainer.callbacks", hang)
    status, said = finish(start("maskcon", tmp_path, "run", *flags))
    assert status == 2, said[-3000:]
    assert "lost its connection" in said
    for pid in subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout.split():
        os.kill(int(pid), signal.SIGKILL)  # a stopped process cannot end by itself
        pytest.fail("the stopped process was left behind")


def test_a_loss_that_is_not_finite_stops_all_processes(tmp_path):
    spoil = "{class_path: tests.trust.callbacks.SpoilInput, init_args: {batches: [3], rank: 1}}"
    said = run_by(2, tmp_path, arguments("maskcon", tmp_path, "run", *on(2), "--trainer.callbacks", spoil), status=2)
    assert "the loss is not finite at step 3 (epoch 1, batch 3, process 1): loss nan" in said
    assert "Traceback" not in said


def test_a_step_may_be_left_out_on_all_processes(tmp_path):
    spoil = "{class_path: tests.trust.callbacks.SpoilInput, init_args: {batches: [3], rank: 1}}"
    flags = (*on(2), "--trainer.callbacks", spoil, "--model.max_skips", "1", "--trainer.precision", "64-true")
    run_by(2, tmp_path, arguments("maskcon", tmp_path, "run", *flags))
    weights = state(tmp_path / "maskcon" / "run")
    assert all(torch.isfinite(v).all() for v in weights.values() if isinstance(v, torch.Tensor))


def test_memories_that_differ_between_processes_stop_the_run(tmp_path):
    spoil = ("--trainer.callbacks", "tests.trust.callbacks.SpoilMemory")
    line = arguments("maskcon", tmp_path, "run", *on(2), *spoil)
    with pytest.raises(ProcessRaisedException, match="step 2: values differ between processes: memory"):
        run_by(2, tmp_path, line)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_nodes_by_torchrun(tmp_path):
    """The README's torchrun line on loopback: two nodes of one process each train what one process trains."""
    port, nodes = str(free_port()), []
    for node in "01":
        line = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", node]
        line += ["--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port, "-m", "fgssl"]
        flags = ("--trainer.num_nodes", "2", *DDP, "--trainer.precision", "64-true")
        line += arguments("maskcon", tmp_path, "nodes", *flags)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        nodes.append(subprocess.Popen(line, text=True, env=environment(), cwd=tmp_path, **pipes))
    for node in nodes:
        status, said = finish(node)
        assert status == 0, said[-3000:]
    ours = tmp_path / "maskcon" / "nodes"
    theirs = complete("maskcon", tmp_path, "one", "--trainer.precision", "64-true")
    assert results(ours)["processes"] == 2
    for name, value in state(theirs).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(state(ours)[name], value, rtol=1e-5, atol=1e-6)
    assert metrics(ours) == pytest.approx(metrics(theirs), rel=1e-4)
