"""Updates the teachers."""

from lightning.pytorch import Callback, Trainer

from fgssl.nn.teacher import ema_update, snapshot


class TeacherUpdate(Callback):
    """Update every teacher of the method: EMA after each optimiser step, or a copy of the student after each epoch.

    With gradient accumulation an optimiser step covers several batches. The momentum is a function of the step, so the
    checkpoint needs no more than the teacher's weights.
    """

    def on_train_start(self, trainer: Trainer, method) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int) -> None:
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        for student, teacher, every in method.teachers():
            if every == "step" and stepped:
                ema_update(student, teacher, method.teacher_momentum(self._step, method.total_steps()))
            # With the last batch, before the hook of the epoch's end writes a checkpoint of this step.
            if every == "epoch" and trainer.is_last_batch:
                snapshot(student, teacher)
