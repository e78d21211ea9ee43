"""Optimisers and the learning rate's schedule."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from fgssl.errors import UserError, at_least


@dataclass(frozen=True)
class Group:
    """What some parameters have of their own.

    Args:
        of: which: those whose names begin so.
        lr: their learning rate, taken as it is; the schedule acts on it too.
        weight_decay: theirs.
    """

    of: str
    lr: float
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Optim:
    """The optimiser and its schedule: linear warm-up from 0, then cosine to ``min_lr``, by optimiser step.

    Args:
        name: which optimiser.
        lr: peak learning rate; with ``reference_batch`` that of this batch.
        momentum: of SGD.
        weight_decay: on every parameter, or not on biases and 1-D ones (``decay_1d: false``).
        decay_1d: whether biases and normalisation parameters decay too.
        warmup_epochs: length of the warm-up.
        min_lr: where the cosine ends.
        reference_batch: scale ``lr`` by (global batch / this); null takes ``lr`` as it is.
        schedule: what follows the warm-up: ``cosine``, or ``steps``: constant, times ``gamma`` at each milestone.
        milestones: epochs, of ``steps``.
        gamma: of ``steps``.
        groups: parameters with settings of their own, such as ``[{of: dml_loss.beta, lr: 5e-4}]``.
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_1d: bool = True
    warmup_epochs: float = 5
    min_lr: float = 0.0
    reference_batch: int | None = None
    schedule: Literal["cosine", "steps"] = "cosine"
    milestones: list[int] = field(default_factory=list)
    gamma: float = 0.3
    groups: list[Group] = field(default_factory=list)

    def __post_init__(self):
        at_least(0, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay, min_lr=self.min_lr)
        at_least(0, warmup_epochs=self.warmup_epochs)
        if self.lr == 0:
            raise UserError("lr is 0: nothing would be learnt.")
        if self.reference_batch is not None:
            at_least(1, reference_batch=self.reference_batch)

    def build(self, module: nn.Module, global_batch: int) -> torch.optim.Optimizer:
        """The optimiser over the module's trainable parameters."""
        own, rest = own_groups(module.named_parameters(), self.groups)
        groups = parameter_groups(rest, self.weight_decay, self.decay_1d) + own
        lr = self.lr * global_batch / self.reference_batch if self.reference_batch else self.lr
        if self.name == "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=self.momentum)
        return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.name](groups, lr=lr)


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float, decay_1d: bool = True
) -> list[dict]:
    """Trainable parameters as optimiser groups: those that decay and, unless ``decay_1d``, the 1-D ones that do not."""
    trainable = [p for _, p in named_parameters if p.requires_grad]
    decayed = [p for p in trainable if decay_1d or p.ndim > 1]
    rest = [p for p in trainable if not decay_1d and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def own_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], groups: Sequence[Group]
) -> tuple[list[dict], list[tuple[str, nn.Parameter]]]:
    """Optimiser groups of the parameters that have settings of their own; and the parameters that are left.

    Raises:
        UserError: no trainable parameter's name begins so.
    """
    rest = [(name, p) for name, p in named_parameters if p.requires_grad]
    own = []
    for group in groups:
        params = [p for name, p in rest if name.startswith(group.of)]
        if not params:
            raise UserError(f"model.optim.groups: no trainable parameter of the model is named '{group.of}...'.")
        own.append({"params": params, "lr": group.lr, "weight_decay": group.weight_decay})
        rest = [(name, p) for name, p in rest if not name.startswith(group.of)]
    return own, rest


def warmup_steps(step: int, warmup: int, milestones: Sequence[int], gamma: float) -> float:
    """Factor of the peak learning rate: linear from 0 to 1 over ``warmup`` steps, then times gamma at each milestone.

    ``step`` and ``milestones`` are optimiser steps, 0-based.
    """
    if step < warmup:
        return step / warmup
    return gamma ** sum(step >= milestone for milestone in milestones)


def warmup_cosine(step: int, total: int, warmup: int, floor: float = 0.0) -> float:
    """Factor of the peak learning rate at an optimiser step (0-based).

    Linear from 0 to 1 over ``warmup`` steps, then half a cosine from 1 to ``floor`` at step ``total``.
    """
    if step < warmup:
        return step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
