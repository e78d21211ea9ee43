"""Every method trains, stops, resumes and is tested on the stand-in device, alone and as one of two processes."""

import math
import signal

import pytest

from fgssl.cli.main import main
from tests.devices.on_device import run
from tests.methods.runs import RUNS, arguments, assert_same_state, losses, results, state

pytestmark = pytest.mark.slow

SHORT = ("--trainer.limit_train_batches", "4", "--data.num_workers", "0")
STOP = f"{{class_path: tests.trust.callbacks.KillAt, init_args: {{batch: 5, number: {int(signal.SIGTERM)}}}}}"


@pytest.fixture
def stop_and_resume(elsewhere, tmp_path):
    """Makes a run of two epochs that SIGTERM stops in the second, and resumes it; its folder."""

    def complete(method, processes):
        stopped = elsewhere(run, arguments(method, tmp_path, "run", *SHORT, "--trainer.callbacks", STOP), processes)
        assert stopped == 128 + signal.SIGTERM
        resumed = elsewhere(run, arguments(method, tmp_path, "run", *SHORT, "--run.resume", "true"), processes)
        assert resumed == 0
        return tmp_path / method / "run"

    return complete


@pytest.mark.parametrize("method", RUNS)
def test_a_stopped_and_resumed_run_on_the_device_has_the_numbers_of_the_cpu(method, tmp_path, stop_and_resume):
    assert main(arguments(method, tmp_path, "cpu", *SHORT)) == 0
    on_device, on_cpu = stop_and_resume(method, processes=1), tmp_path / method / "cpu"
    ours, theirs = (dict(losses(run)) for run in (on_device, on_cpu))
    assert len(ours) == 8
    if method == "flsl":  # attention on the CPU has a kernel of its own
        assert {step: float(loss) for step, loss in ours.items()} == pytest.approx(
            {step: float(loss) for step, loss in theirs.items()}, rel=1e-4
        )
        return
    assert ours == theirs
    assert_same_state(state(on_device), state(on_cpu))
    ours, theirs = (
        {name: value for name, value in results(run)["metrics"].items() if name.startswith("test/")}
        for run in (on_device, on_cpu)
    )
    assert ours == theirs


@pytest.mark.parametrize("method", RUNS)
def test_one_of_two_processes_sends_nothing_from_the_cpu(method, stop_and_resume):
    folder = stop_and_resume(method, processes=2)
    assert len(losses(folder)) == 8
    assert all(math.isfinite(float(loss)) for _, loss in losses(folder))
    assert results(folder)["status"] == "finished"
    assert results(folder)["processes"] == 2
