"""What every method shares: the optimiser, its schedule, logging, and the three questions of the callbacks.

A method is a subclass that builds its networks in ``__init__`` and writes ``step`` and ``embed``; one with a teacher
names it in ``teachers``, one with a memory fills ``StepResult.enqueue`` and writes ``prefill``.
"""

import importlib
import math
import os
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fgssl.callbacks.collapse import Collapse
from fgssl.callbacks.queue import QueueUpdate
from fgssl.callbacks.teacher import TeacherUpdate
from fgssl.data.batch import Batch
from fgssl.data.datamodule import DataModule
from fgssl.data.draws import seed_of
from fgssl.data.views import Crop
from fgssl.distributed import any_rank
from fgssl.errors import UserError, did_you_mean
from fgssl.nn.feature_map import last_features
from fgssl.nn.memory import Memory
from fgssl.nn.teacher import Pair
from fgssl.optim import Optim, clip_each, cosine, set_weight_decay, warmup_cosine, warmup_linear, warmup_steps

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
        max_skips: steps in a row that may be left out because their loss is not finite; 0 stops the run at the first.
    """

    data_module: type[DataModule] = DataModule
    default_views: dict[str, Any] | None = {"class_path": "PairViews"}  # where the data section names none
    views_needed: tuple[int, int | None] = (1, None)  # fewest and most views an image; None: any number
    evaluates: Literal["student", "teacher"] = "student"  # whose features ``embed`` gives
    embeds = True  # whether evaluation is of the features that ``embed`` gives
    prototypes: int | None = None  # K of a self-distilling method, for the callback Collapse

    def __init__(self, optim: Optim = Optim(), max_skips: int = 0):
        super().__init__()
        self.optim, self.max_skips = optim, max_skips

    # ---- what a method writes -----------------------------------------------------------------------------------

    def step(self, batch: Batch) -> StepResult:
        """The paper's training step."""
        raise NotImplementedError

    def embed(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] images to the [B, F] features that evaluation uses."""
        raise NotImplementedError

    def patch_map(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] images to the [B, F, H', W'] map of patch features of the network that ``embed`` asks."""
        return last_features(self.backbone_of(), images)[1]

    def backbones(self) -> dict[str, nn.Module]:
        """The backbones that fine-tuning, probing, export and pictures can take.

        Returns:
            ``student``, the trained network, and ``teacher``, the network that follows it step by step, where there is
            one. By default the first network with ``forward_features`` (timm's interface) in the first pair of
            ``teachers()``, or in the method. Override it for a method that keeps its networks otherwise.
        """
        followed = [pair for pair in self.teachers() if pair.every == "step"]
        owners = {"student": followed[0].student, "teacher": followed[0].teacher} if followed else {"student": self}
        found = {whose: first_backbone(owner) for whose, owner in owners.items()}
        return {whose: network for whose, network in found.items() if network is not None}

    def backbone_of(self, whose: Literal["student", "teacher"] | None = None) -> Any:
        """The backbone of the student or the teacher; by default the one whose features ``embed`` gives.

        Raises:
            UserError: the method has none.
        """
        whose = whose or self.evaluates
        found = self.backbones()
        if whose not in found:
            raise UserError(f"{type(self).__name__} has no {whose}'s backbone (it has: {', '.join(found) or 'none'}).")
        return found[whose]

    def teachers(self) -> list[Pair]:
        """Students and the teachers that follow them."""
        return []

    def teacher_momentum(self, step: int, total: int) -> float:
        """EMA momentum after optimiser step ``step`` (1-based) of ``total``; of the pairs that move every step."""
        raise NotImplementedError

    def prefill(self, batch: Batch) -> dict[str, Keys]:
        """What ``step`` would enqueue, without training: fills the memories before the first epoch."""
        raise NotImplementedError

    # ---- what Lightning asks ------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list:
        """Callbacks that training needs; a method adds its own to ``super().configure_callbacks()``."""
        own: list[Callback] = [TeacherUpdate(), QueueUpdate()]
        given = self._trainer is not None and any(isinstance(c, Collapse) for c in self.trainer.callbacks)
        return own if self.prototypes is None or given else [*own, Collapse()]

    def check_views(self, crops: list[Crop]) -> None:
        """Refuse training views that ``step`` cannot use, before training.

        Args:
            crops: the views of an image, in the order of ``batch.views``.

        Raises:
            UserError: there are too few or too many.
        """
        fewest, most = self.views_needed
        if len(crops) < fewest or (most is not None and len(crops) > most):
            needed = str(fewest) if fewest == most else f"{fewest} or more" if most is None else f"{fewest} to {most}"
            default = (self.default_views or {}).get("class_path")
            raise UserError(
                f"data.views gives {len(crops)} views of an image, and {type(self).__name__} needs {needed}. Its "
                f"default is {default}: leave data.views out, or choose other views."
            )

    def memories(self) -> dict[str, Memory]:
        """The method's memories by name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Memory)}

    def setup(self, stage: str) -> None:
        # DDP copies rank 0's buffers over the others' before each step. Memories are equal on all ranks already.
        self._ddp_params_and_buffers_to_ignore = [
            f"{name}.{buffer}" for name, memory in self.memories().items() for buffer, _ in memory.named_buffers()
        ]
        datamodule = self.trainer.datamodule
        if stage == "fit" and self.default_views is not None and datamodule is not None:
            self.check_views(datamodule.views.crops)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        result = self.step(batch)
        if any_rank(~torch.isfinite(result.loss.detach()), self.device):  # waits for the device, as DINO's loop does
            self._skip(result, batch, batch_idx)
            return {"loss": self._no_loss(), "enqueue": {}}
        self._skipped, self._has_gradient = 0, True
        size = len(batch.index)
        self.log("train/loss", result.loss, prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": value for name, value in result.parts.items()}, batch_size=size)
        self.log("train/lr", self.optimizers().param_groups[0]["lr"], batch_size=size)
        return {"loss": result.loss, "enqueue": result.enqueue}

    def _skip(self, result: StepResult, batch: Batch, batch_idx: int) -> None:
        """Leave out a step whose loss is not finite, on all ranks together, or stop before it harms the weights."""
        self._skipped += 1
        parts = ", ".join(f"{name} {value.item():.6g}" for name, value in {"loss": result.loss, **result.parts}.items())
        rows = ", ".join(str(row) for row in batch.index[:8].tolist()) + (", ..." if len(batch.index) > 8 else "")
        rank = f", process {self.global_rank}" if self.trainer.world_size > 1 else ""
        what = (
            f"the loss is not finite at step {self.global_step} (epoch {self.current_epoch}, batch {batch_idx}{rank}): "
            f"{parts}. Rows of the data set in the batch: {rows}."
        )
        if self._skipped <= self.max_skips:
            rank_zero_warn(f"{what} Left out, {self._skipped} in a row of at most {self.max_skips}.")
            return
        raise UserError(
            f"{what} The weights and the last checkpoint are from before it. Lower model.optim.lr, or take a "
            "trainer.precision of wider range; --model.max_skips N leaves out up to N such steps in a row."
        )

    def _no_loss(self) -> Tensor:
        """Zero, with a gradient of zero for every weight: with several processes each step needs a backward."""
        return torch.stack([weight.sum() for weight in self.parameters() if weight.requires_grad]).sum() * 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._has_gradient:  # all of its batches were left out: neither weight decay nor momentum may act
            optimizer.zero_grad(set_to_none=True)
        self._has_gradient = False
        if self.optim.weight_decay_end is not None:
            start, end = self.optim.weight_decay, self.optim.weight_decay_end
            set_weight_decay(optimizer, cosine(self.global_step, self.total_steps(), start, end))

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *kind: Any, **options: Any) -> None:
        super().configure_gradient_clipping(optimizer, *kind, **options)
        if self.optim.clip_each is not None:
            clip_each(self.parameters(), self.optim.clip_each)

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
        return (datamodule.batch_size if datamodule is not None else 1) * self.trainer.accumulate_grad_batches

    def lr_factor(self, step: int) -> float:
        """Factor of the peak learning rate at an optimiser step."""
        if step == 0:
            # Without asking for the run's length: that would start the loaders before a checkpoint's position is known.
            return 0.0 if self.optim.warmup else 1.0
        unit = 1 if self.optim.unit == "step" else self.steps_per_epoch()
        warmup = round(self.optim.warmup * unit)
        if self.optim.schedule == "steps":
            milestones = [milestone * unit for milestone in self.optim.milestones]
            return warmup_steps(step, warmup, milestones, self.optim.gamma)
        floor = self.optim.min_lr / self.optim.peak(self.global_batch())
        fall = warmup_linear if self.optim.schedule == "linear" else warmup_cosine
        return fall(step, self.total_steps(), warmup, floor=floor)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optim.build(self, self.global_batch())
        self._group_settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        scheduler = {"scheduler": LambdaLR(optimizer, self.lr_factor), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Dropout and its kind draw from (seed, rank, epoch, batch): nothing to save, and no two ranks alike."""
        torch.manual_seed(seed_of(self._seed, self.global_rank, self.current_epoch, batch_idx))

    def on_train_start(self) -> None:
        """After a checkpoint's optimiser was restored, what the user says now wins: lr, weight decay, momentum."""
        self._skipped, self._has_gradient = 0, False
        self._seed = int(os.environ.get("PL_GLOBAL_SEED", 0))  # seed_everything
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        scheduler.base_lrs = [settings["lr"] for settings in self._group_settings]
        rank_zero_info(self._start_line())
        for group, settings in zip(optimizer.param_groups, self._group_settings, strict=True):
            group.update(settings, initial_lr=settings["lr"], lr=settings["lr"] * self.lr_factor(scheduler.last_epoch))

    def _start_line(self) -> str:
        """What a step is made of, for the reader of a log."""
        trainer, optim = self.trainer, self.optim
        accumulated, processes, batch = trainer.accumulate_grad_batches, trainer.world_size, self.global_batch()
        lr = f"{optim.lr:g}"
        if optim.reference_batch:
            lr = f"{optim.lr:g} x {batch} / {optim.reference_batch} = {optim.peak(batch):g}"
        return (
            f"A step: {batch // processes // accumulated} images x {processes} processes x {accumulated} accumulated = "
            f"{batch}. Learning rate {lr}. Seed {self._seed}: order and crops from it and the image's number, the "
            "same on any number of processes; dropout from it, the process and the batch."
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the method's name, its backbones' places, the batch. Weights that are not finite are no checkpoint."""
        spoilt = [name for name, weight in self.named_parameters() if not torch.isfinite(weight).all()]
        if spoilt:
            raise UserError(
                f"no checkpoint at step {self.global_step}: {spoilt[0]} and {len(spoilt) - 1} other weights are not "
                "finite. The last checkpoint is from before. Lower model.optim.lr, or check trainer.precision."
            )
        checkpoint["method"], checkpoint["evaluates"] = type(self).__name__, self.evaluates
        names = {id(module): name for name, module in self.named_modules(remove_duplicate=False)}
        checkpoint["backbones"] = {whose: f"{names[id(network)]}." for whose, network in self.backbones().items()}
        trainer = self._trainer
        if trainer is not None and trainer.datamodule is not None:
            checkpoint["global_batch"] = {
                "batch_size": trainer.datamodule.batch_size,
                "accumulate_grad_batches": trainer.accumulate_grad_batches,
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume training with another global batch: the schedule counts steps, and their number changes."""
        kept, trainer = checkpoint.get("global_batch"), self._trainer
        if kept is None or trainer is None or trainer.state.fn != TrainerFn.FITTING or trainer.datamodule is None:
            return
        before, now = math.prod(kept.values()), self.global_batch()
        position = checkpoint.get(type(trainer.datamodule).__qualname__, {})
        if before != now:
            reason = f"was trained with {before} images an optimiser step, and this run has {now}"
        elif position.get("batch") and kept["batch_size"] != trainer.datamodule.batch_size:
            reason = f"is from within an epoch, at batch {position['batch']} of {kept['batch_size']} images"
        else:
            return
        options = f"--data.batch_size {kept['batch_size']} --trainer.accumulate_grad_batches"
        raise UserError(
            f"the checkpoint {reason}. Resume with {options} {kept['accumulate_grad_batches']}, on any number of "
            "processes that divides the batch."
        )


def first_backbone(module: nn.Module) -> nn.Module | None:
    """The first network in a module that has timm's interface: ``forward_features`` and ``num_features``."""
    for part in module.modules():
        if hasattr(part, "forward_features") and hasattr(part, "num_features"):
            return part
    return None


def method_class(class_path: str) -> type[Method]:
    """The class of a method or task.

    Args:
        class_path: the short name of a class that is imported already (``MaskCon``), or a dotted path that is imported
            here (``my_package.SimCLR``).

    Raises:
        UserError: there is no such class, or it is no subclass of ``Method``.
    """
    package, _, name = class_path.rpartition(".")
    if package:
        try:
            found = getattr(importlib.import_module(package), name)
        except (ImportError, AttributeError) as fault:
            raise UserError(f"model: '{class_path}' cannot be imported ({fault}).") from fault
        if not (isinstance(found, type) and issubclass(found, Method)):
            raise UserError(f"model: '{class_path}' is not a subclass of fgssl.Method.")
        return found
    known = {cls.__name__: cls for cls in subclasses(Method) if cls.step is not Method.step}  # no mere base
    if name not in known:
        raise UserError(f"model: unknown class '{name}'.{did_you_mean(name, known)} Known: {', '.join(sorted(known))}.")
    return known[name]


def subclasses(cls: type) -> set[type]:
    """All subclasses that are imported, of any depth."""
    direct: set[type] = set(cls.__subclasses__())
    return direct.union(*(subclasses(sub) for sub in direct))
