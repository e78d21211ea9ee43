"""Logs throughput and the teacher's momentum."""

import torch
from lightning.pytorch import Callback, Trainer

from fgssl.callbacks.progress import Throughput


class Monitor(Callback):
    """Log ``train/teacher_momentum`` after each step; throughput and waiting time after each epoch.

    ``throughput/images_per_second`` counts the images of all processes. ``throughput/waiting_for_data`` is the fraction
    of an epoch between the end of a step and the arrival of the next batch.
    """

    def __init__(self):
        self.throughput = Throughput()

    def on_train_epoch_start(self, trainer: Trainer, method) -> None:
        self.throughput.start()

    def on_train_batch_start(self, trainer: Trainer, method, batch, batch_idx: int) -> None:
        self.throughput.batch_arrived()

    def on_train_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int) -> None:
        self.throughput.batch_done(len(batch.index) * trainer.world_size)
        if trainer.global_step and any(pair.every == "step" for pair in method.teachers()):
            momentum = torch.tensor(method.teacher_momentum(trainer.global_step, method.total_steps()))
            method.log("train/teacher_momentum", momentum, batch_size=len(batch.index))

    def on_train_epoch_end(self, trainer: Trainer, method) -> None:
        images, waiting = self.throughput.images_per_second, self.throughput.waiting
        method.log_dict({"throughput/images_per_second": images, "throughput/waiting_for_data": waiting})
