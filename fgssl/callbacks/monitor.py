"""Logs throughput and the teacher's momentum."""

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from fgssl.callbacks.progress import Throughput

POINTS = 10  # logged steps in an epoch, at least


class Monitor(Callback):
    """Log ``train/teacher_momentum`` after each step; throughput and waiting time after each epoch.

    ``throughput/images_per_second`` counts the images of all processes. ``throughput/waiting_for_data`` is the fraction
    of an epoch that the first process spends in ``next`` of the training loader; the work of the device is no part.
    """

    def __init__(self):
        self.throughput = Throughput()

    def on_fit_start(self, trainer: Trainer, method) -> None:
        rank_zero_info(about(trainer, method))

    def on_train_start(self, trainer: Trainer, method) -> None:
        """Log often enough for a curve of a short run: about ten times an epoch."""
        steps = method.steps_per_epoch() if trainer.max_steps < 0 else min(method.steps_per_epoch(), trainer.max_steps)
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, max(1, steps // POINTS))

    def on_train_epoch_start(self, trainer: Trainer, method) -> None:
        self.throughput.start(waited(trainer))

    def on_train_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int) -> None:
        self.throughput.batch_done(len(batch.index) * trainer.world_size, waited(trainer))
        if trainer.global_step and any(pair.every == "step" for pair in method.teachers()):
            momentum = torch.tensor(method.teacher_momentum(trainer.global_step, method.total_steps()))
            method.log("train/teacher_momentum", momentum, batch_size=len(batch.index))

    def on_train_epoch_end(self, trainer: Trainer, method) -> None:
        images, waiting = self.throughput.images_per_second, self.throughput.waiting
        method.log_dict({"throughput/images_per_second": images, "throughput/waiting_for_data": waiting})


def about(trainer: Trainer, method) -> str:
    """Line about the method, its size and the device."""
    sizes = [(weight.numel(), weight.requires_grad) for weight in method.parameters()]
    every, trained = sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)
    device, processes = trainer.strategy.root_device, trainer.world_size
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    on = f"{processes} processes, {name}" if processes > 1 else name
    return f"{type(method).__name__}: {every:,} parameters, {trained:,} of them trained. Device: {on}."


def waited(trainer: Trainer) -> float:
    """Seconds that the training loader has spent in ``next``; 0 for a loader that does not count them."""
    return getattr(trainer.train_dataloader, "waited", 0.0)
