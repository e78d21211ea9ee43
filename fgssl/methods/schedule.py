"""Optimiser and learning-rate schedule of a method, as its ``Optim`` sets them."""

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim.lr_scheduler import LambdaLR

from fgssl.errors import UserError
from fgssl.optim import Optim, clip_each, cosine, set_weight_decay, warmup_cosine, warmup_linear, warmup_steps


class Scheduled(LightningModule):
    """LightningModule with one optimiser, whose learning rate and weight decay follow a schedule by optimiser step.

    Args:
        optim: optimiser, learning rate and schedule.

    A subclass with a schedule of its own overrides ``lr_factor``; one with an optimiser of its own overrides
    ``configure_optimizers``, as in Lightning, and ``optim`` then has no effect.
    """

    _group_settings: list[dict[str, Any]] | None = None  # None: the optimiser is a subclass's own

    def __init__(self, optim: Optim):
        super().__init__()
        self.optim = optim

    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)

    def total_steps(self) -> float:
        """Optimiser steps of the run, the fewer of ``max_epochs`` and ``max_steps``; infinite without both."""
        epochs, steps = self.trainer.max_epochs, self.trainer.max_steps
        by_epochs = epochs * self.steps_per_epoch() if epochs > 0 else math.inf
        return min(by_epochs, steps if steps > 0 else math.inf)

    def follows_length(self) -> list[str]:
        """What changes until the end of the run, and so needs its number of steps; a subclass adds its own."""
        follows = []
        if self.optim.schedule != "steps" and self.optim.length is None:
            follows.append("the learning rate (unless model.optim.length is given)")
        if self.optim.weight_decay_end is not None:
            follows.append("the weight decay (model.optim.weight_decay_end)")
        return follows

    def global_batch(self) -> int:
        """Images per optimiser step, over all processes and accumulated batches."""
        datamodule = self.trainer.datamodule
        return (datamodule.batch_size if datamodule is not None else 1) * self.trainer.accumulate_grad_batches

    def lr_factor(self, step: int) -> float:
        """Learning rate at an optimiser step (from 0), relative to its peak."""
        if step == 0:
            # total_steps() would start the loaders before the position of a checkpoint is restored.
            return 0.0 if self.optim.warmup else 1.0
        unit = 1 if self.optim.unit == "step" else self.steps_per_epoch()
        warmup = round(self.optim.warmup * unit)
        if self.optim.schedule == "steps":
            milestones = [milestone * unit for milestone in self.optim.milestones]
            return warmup_steps(step, warmup, milestones, self.optim.gamma)
        floor = self.optim.min_lr / self.optim.peak(self.global_batch())
        total = self.total_steps() if self.optim.length is None else round(self.optim.length * unit)
        if self.optim.schedule == "linear":
            return warmup_linear(step, total, warmup, floor=floor, power=self.optim.power)
        return warmup_cosine(step, total, warmup, floor=floor)

    def lr_factors(self, settings: list[dict[str, Any]]) -> list[Callable[[int], float]]:
        """``lr_factor`` for each parameter group; 1 at every step for those with a constant learning rate."""
        return [_one if group.get("constant") else self.lr_factor for group in settings]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optim.build(self, self.global_batch())
        self._group_settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        scheduler = {"scheduler": LambdaLR(optimizer, self.lr_factors(self._group_settings)), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *kind: Any, **options: Any) -> None:
        super().configure_gradient_clipping(optimizer, *kind, **options)
        if self.optim.clip_each is not None:
            clip_each(self.parameters(), self.optim.clip_each)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self._check_length()

    def _check_length(self) -> None:
        """Refuse a run of unknown length, such as one of ``max_time`` alone, where something depends on the length.

        Raises:
            UserError: says what does.
        """
        unknown = self.trainer.max_epochs < 0 and self.trainer.max_steps < 0
        if unknown and (follows := self.follows_length()):
            raise UserError(
                f"trainer.max_epochs and trainer.max_steps are both -1, but the length of the run sets "
                f"{', '.join(follows)} of {type(self).__name__}. Set one of the two; trainer.max_time may still end "
                "the run earlier."
            )

    def on_train_start(self) -> None:
        """Apply the configured learning rate, weight decay and momentum, also after a checkpoint was restored."""
        if self._group_settings is None:
            return
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        scheduler.base_lrs = [settings["lr"] for settings in self._group_settings]
        restored = zip(optimizer.param_groups, self._group_settings, self.lr_factors(self._group_settings), strict=True)
        for group, settings, factor in restored:
            group.update(settings, initial_lr=settings["lr"], lr=settings["lr"] * factor(scheduler.last_epoch))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.optim.weight_decay_end is not None:
            start, end = self.optim.weight_decay, self.optim.weight_decay_end
            set_weight_decay(optimizer, cosine(self.global_step, self.total_steps(), start, end))


def _one(step: int) -> float:
    return 1.0
