"""Writes ``last.ckpt``."""

import signal
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from fgssl.distributed import any_rank


class LastCheckpoint(ModelCheckpoint):
    """Write ``last.ckpt`` every few epochs or optimiser steps, at the end, and on SIGTERM.

    Clusters send SIGTERM before they stop a job. If one process receives it, all processes finish the optimiser step,
    or the next one, write the checkpoint and end.

    Args:
        folder: Folder of the checkpoint.
        every_n_epochs: Epochs between two checkpoints.
        every_n_train_steps: Optimiser steps between two checkpoints; replaces ``every_n_epochs``.
    """

    def __init__(self, folder: Path, every_n_epochs: int = 1, every_n_train_steps: int | None = None):
        super().__init__(
            folder,
            filename="last",
            every_n_train_steps=every_n_train_steps,
            every_n_epochs=None if every_n_train_steps else every_n_epochs,
            enable_version_counter=False,
            save_on_train_epoch_end=True if not every_n_train_steps else None,
        )
        self.path = Path(folder) / "last.ckpt"
        self._terminated = self._ending = False  # this process received SIGTERM; all processes are about to end
        self._previous: Any = None  # SIGTERM's handler outside of training

    def on_train_start(self, trainer: Trainer, method) -> None:
        super().on_train_start(trainer, method)
        self._terminated = self._ending = False
        if threading.current_thread() is threading.main_thread():  # Python sets handlers in the main thread only
            # Replaces Lightning's handler, which calls a collective inside the signal handler.
            self._previous = signal.signal(signal.SIGTERM, self._note_signal)
            # Before each batch Lightning asks all processes for a SIGTERM, and waits for their devices to answer.
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None

    def _note_signal(self, *_) -> None:
        self._terminated = True

    def on_train_batch_start(self, trainer: Trainer, method, batch, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, method, batch, batch_idx)
        if self._ending:  # here, after the metrics of the last step have been logged
            raise SIGTERMException
        method.stop_requested = self._terminated

    def on_train_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, method, outputs, batch, batch_idx)
        between_steps = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not trainer.is_last_batch
        # Several processes agree in the step's own check, which does not wait for the device, from the next step on.
        asked = method.stop_agreed if trainer.world_size > 1 else self._terminated
        if between_steps and asked:
            self._end(trainer)

    def on_train_epoch_end(self, trainer: Trainer, method) -> None:
        super().on_train_epoch_end(trainer, method)
        if any_rank(self._terminated, method.device):
            self._end(trainer)

    def _end(self, trainer: Trainer) -> None:
        self._ending = True
        self.save_now(trainer)

    def on_train_end(self, trainer: Trainer, method) -> None:
        super().on_train_end(trainer, method)
        self.save_now(trainer)
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
        if self._ending:
            raise SIGTERMException

    def save_now(self, trainer: Trainer) -> None:
        """Write ``last.ckpt`` unless it already holds this step."""
        if self._last_global_step_saved != trainer.global_step:
            self._save_checkpoint(trainer, str(self.path))
            rank_zero_info(f"{self.path}: written at step {trainer.global_step}")
