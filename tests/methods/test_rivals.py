"""Each rival of RIVALS trains, goes on from a checkpoint on a device, is exported, and trains the same on two
processes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fgssl.cli.main import main
from tests.ddp.ranks import run_by
from tests.devices.on_device import waits_of_a_step
from tests.methods.runs import RIVALS, results, rival_line, state

pytestmark = pytest.mark.slow

STEPS, KEPT = 8, 3  # of the run; of its checkpoint, within the first epoch
CHECK = ("tolist", "fgssl/distributed.py:read")  # the wait of a step: is the loss finite, has a process to stop
UNTESTED = ("--trainer.limit_test_batches", "0")
WORLD = 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Callable[[str], Path]:
    """``whole(name)`` is the folder of a rival's run, beside ``kept.ckpt`` of its third step; trained once."""
    root, done = tmp_path_factory.mktemp("whole"), set()

    def run(name: str) -> Path:
        if name not in done:
            keep = f"{{class_path: tests.trust.callbacks.Keep, init_args: {{step: {KEPT}, path: {root}/{name}.ckpt}}}}"
            flags = ("--checkpoint.every_n_train_steps", str(KEPT), "--trainer.callbacks", keep)
            assert main(rival_line(name, root, "run", *flags)) == 0
            done.add(name)
        return root / name / "run"

    return run


def assert_close_state(ours: dict, theirs: dict, rtol: float, atol: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if not isinstance(value, torch.Tensor):
            assert ours[name] == value, name  # a memory's pointer and fill
        elif value.is_floating_point():
            torch.testing.assert_close(ours[name], value, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")
        else:
            assert torch.equal(ours[name], value), name  # a memory's labels and rows


@pytest.mark.parametrize("name", RIVALS)
def test_rival_trains_goes_on_from_a_checkpoint_on_a_device_and_is_exported(name, whole, elsewhere, tmp_path):
    run = whole(name)
    assert results(run)["steps"] == STEPS
    assert 0 < results(run)["metrics"]["test/recall@1"] < 1
    start = torch.load(run.parents[1] / f"{name}.ckpt", weights_only=True)
    assert start["global_step"] == KEPT
    assert any(not torch.equal(value, state(run)[key]) for key, value in start["state_dict"].items())

    line = rival_line(name, tmp_path, "on", "--ckpt_path", str(run.parents[1] / f"{name}.ckpt"), *UNTESTED)
    assert elsewhere(waits_of_a_step, line) == (0, {CHECK: 1.0})
    on = tmp_path / name / "on"
    assert results(on)["steps"] == STEPS
    # The CPU augments a few images at a time, in float32, and leaves out other taps of the blur.
    assert_close_state(state(on), state(run), rtol=1e-3, atol=1e-5)

    out = ["--out", str(tmp_path / "export"), "--formats", "timm"]  # the features are compared when it is read back
    assert main(["export", "--ckpt_path", str(run), *out]) == 0


@pytest.mark.ddp
def test_two_processes_train_every_rival_to_the_weights_of_one(whole, tmp_path):
    """One pair of processes trains them all."""
    flags = ("--trainer.devices", str(WORLD), "--trainer.strategy", "ddp", *UNTESTED)
    run_by(WORLD, tmp_path, *(rival_line(name, tmp_path, "run", *flags) for name in RIVALS))
    for name in RIVALS:
        run = tmp_path / name / "run"
        assert results(run)["processes"] == WORLD
        assert_close_state(state(run), state(whole(name)), rtol=1e-5, atol=1e-7)
