"""Moves the teachers."""

from lightning.pytorch import Callback, Trainer

from fgssl.nn.teacher import ema_update, snapshot


class TeacherUpdate(Callback):
    """EMA of every (student, teacher) pair of the method, after each optimiser step; or its copy after each epoch.

    Under gradient accumulation that is not each batch. The momentum follows from the step, so that there is nothing
    to save beyond the teacher's weights.
    """

    def on_train_start(self, trainer: Trainer, method) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int) -> None:
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        for student, teacher, every in method.teachers():
            if every == "step" and stepped:
                ema_update(student, teacher, method.teacher_momentum(self._step, method.total_steps()))
            # With the last batch, not in the hook of the epoch's end: a checkpoint of this step has to have it.
            if every == "epoch" and trainer.is_last_batch:
                snapshot(student, teacher)
