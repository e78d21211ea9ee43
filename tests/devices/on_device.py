"""Runs of the command line on the stand-in device.

``python -m tests.devices.on_device METHOD [--processes 2]`` runs an entry of ``tests/methods/runs.py``, with the
traceback of an error, and prints where a step waits for the device.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy

from fgssl.cli.main import main
from tests.devices.stand_in import Waits, device, recorded_waits, stand_in
from tests.devices.two_processes import two_processes
from tests.methods.runs import RUNS, arguments


class StandInAccelerator(Accelerator):
    """The stand-in device for Lightning."""

    def setup_device(self, device: torch.device) -> None: ...

    def teardown(self) -> None: ...

    @staticmethod
    def parse_devices(devices: Any) -> int:
        return 1

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [device()]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "standin"


class StandInStrategy(SingleDeviceStrategy):
    """One process on the device, as rank 0 of ``processes``. Gradients are not averaged: the other's are the same."""

    def __init__(self, processes: int):
        super().__init__(device=device(), accelerator=StandInAccelerator())
        self.world_size, self.global_rank, self.local_rank = processes, 0, 0

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        objects = [obj]
        if self.world_size > 1:
            dist.broadcast_object_list(objects, src)
        return objects[0]

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def on_device(processes: int = 1, *callbacks: Callback) -> Iterator[None]:
    """The application's trainer uses the stand-in device, and ``callbacks`` too, within this context."""

    def trainer(**options: Any) -> Trainer:
        options["callbacks"] = [*options["callbacks"], *callbacks]
        return Trainer(**{**options, "accelerator": "auto", "devices": 1, "strategy": StandInStrategy(processes)})

    with ExitStack() as stack:
        stack.enter_context(stand_in())
        stack.enter_context(two_processes() if processes == 2 else nullcontext())
        stack.enter_context(mock.patch("fgssl.cli.application.Trainer", trainer))
        yield


def run(command_line: list[str], processes: int = 1, *callbacks: Callback) -> int:
    """Run a command line on the device; returns its exit status."""
    with on_device(processes, *callbacks):
        return main(command_line)


class TwoSteps(Callback):
    """Records the waits of two steps in the second epoch, from the end of the first to the end of the third.

    Neither is logged: a logged step waits for its figures (``trainer.log_every_n_steps``).
    """

    def __init__(self) -> None:
        self.recording = ExitStack()
        self.waits: Waits = Waits()

    def on_train_start(self, trainer: Trainer, method) -> None:
        trainer.log_every_n_steps = 50  # Monitor lowers it in a short run

    def on_train_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == 0:
            self.waits = self.recording.enter_context(recorded_waits())
        if trainer.current_epoch == 1 and batch_idx == 2:
            self.recording.close()


# Two epochs of four steps, with the progress bar that users see, of batches too large to be copied without waiting
# where they are not pinned.
SHORT = (
    "--trainer.limit_train_batches", "4", "--trainer.enable_progress_bar", "true",
    "--data.num_workers", "0", "--data.batch_size", "32", "--data.protocol.label_fraction", "0.2",
    "--data.eval_batch_size", "225",
)  # fmt: skip


def waits_of_a_step(command_line: list[str], processes: int = 1) -> tuple[int, dict[tuple[str, str], float]]:
    """Run a fit on the device.

    Returns:
        Exit status, and the waits for the device of a step: their mean number, by kind and place.
    """
    steps = TwoSteps()
    status = run(command_line, processes, steps)
    return status, {wait: count / 2 for wait, count in steps.waits.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run a method on the stand-in device; print the waits of a step.")
    parser.add_argument("method", choices=RUNS)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    options = parser.parse_args()
    os.environ["FGSSL_TRACEBACK"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        _, found = waits_of_a_step(arguments(options.method, Path(folder), "run", *SHORT), options.processes)
    for (kind, place), count in sorted(found.items(), key=lambda item: -item[1]):
        print(f"{count:6.2f} a step  {kind}  {place}")
