"""Optimisers and the learning rate's schedule."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


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
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_1d: bool = True
    warmup_epochs: float = 5
    min_lr: float = 0.0
    reference_batch: int | None = None

    def build(self, module: nn.Module, global_batch: int) -> torch.optim.Optimizer:
        """The optimiser over the module's trainable parameters."""
        groups = parameter_groups(module.named_parameters(), self.weight_decay, self.decay_1d)
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


def warmup_cosine(step: int, total: int, warmup: int, floor: float = 0.0) -> float:
    """Factor of the peak learning rate at an optimiser step (0-based).

    Linear from 0 to 1 over ``warmup`` steps, then half a cosine from 1 to ``floor`` at step ``total``.
    """
    if step < warmup:
        return step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
