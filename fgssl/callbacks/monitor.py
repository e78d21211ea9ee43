"""Logs throughput and the teacher's momentum."""

from lightning.pytorch import Callback, Trainer

from fgssl.callbacks.progress import Throughput


class Monitor(Callback):
    """Log ``train/teacher_momentum`` after each step; throughput and waiting time after each epoch.

    ``throughput/images_per_second`` counts the images of all processes. ``throughput/waiting_for_data`` is the fraction
    of an epoch that the first process spends in ``next`` of the training loader; the work of the device is no part.
    """

    def __init__(self):
        self.throughput = Throughput()

    def on_train_epoch_start(self, trainer: Trainer, method) -> None:
        self.throughput.start(waited(trainer))

    def on_train_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int) -> None:
        self.throughput.batch_done(len(batch.index) * trainer.world_size, waited(trainer))
        if trainer.global_step and any(pair.every == "step" for pair in method.teachers()):
            momentum = method.teacher_momentum(trainer.global_step, method.total_steps())
            method.log("train/teacher_momentum", momentum, batch_size=len(batch.index))

    def on_train_epoch_end(self, trainer: Trainer, method) -> None:
        images, waiting = self.throughput.images_per_second, self.throughput.waiting
        method.log_dict({"throughput/images_per_second": images, "throughput/waiting_for_data": waiting})


def waited(trainer: Trainer) -> float:
    """Seconds that the training loader has spent in ``next``; 0 for a loader that does not count them."""
    return getattr(trainer.train_dataloader, "waited", 0.0)
