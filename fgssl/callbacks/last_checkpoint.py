"""Writes ``last.ckpt``."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from fgssl.callbacks.stopping import Stopped, stop_of, stop_requested, stopped
from fgssl.run import shown


class LastCheckpoint(ModelCheckpoint):
    """Write ``last.ckpt`` every few epochs or optimiser steps, at the end, and on SIGTERM and Ctrl-C.

    If one process receives such a signal (``Stopping``), all processes finish the optimiser step, several processes the
    next one too, write the checkpoint and end.

    What is to be written at a step is written after the validation that follows it, so that it knows the best score. A
    run that ends inside an epoch, also by early stopping, ends after an optimiser step and writes it before the epoch
    counts as finished: a run that goes on from the file has done all that an uninterrupted one has, and nothing twice.

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
        self._ends_soon = False  # early stopping or max_time asked for the end between two accumulated batches

    def on_train_start(self, trainer: Trainer, method) -> None:
        super().on_train_start(trainer, method)
        self._stop, self._ends_soon = None, False
        _go_on_between_epochs(trainer)

    def on_train_batch_start(self, trainer: Trainer, method, batch, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, method, batch, batch_idx)
        if self._stop is not None:
            raise self._stop
        # Lightning, going on from a checkpoint that a validation wrote, does not count the step before it.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        method.stop_requested = stop_requested(trainer)

    def on_train_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int) -> None:
        self._put_off_end(trainer)
        if not _validation_follows(trainer):
            self._after_batch(trainer, method)

    def on_validation_end(self, trainer: Trainer, method) -> None:
        if trainer.sanity_checking:
            return
        self._put_off_end(trainer)  # early stopping
        self._after_batch(trainer, method)

    def _put_off_end(self, trainer: Trainer) -> None:
        """Let early stopping and ``max_time`` end the fit after an optimiser step, so that no gradient is lost."""
        if _between_steps(trainer):
            trainer.should_stop |= self._ends_soon
        elif trainer.should_stop:
            self._ends_soon, trainer.should_stop = True, False

    def _after_batch(self, trainer: Trainer, method) -> None:
        """Write what is due after a batch and the validation behind it; on_train_epoch_end does after the last one."""
        if trainer.is_last_batch or not _between_steps(trainer):
            return
        super().on_train_batch_end(trainer, method, None, None, 0)
        if _ends_here(trainer):
            self.save_now(trainer)
        # Several processes agree in the check of each step, which does not wait for the device.
        if method.stop_agreed if trainer.world_size > 1 else stop_requested(trainer):
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


def _between_steps(trainer: Trainer) -> bool:
    """Whether the gradients of all batches so far were applied; those of the last one of an epoch always are."""
    return trainer.is_last_batch or (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0


def _validation_follows(trainer: Trainer) -> bool:
    loop: Any = trainer.fit_loop
    return sum(trainer.num_val_batches) > 0 and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


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
