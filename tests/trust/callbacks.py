"""Misfortunes, to be named on a command line: ``--trainer.callbacks+=tests.trust.callbacks.KillAt``."""

import os
import shutil
import signal
from pathlib import Path

import torch
from lightning.pytorch import Callback

from fgssl.callbacks import queue


class KillAt(Callback):
    """Sends a signal to this process after a batch (counted from 0 over the run), on one rank."""

    def __init__(self, batch: int, number: int = int(signal.SIGKILL), rank: int = 0):
        self.batch, self.number, self.rank = batch, number, rank

    def on_train_batch_end(self, trainer, method, outputs, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == self.batch and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.number)


class StopInValidation(Callback):
    """Sends SIGTERM to this process in the validation after a step (counted from 1)."""

    def __init__(self, step: int):
        self.step = step

    def on_validation_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class EndAt(Callback):
    """Ends the fit after a step (counted from 1), as ``trainer.max_time`` does."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step == self.step


class EndAfter(Callback):
    """Ends the fit after a batch (counted from 0 over the run), as ``trainer.max_time`` does."""

    def __init__(self, batch: int):
        self.batch = batch

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop |= trainer.fit_loop.total_batch_idx == self.batch


class FailBefore(Callback):
    """Raises an error before a batch (counted from 0 over the run)."""

    def __init__(self, batch: int):
        self.batch = batch

    def on_train_batch_start(self, trainer, *_):
        if trainer.fit_loop.total_batch_idx == self.batch:
            raise RuntimeError(f"before batch {self.batch}")


class FailInValidation(Callback):
    """Raises an error in the validation after a step (counted from 1)."""

    def __init__(self, step: int):
        self.step = step

    def on_validation_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise RuntimeError(f"in the validation after step {self.step}")


class FailAt(Callback):
    """Raises an error after the sixth step."""

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 6:
            raise RuntimeError("at step 6")


class CtrlC(Callback):
    """Sends SIGINT to all processes of this terminal's group after some batches (counted from 0 over the run)."""

    def __init__(self, batches: list[int]):
        self.batches = batches

    def on_train_batch_end(self, trainer, method, outputs, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx in self.batches and trainer.is_global_zero:
            os.killpg(os.getpgid(0), signal.SIGINT)


class CtrlCTwice(Callback):
    """Presses Ctrl-C twice within a step."""

    def on_train_batch_start(self, *_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


class CtrlCAtTest(Callback):
    """Presses Ctrl-C in the evaluation after the training."""

    def on_test_batch_end(self, *_):
        os.kill(os.getpid(), signal.SIGINT)


class StopFirst(Callback):
    """Sends SIGTERM once to a run that the variable STOP_RUN names, after its third batch."""

    def on_train_batch_end(self, trainer, method, outputs, batch, batch_idx):
        folder = Path(trainer.loggers[0].log_dir)
        if folder.name == os.environ["STOP_RUN"] and trainer.global_step == 3 and not (folder / "stopped").exists():
            (folder / "stopped").touch()
            os.kill(os.getpid(), signal.SIGTERM)


class SpoilInput(Callback):
    """Puts a NaN into the images of some batches, on one rank."""

    def __init__(self, batches: list[int], rank: int = 0):
        self.batches, self.rank = batches, rank

    def on_train_batch_start(self, trainer, method, batch, batch_idx):
        if batch_idx in self.batches and trainer.global_rank == self.rank:
            batch.views[0][0] = torch.nan


class SpoilWeights(Callback):
    """Puts a NaN into a weight after the last batch of an epoch, before a checkpoint is written."""

    def on_train_batch_end(self, trainer, method, outputs, batch, batch_idx):
        if trainer.is_last_batch and trainer.current_epoch == 1:
            with torch.no_grad():
                next(method.parameters()).view(-1)[0] = torch.nan


class SpoilMemory(Callback):
    """Changes one bit of rank 1's memory, and has the memories compared in every second step."""

    def on_fit_start(self, trainer, method):
        queue.CHECK_EVERY = 2

    def on_train_batch_end(self, trainer, method, outputs, batch, batch_idx):
        if batch_idx == 0 and trainer.global_rank == 1:
            method.memory.labels_K[40] ^= 1


class KillWorker(Callback):
    """Kills a data-loader process."""

    def on_train_batch_end(self, trainer, method, outputs, batch, batch_idx):
        if batch_idx == 2:
            workers = trainer.fit_loop._combined_loader.flattened[0].loader._iterator._workers
            os.kill(workers[0].pid, signal.SIGKILL)
            os.waitid(os.P_PID, workers[0].pid, os.WEXITED | os.WNOWAIT)  # dead, and its status still there to read


class GpuFull(Callback):
    """Raises torch's error for a full GPU."""

    def on_train_batch_start(self, trainer, method, batch, batch_idx):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Touch(Callback):
    """Writes a file when training has begun."""

    def __init__(self, path: str):
        self.path = path

    def on_train_batch_end(self, *_):
        Path(self.path).touch()


class Settings(Callback):
    """Keeps how the networks of a run, and cuDNN, are set."""

    seen: dict[str, object] = {}

    def on_train_batch_end(self, trainer, method, outputs, batch, batch_idx):
        network = method.backbone_of("teacher" if method.teachers() else "student")
        first = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
        Settings.seen = {
            "network": type(network).__name__,
            "channels_last": first.weight.is_contiguous(memory_format=torch.channels_last),
            "benchmark": torch.backends.cudnn.benchmark,
        }


class Keep(Callback):
    """Copies the checkpoint of a step (counted from 1), which the run writes, to ``path``."""

    def __init__(self, step: int, path: str):
        self.step, self.path = step, path

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            shutil.copy(Path(trainer.loggers[0].log_dir) / "checkpoints" / "last.ckpt", self.path)
