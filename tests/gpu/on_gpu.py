"""What the tests on a GPU share. The same tests run on the CPU in the suite, so that they do not rot."""

import contextlib
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback
from torch import Tensor

from fgssl.cli.main import main
from fgssl.data.batch import Batch
from fgssl.data.datamodule import DataModule
from tests.methods.runs import arguments, losses

GPUS = torch.cuda.device_count()
ON_GPU = (pytest.mark.gpu, pytest.mark.skipif(GPUS == 0, reason="no CUDA GPU here"))
ON_TWO_GPUS = (pytest.mark.gpu, pytest.mark.ddp, pytest.mark.skipif(GPUS < 2, reason=f"{GPUS} CUDA GPUs here, needs 2"))
DEVICES = [pytest.param("cpu"), pytest.param("cuda", marks=ON_GPU)]
SHORT = ("--trainer.limit_test_batches", "1", "--data.num_workers", "0")


def accelerator(device: str) -> tuple[str, str]:
    """The flag that trains on a device of torch."""
    return ("--trainer.accelerator", "gpu" if device == "cuda" else device)


def fit(method: str, root: Path, name: str, device: str, precision: str, *flags: str) -> Path:
    """Run an entry of RUNS in this process; returns the run folder."""
    options = (*accelerator(device), "--trainer.precision", precision, *SHORT, *flags)
    assert main(arguments(method, root, name, *options)) == 0
    return root / method / name


def loss_values(run: Path) -> list[float]:
    """Loss of every step."""
    return [float(loss) for _, loss in losses(run)]


class SkippedSteps(Callback):
    """Counts the optimiser steps that the gradient scaler of 16-mixed skips; ``count`` is that of the last run."""

    count = 0

    def on_train_start(self, trainer, method) -> None:
        SkippedSteps.count = 0
        self.scale = self._scale(trainer)

    def on_train_batch_end(self, trainer, method, *_) -> None:
        before, self.scale = self.scale, self._scale(trainer)
        SkippedSteps.count += self.scale < before  # it is halved for each skipped step

    def _scale(self, trainer) -> float:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        return math.inf if scaler is None else scaler.get_scale()


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Matrix products and convolutions in float32 without TF32, also where the command line would allow it."""
    set_precision, convolutions = torch.set_float32_matmul_precision, torch.backends.cudnn.allow_tf32
    before = torch.get_float32_matmul_precision()
    set_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision = lambda _: None  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.set_float32_matmul_precision = set_precision
        torch.backends.cudnn.allow_tf32 = convolutions
        set_precision(before)


@contextlib.contextmanager
def views_of_the_cpu() -> Iterator[None]:
    """Augmentation on the CPU, so that networks on two devices see the same images."""
    augmented = DataModule.on_after_batch_transfer

    def on_cpu(self: DataModule, batch: Batch, dataloader_idx: int) -> Batch:
        device = batch.views[0].device
        done = augmented(self, move_data_to_device(batch, "cpu"), dataloader_idx)
        return batch._replace(views=[view.to(device) for view in done.views])

    DataModule.on_after_batch_transfer = on_cpu  # type: ignore[method-assign]
    try:
        yield
    finally:
        DataModule.on_after_batch_transfer = augmented  # type: ignore[method-assign]


class Waits(Callback):
    """Counts the waits of the host for the GPU in the steps 3 to 6 of a run; ``count`` is that of the last run.

    None of these steps is logged: a logged step waits for its figures (``trainer.log_every_n_steps``).
    """

    count = 0
    places: list[str] = []

    def on_train_batch_start(self, trainer, method, batch, batch_idx) -> None:
        trainer.log_every_n_steps = 50  # Monitor lowers it at the start of a short run
        if trainer.global_step == 3:
            self._recorded = warnings.catch_warnings(record=True)
            self._seen = self._recorded.__enter__()
            warnings.simplefilter("always")
            set_sync_debug_mode("warn")
        if trainer.global_step == 7:
            set_sync_debug_mode("default")
            self._recorded.__exit__(None, None, None)
            found = [entry for entry in self._seen if "synchronizing CUDA operation" in str(entry.message)]
            Waits.count = len(found)
            Waits.places = [f"{Path(entry.filename).name}:{entry.lineno}" for entry in found]


def set_sync_debug_mode(mode: str) -> None:
    if GPUS:
        torch.cuda.set_sync_debug_mode(mode)


@contextlib.contextmanager
def nearly_full(device: str, left: int) -> Iterator[None]:
    """All memory of the GPU but ``left`` bytes is taken."""
    if device == "cpu":
        yield
        return
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    taken: Tensor | None = torch.empty(max(0, free - left), dtype=torch.uint8, device=device)
    try:
        yield
    finally:
        del taken
        torch.cuda.empty_cache()
