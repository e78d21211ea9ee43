"""Training on a GPU: every precision, against the CPU, without waits, resumed bit for bit."""

import math
import warnings

import pytest
import torch

from tests.gpu.on_gpu import (
    ON_GPU,
    SkippedSteps,
    Waits,
    accelerator,
    exact_float32,
    fit,
    loss_values,
    views_of_the_cpu,
)
from tests.methods.runs import RUNS, state
from tests.trust.test_interruption import assert_killed_equals_whole

pytestmark = pytest.mark.slow

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
FIVE = ("--trainer.max_steps", "5", "--trainer.max_epochs", "1")
FIRST = ("--trainer.max_steps", "1", "--trainer.max_epochs", "1")


def on_gpu(*values):
    return pytest.param(*values, "cuda", marks=ON_GPU)


# The features of a narrow head are short. The gradients of their unit length are thousands, and the scaler of float16
# needs many steps to find its scale. The heads of the papers have 2,048.
WIDE = {"cmd": ("--model.hidden", "1024", "--model.bottleneck", "64"), "flsl": ("--model.hidden", "1024")}
# CUDA draws other numbers than the CPU from one seed.
NOT_DRAWN = {"obd_sd": ("--model.miner", "TripletMarginMiner")}
EVERY_RUN = [on_gpu(method, precision) for method in RUNS for precision in PRECISIONS]


@pytest.mark.parametrize(
    ("method", "precision", "device"), [("maskcon", "bf16-mixed", "cpu"), ("cmd", "bf16-mixed", "cpu"), *EVERY_RUN]
)
def test_every_loss_is_finite_and_fewer_than_ten_steps_are_skipped(method, precision, device, tmp_path):
    skips = ("--trainer.callbacks", "tests.gpu.on_gpu.SkippedSteps", "--model.max_skips", "0")
    skips += WIDE.get(method, ()) if precision == "16-mixed" or device == "cpu" else ()
    SkippedSteps.count = 10
    run = fit(method, tmp_path, "run", device, precision, *skips)
    assert len(loss_values(run)) == 16
    assert all(math.isfinite(loss) for loss in loss_values(run))
    assert SkippedSteps.count < 10


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("64-true", 1e-6), ("32-true", 1e-4)], ids=["float64", "float32 without TF32"]
)
@pytest.mark.parametrize(
    ("method", "device"), [("maskcon", "cpu"), ("obd_sd", "cpu"), *(on_gpu(method) for method in RUNS)]
)
def test_five_steps_are_those_of_the_cpu(method, device, precision, tolerance, tmp_path):
    with exact_float32(), views_of_the_cpu():
        flags = (*FIVE, *NOT_DRAWN.get(method, ()))
        ours = fit(method, tmp_path, "ours", device, precision, *flags)
        theirs = fit(method, tmp_path, "cpu", "cpu", precision, *flags)
    assert len(loss_values(ours)) == 5
    assert loss_values(ours) == pytest.approx(loss_values(theirs), rel=tolerance, abs=tolerance)
    if precision == "64-true":
        for name, value in state(theirs).items():
            if isinstance(value, torch.Tensor):
                mine = state(ours)[name].cpu()
                torch.testing.assert_close(mine, value, rtol=1e-6, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


HALF = {"bf16-mixed": 2e-2, "16-mixed": 5e-3}
HALVES = [on_gpu(method, precision) for method in RUNS for precision in HALF]


@pytest.mark.parametrize(("method", "precision", "device"), [("cmd", "bf16-mixed", "cpu"), *HALVES])
def test_first_loss_in_half_precision_is_near_that_in_float32(method, precision, device, tmp_path):
    with views_of_the_cpu():
        half = fit(method, tmp_path, "half", device, precision, *FIRST)
        full = fit(method, tmp_path, "full", device, "32-true", *FIRST)
    assert loss_values(half) == pytest.approx(loss_values(full), rel=HALF[precision])


@pytest.mark.parametrize(("method", "device"), [("maskcon", "cpu"), *(on_gpu(method) for method in RUNS)])
def test_a_step_waits_for_the_gpu_at_most_once(method, device, tmp_path):
    Waits.count = 100
    fit(method, tmp_path, "run", device, "32-true", "--trainer.callbacks", "tests.gpu.on_gpu.Waits")
    assert Waits.count <= 4, Waits.places  # of four steps


def test_waits_are_counted(monkeypatch):
    """By the warning that torch gives for each."""

    class FourSteps:
        global_step = 0

    trainer, waits = FourSteps(), Waits()
    for trainer.global_step in range(9):
        waits.on_train_batch_start(trainer, None, None, 0)
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1) if 3 <= trainer.global_step < 7 else None
        warnings.filterwarnings("ignore", message="unrelated")
    assert Waits.count == 4
    assert {place.split(":")[0] for place in Waits.places} == {"test_gpu_training.py"}


@pytest.mark.parametrize(("method", "device"), [on_gpu(method) for method in ("maskcon", "cmd", "flsl")])
def test_compiled_networks_train_as_the_plain_ones(method, device, tmp_path):
    with exact_float32(), views_of_the_cpu():
        plain = fit(method, tmp_path, "plain", device, "32-true", *FIVE)
        compiled = fit(method, tmp_path, "compiled", device, "32-true", *FIVE, "--trainer.compile", "true")
    assert loss_values(compiled) == pytest.approx(loss_values(plain), rel=1e-3)


@pytest.mark.parametrize(("method", "device"), [on_gpu(method) for method in RUNS])
def test_resumed_run_is_bit_equal_on_the_same_gpu(method, device, tmp_path):
    flags = (*accelerator(device), "--trainer.deterministic", "warn")
    assert_killed_equals_whole(method, tmp_path, *flags, CUBLAS_WORKSPACE_CONFIG=":4096:8")
