"""Every method trains, stops, resumes and is tested on the stand-in device, alone and as one of two processes."""

import math
import signal

import pytest
import torch

from fgssl.cli.main import main
from tests.devices.on_device import SHORT, run, waits_of_a_step
from tests.methods.runs import RUNS, arguments, assert_same_state, results, state

pytestmark = pytest.mark.slow

CHECK = ("tolist", "fgssl/distributed.py:read")  # the step's check: is the loss finite, has a process to stop
BUDGET = {method: {CHECK: 1.0} for method in RUNS}  # waits of a step; a method that has to wait more often says so here


@pytest.fixture
def stop_and_resume(elsewhere, tmp_path):
    """Makes a run that SIGTERM stops in its second epoch, and resumes it; its folder and the waits of a step."""

    def complete(method, processes):
        line = arguments(method, tmp_path, "run", *SHORT)
        last = 7 - processes  # of the batches 0 to 7; two processes agree to stop one step later
        kill = (
            f"{{class_path: tests.trust.callbacks.KillAt, init_args: {{batch: {last}, number: {int(signal.SIGTERM)}}}}}"
        )
        stopped, waits = elsewhere(waits_of_a_step, [*line, "--trainer.callbacks", kill], processes)
        assert stopped == 128 + signal.SIGTERM
        assert elsewhere(run, [*line, "--run.resume", "true"], processes) == 0
        return tmp_path / method / "run", waits

    return complete


def metrics(run):
    return {name: value for name, value in results(run)["metrics"].items() if name.startswith("test/")}


@pytest.mark.parametrize("method", RUNS)
def test_a_stopped_and_resumed_run_on_the_device_has_the_numbers_of_the_cpu(method, tmp_path, stop_and_resume):
    assert main(arguments(method, tmp_path, "cpu", *SHORT)) == 0
    on_cpu, (on_device, waits) = tmp_path / method / "cpu", stop_and_resume(method, processes=1)
    assert waits == BUDGET[method]
    assert results(on_device)["steps"] == 8
    ours, theirs = state(on_device), state(on_cpu)
    if method == "flsl":  # attention on the CPU has a kernel of its own
        for name, weight in theirs.items():
            if isinstance(weight, torch.Tensor):
                torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=1e-4)
        return
    assert_same_state(ours, theirs)
    assert metrics(on_device) == metrics(on_cpu)


@pytest.mark.parametrize("method", RUNS)
def test_one_of_two_processes_sends_nothing_from_the_cpu(method, stop_and_resume):
    folder, waits = stop_and_resume(method, processes=2)
    assert waits == BUDGET[method]
    assert results(folder)["status"] == "finished"
    assert results(folder)["processes"] == 2
    assert all(math.isfinite(value) for value in results(folder)["metrics"].values())
