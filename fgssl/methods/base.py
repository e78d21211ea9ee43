"""What every method shares: the optimiser, its schedule, logging, and the three questions of the callbacks.

A method is a subclass that builds its networks in ``__init__`` and writes ``step`` and ``embed``; one with a teacher
names it in ``teachers``, one with a memory fills ``StepResult.enqueue`` and writes ``prefill``.
"""

import math
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from fgssl.callbacks.queue import QueueUpdate
from fgssl.callbacks.teacher import TeacherUpdate
from fgssl.data.batch import Batch
from fgssl.nn.memory import Memory
from fgssl.nn.teacher import Pair
from fgssl.optim import Optim, warmup_cosine

Keys = tuple[Tensor, Tensor, Tensor]  # keys [B, D], labels [B], data-set rows [B]


class StepResult(NamedTuple):
    """What one training step gives.

    Attributes:
        loss: scalar to minimise.
        parts: named terms of the loss and other scalars to log.
        enqueue: name of a Memory of the method -> what enters it after the optimiser step.
    """

    loss: Tensor
    parts: dict[str, Tensor] = {}
    enqueue: dict[str, Keys] = {}


class Method(LightningModule):
    """Base of the methods.

    Args:
        optim: optimiser, learning rate and schedule.
    """

    def __init__(self, optim: Optim = Optim()):
        super().__init__()
        self.optim = optim

    # ---- what a method writes -----------------------------------------------------------------------------------

    def step(self, batch: Batch) -> StepResult:
        """The paper's training step."""
        raise NotImplementedError

    def embed(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] images to the [B, F] features that evaluation uses."""
        raise NotImplementedError

    def teachers(self) -> list[Pair]:
        """Students and the teachers that follow them."""
        return []

    def teacher_momentum(self, step: int, total: int) -> float:
        """EMA momentum after optimiser step ``step`` (1-based) of ``total``."""
        raise NotImplementedError

    def prefill(self, batch: Batch) -> dict[str, Keys]:
        """What ``step`` would enqueue, without training: fills the memories before the first epoch."""
        raise NotImplementedError

    # ---- what Lightning asks ------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list:
        return [TeacherUpdate(), QueueUpdate()]

    def memories(self) -> dict[str, Memory]:
        """The method's memories by name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Memory)}

    def setup(self, stage: str) -> None:
        # DDP copies rank 0's buffers over the others' before each step. Memories are equal on all ranks already.
        self._ddp_params_and_buffers_to_ignore = [
            f"{name}.{buffer}" for name, memory in self.memories().items() for buffer, _ in memory.named_buffers()
        ]

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        result = self.step(batch)
        size = len(batch.index)
        self.log("train/loss", result.loss, prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": value for name, value in result.parts.items()}, batch_size=size)
        self.log("train/lr", self.optimizers().param_groups[0]["lr"], batch_size=size)
        return {"loss": result.loss, "enqueue": result.enqueue}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return {"embedding": self.embed(batch.views[0]), "fine": batch.fine, "index": batch.index}

    test_step = validation_step
    predict_step = validation_step

    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)

    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        if self.trainer.max_steps > 0:
            return self.trainer.max_steps
        return self.trainer.max_epochs * self.steps_per_epoch()

    def global_batch(self) -> int:
        """Images that one optimiser step sees, over all processes and accumulated batches."""
        datamodule = self.trainer.datamodule
        per_process = datamodule.batch_size if datamodule is not None else 1
        return per_process * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def lr_factor(self, step: int) -> float:
        """Factor of the peak learning rate at an optimiser step."""
        if step == 0:
            # Without asking for the run's length: that would start the loaders before a checkpoint's position is known.
            return 0.0 if self.optim.warmup_epochs else 1.0
        warmup = round(self.optim.warmup_epochs * self.steps_per_epoch())
        return warmup_cosine(step, self.total_steps(), warmup, floor=self.optim.min_lr / self.optim.lr)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optim.build(self, self.global_batch())
        self._group_settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        scheduler = {"scheduler": LambdaLR(optimizer, self.lr_factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_train_start(self) -> None:
        """After a checkpoint's optimiser was restored, what the user says now wins: lr, weight decay, momentum."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        scheduler.base_lrs = [settings["lr"] for settings in self._group_settings]
        for group, settings in zip(optimizer.param_groups, self._group_settings, strict=True):
            group.update(settings, initial_lr=settings["lr"], lr=settings["lr"] * self.lr_factor(scheduler.last_epoch))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["method"] = type(self).__name__
