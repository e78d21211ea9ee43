"""Writes ``last.ckpt``."""

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from fgssl.callbacks.stopping import Stopped, stop_of, stop_requested, stopped
from fgssl.run import shown


class LastCheckpoint(ModelCheckpoint):
    """Write ``last.ckpt`` every few epochs or optimiser steps, at the end, and on SIGTERM and Ctrl-C.

    If one process receives such a signal (``Stopping``), all processes finish the optimiser step, several processes the
    next one too, write the checkpoint and end.

    What is to be written at the last step of an epoch is written after the validation that follows, and a run that ends
    inside an epoch writes its last step there, before the epoch counts as finished: a run that goes on from the file
    has done all that an uninterrupted one has, and nothing twice.

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
        self._stop: Stopped | None = None  # raised once the metrics of the last step have been logged

    def on_train_start(self, trainer: Trainer, method) -> None:
        super().on_train_start(trainer, method)
        self._stop = None
        _go_on_between_epochs(trainer)

    def on_train_batch_start(self, trainer: Trainer, method, batch, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, method, batch, batch_idx)
        if self._stop is not None:
            raise self._stop
        method.stop_requested = stop_requested(trainer)

    def on_train_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int) -> None:
        if trainer.is_last_batch:  # on_train_epoch_end writes
            return
        super().on_train_batch_end(trainer, method, outputs, batch, batch_idx)
        between_steps = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if between_steps and _ends_here(trainer):
            self.save_now(trainer)
        # Several processes agree in the check of each step, which does not wait for the device.
        asked = method.stop_agreed if trainer.world_size > 1 else stop_requested(trainer)
        if between_steps and asked:
            self._end(trainer, stopped(trainer))

    def on_train_epoch_end(self, trainer: Trainer, method) -> None:
        super().on_train_epoch_end(trainer, method)
        super().on_train_batch_end(trainer, method, None, None, 0)  # what is due by number of steps
        stop = stop_of(trainer, method.device)
        if stop is not None:
            self._end(trainer, stop)

    def _end(self, trainer: Trainer, stop: Stopped) -> None:
        self._stop = stop
        self.save_now(trainer)

    def on_train_end(self, trainer: Trainer, method) -> None:
        super().on_train_end(trainer, method)
        self.save_now(trainer)
        self._stop = self._stop or stop_of(trainer, method.device)  # asked for during the last validation
        if self._stop is not None:
            raise self._stop

    def save_now(self, trainer: Trainer) -> None:
        """Write ``last.ckpt`` unless it already holds this step."""
        if self._last_global_step_saved != trainer.global_step:
            self._save_checkpoint(trainer, str(self.path))
            rank_zero_info(f"{shown(self.path)}: written at step {trainer.global_step}")


def _ends_here(trainer: Trainer) -> bool:
    """Whether the fit ends with this step: at ``max_steps``, or at ``max_time``."""
    return trainer.global_step == trainer.max_steps or (trainer.should_stop and trainer.fit_loop._can_stop_early)


def _go_on_between_epochs(trainer: Trainer) -> None:
    """Begin the next epoch where a checkpoint was written between two.

    With ``max_steps`` Lightning takes such a run to be at the end of the epoch before, repeats that end, and so counts
    the next epoch as done without having seen it.
    """
    loop = trainer.fit_loop
    current, total = loop.epoch_progress.current, loop.epoch_progress.total
    if current.ready != current.processed:  # inside an epoch
        return
    current.completed, total.completed = current.processed, total.processed
    loop._restarting = False
    loop.reset_restart_stage()
    if not loop.epoch_loop.restarted_on_train_batch_end:  # else it has to count the last batch of the epoch before
        loop.epoch_loop.restarting = False
