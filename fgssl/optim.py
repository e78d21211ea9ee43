"""Optimisers and learning-rate schedules."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from fgssl.errors import UserError, above, at_least, did_you_mean


@dataclass(frozen=True)
class Group:
    """Optimiser settings for one parameter group.

    Args:
        of: common prefix of the names of the parameters, such as ``dml_loss.beta``.
        lr: peak learning rate, not scaled by the batch size; follows the schedule.
        weight_decay: weight decay.
    """

    of: str
    lr: float
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Optim:
    """Optimiser and learning-rate schedule: linear warm-up from 0, then a decay, by optimiser step.

    Args:
        name: name of the optimiser: ``sgd`` (without Nesterov momentum), ``adam``, ``adamw``, or another name of timm's
            ``list_optimizers()``, such as ``lars`` or ``lamb``.
        lr: peak learning rate, above 0; for a global batch of ``reference_batch`` images if that is set.
        momentum: momentum of SGD, LARS and other optimisers that have one.
        betas: decay rates of Adam's and AdamW's two moving averages (MAE: 0.9 and 0.95); null: those of the
            optimiser, 0.9 and 0.999 for most.
        eps: term added to the denominator of Adam's and AdamW's step, above 0 (ProxyNCA++: 1.0, SoftTriple: 0.01);
            null: that of the optimiser, 1e-8 for most.
        weight_decay: weight decay, 0 or more.
        weight_decay_end: weight decay at the end of the run, after half a cosine (DINO: 0.04 to 0.4); null: constant.
        decay_1d: apply weight decay to biases and normalisation parameters too. ``lars`` does not scale the steps of
            parameters without weight decay.
        lr_1d: peak learning rate of biases and normalisation parameters, scaled as ``lr``; null: ``lr``. Barlow Twins'
            code has 0.0048 beside 0.2.
        warmup: length of the warm-up, in ``unit``.
        min_lr: learning rate at the end of the ``cosine`` or ``linear`` schedule.
        reference_batch: multiply ``lr`` by (global batch / reference_batch); null: use ``lr`` unchanged.
        schedule: decay after the warm-up. ``cosine``: half a cosine down to ``min_lr``. ``linear``: straight line down
            to ``min_lr``, or a polynomial with ``power``. ``steps``: multiply by ``gamma`` at each milestone.
        power: exponent of the ``linear`` schedule, above 0; 1: a line (mmsegmentation's poly: 0.9).
        length: length of the ``cosine`` or ``linear`` schedule, in ``unit``, where the run ends before it (LCR's BYOL:
            800 epochs, of which 100 are trained); null: that of the run, the fewer of ``trainer.max_epochs`` and
            ``trainer.max_steps``.
        milestones: times of the steps, in ``unit``, for ``schedule: steps``.
        unit: unit of ``warmup`` and ``milestones``: ``epoch`` or optimiser ``step``.
        gamma: factor at each milestone, for ``schedule: steps``.
        clip_each: largest gradient norm of each parameter tensor (DINO's code: 3.0); null: no clipping. The trainer's
            gradient_clip_val limits the norm over all tensors together.
        layer_decay: factor of the learning rate from each layer of the backbone to the layer before it, above 0, up to
            1 (ViTDet: 0.7). The heads have ``lr``, the last block ``lr`` times it. Layers, and weights without weight
            decay such as position embeddings, are those of timm's parameter groups; null: one rate.
        constant: common prefix of the names of parameters whose learning rate stays at its peak, without warm-up and
            decay, such as ``predictor`` (SimSiam); null: none.
        groups: parameter groups with their own settings, such as ``[{of: dml_loss.beta, lr: 5e-4}]``.
    """

    name: str = "sgd"
    lr: float = 0.02
    momentum: float = 0.9
    betas: tuple[float, float] | None = None
    eps: float | None = None
    weight_decay: float = 5e-4
    weight_decay_end: float | None = None
    decay_1d: bool = True
    lr_1d: float | None = None
    warmup: float = 5
    min_lr: float = 0.0
    reference_batch: int | None = None
    schedule: Literal["cosine", "linear", "steps"] = "cosine"
    power: float = 1.0
    length: float | None = None
    milestones: list[int] = field(default_factory=list)
    unit: Literal["epoch", "step"] = "epoch"
    gamma: float = 0.3
    clip_each: float | None = None
    layer_decay: float | None = None
    constant: str | None = None
    groups: list[Group] = field(default_factory=list)

    def __post_init__(self):
        at_least(0, momentum=self.momentum, weight_decay=self.weight_decay, min_lr=self.min_lr, warmup=self.warmup)
        if self.length is not None and not self.length > self.warmup:
            raise UserError(f"length is {self.length}; it must be above the warmup, {self.warmup}, or null: the run's.")
        above(0, lr=self.lr, power=self.power)
        if self.lr_1d is not None:
            above(0, lr_1d=self.lr_1d)
        if self.reference_batch is not None:
            at_least(1, reference_batch=self.reference_batch)
        if self.weight_decay_end is not None:
            at_least(0, weight_decay_end=self.weight_decay_end)
        if self.eps is not None and not self.eps > 0:
            raise UserError(f"eps is {self.eps}; it must be above 0, or null for that of the optimiser.")
        if self.clip_each is not None and not self.clip_each > 0:
            raise UserError(f"clip_each is {self.clip_each}; it must be above 0, or null for no clipping.")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay is {self.layer_decay}; it must be above 0 and up to 1, or null for one rate.")
        if self.layer_decay is not None and self.lr_1d is not None:
            raise UserError("layer_decay and lr_1d are both given; set one of them to null.")

    def peak(self, global_batch: int) -> float:
        """Peak learning rate at a global batch size (linear scaling rule)."""
        return self.scaled(self.lr, global_batch)

    def scaled(self, lr: float, global_batch: int) -> float:
        """Learning rate at a global batch size, of one for ``reference_batch`` images."""
        return lr * global_batch / self.reference_batch if self.reference_batch else lr

    def build(self, module: nn.Module, global_batch: int) -> torch.optim.Optimizer:
        """Build the optimiser over the module's trainable parameters.

        Raises:
            UserError: timm has no optimiser of this name, or it has no ``eps`` and one is given.
        """
        from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers  # takes seconds to import

        if self.name not in list_optimizers():
            hint = did_you_mean(self.name, list_optimizers())
            raise UserError(f"model.optim.name: unknown optimiser '{self.name}'.{hint}")
        own, rest = own_groups(module.named_parameters(), self.groups)
        lr_1d = None if self.lr_1d is None else self.scaled(self.lr_1d, global_batch)
        kept, rest = split_constant(rest, self.constant)
        layers: list[dict] = []
        if self.layer_decay is not None:
            rates = {"layer_decay": self.layer_decay, "lr": self.peak(global_batch)}
            layers, rest = layer_groups(module, rest, self.weight_decay, self.decay_1d, **rates)
        groups = parameter_groups(rest, self.weight_decay, self.decay_1d, lr_1d) + layers
        constant = parameter_groups(kept, self.weight_decay, self.decay_1d, lr_1d)
        groups += [{**group, "constant": True} for group in constant] + own
        name = "momentum" if self.name == "sgd" else self.name  # timm's sgd has Nesterov momentum
        if self.eps is not None and not get_optimizer_info(name).has_eps:
            raise UserError(f"model.optim.eps: {self.name} has none; set it to null.")
        given: dict[str, Any] = {} if self.betas is None else {"betas": tuple(self.betas)}
        given |= {} if self.eps is None else {"eps": self.eps}
        return create_optimizer_v2(groups, name, lr=self.peak(global_batch), momentum=self.momentum, **given)


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    decay_1d: bool = True,
    lr_1d: float | None = None,
) -> list[dict]:
    """Optimiser groups of the trainable parameters; the 1-D ones are a group of their own where they differ.

    Args:
        named_parameters: parameters by name.
        weight_decay: weight decay.
        decay_1d: whether the 1-D parameters have it too.
        lr_1d: peak learning rate of the 1-D parameters; None: that of the others.
    """
    trainable = [p for _, p in named_parameters if p.requires_grad]
    own_1d: dict[str, Any] = {} if decay_1d else {"weight_decay": 0.0, "decayed": False}
    own_1d |= {} if lr_1d is None else {"lr": lr_1d}
    alike = [p for p in trainable if p.ndim > 1 or not own_1d]
    other = [p for p in trainable if p.ndim <= 1 and own_1d]
    shared = {"weight_decay": weight_decay, "decayed": True}
    groups = [{"params": alike, **shared}, {"params": other, **shared, **own_1d}]
    return [group for group in groups if group["params"]]


def layer_groups(
    module: nn.Module,
    named_parameters: Sequence[tuple[str, nn.Parameter]],
    weight_decay: float,
    decay_1d: bool,
    layer_decay: float,
    lr: float,
) -> tuple[list[dict], list[tuple[str, nn.Parameter]]]:
    """Optimiser groups of the layers of timm's networks in a module, and the parameters that are in none of them.

    Args:
        module: module with one or more of timm's networks.
        named_parameters: parameters to group.
        weight_decay: weight decay of the parameters that have it.
        decay_1d: whether the 1-D parameters have it too.
        layer_decay: factor of the learning rate from one layer to the layer before it.
        lr: peak learning rate of what is above the last layer.

    Raises:
        UserError: the module has no trainable network whose layers timm knows.
    """
    from timm.optim import param_groups_layer_decay

    rest = {id(p): (name, p) for name, p in named_parameters}
    layers: list[dict] = []
    for network in [part for part in module.modules() if hasattr(part, "group_matcher")]:
        undecayed: Any = getattr(network, "no_weight_decay", tuple)()
        found = param_groups_layer_decay(
            network, weight_decay, undecayed, weight_decay_exclude_1d=not decay_1d, layer_decay=layer_decay
        )
        last = max((group["lr_scale"] for group in found), default=1.0)
        for group in found:
            params = [rest.pop(id(p))[1] for p in group["params"] if id(p) in rest]
            scale, decay = layer_decay * group["lr_scale"] / last, group["weight_decay"]
            layers.append({"params": params, "lr": lr * scale, "weight_decay": decay, "decayed": decay > 0})
    layers = [group for group in layers if group["params"]]
    if not layers:
        raise UserError("model.optim.layer_decay: the model trains no network whose layers timm knows; set it to null.")
    return layers, list(rest.values())


def own_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], groups: Sequence[Group]
) -> tuple[list[dict], list[tuple[str, nn.Parameter]]]:
    """Optimiser groups with their own settings, and the parameters in none of them.

    Raises:
        UserError: a group's prefix matches no trainable parameter.
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


def split_constant(
    named_parameters: Sequence[tuple[str, nn.Parameter]], prefix: str | None
) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
    """The parameters whose names begin with ``prefix``, none where it is None, and the others.

    Raises:
        UserError: the prefix matches no parameter.
    """
    kept = [] if prefix is None else [(name, p) for name, p in named_parameters if name.startswith(prefix)]
    if prefix is not None and not kept:
        raise UserError(f"model.optim.constant: no trainable parameter of the model is named '{prefix}...'.")
    return kept, [(name, p) for name, p in named_parameters if prefix is None or not name.startswith(prefix)]


def set_weight_decay(optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
    """Set the weight decay of the parameters that decay and are in no group of their own."""
    for group in optimizer.param_groups:
        if group.get("decayed"):
            group["weight_decay"] = weight_decay


@torch.no_grad()
def clip_each(parameters: Iterable[nn.Parameter], longest: float) -> None:
    """Scale each gradient tensor with an L2 norm above ``longest`` down to that norm, in place (DINO's code)."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        norms = torch.stack(torch._foreach_norm(gradients))
        torch._foreach_mul_(gradients, list((longest / (norms + 1e-6)).clamp(max=1.0)))


def cosine(step: int, total: float, start: float, end: float) -> float:
    """Half a cosine from ``start`` at step 0 to ``end`` at step ``total``; constant afterwards."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * min(1.0, step / max(1, total))))


def warmup_steps(step: int, warmup: int, milestones: Sequence[int], gamma: float) -> float:
    """Factor of the peak learning rate: linear from 0 to 1 over ``warmup`` steps, then times gamma at each milestone.

    ``step`` and ``milestones`` are optimiser steps, counted from 0.
    """
    if step < warmup:
        return step / warmup
    return gamma ** sum(step >= milestone for milestone in milestones)


def warmup_linear(step: int, total: float, warmup: int, floor: float, power: float) -> float:
    """Factor of the peak learning rate at an optimiser step, counted from 0.

    Linear from 0 to 1 over ``warmup`` steps, then from 1 to ``floor`` at step ``total`` as (1 - t) ** ``power``.
    """
    if step < warmup:
        return step / warmup
    return floor + (1 - floor) * (1 - min(1.0, (step - warmup) / max(1, total - warmup))) ** power


def warmup_cosine(step: int, total: float, warmup: int, floor: float = 0.0) -> float:
    """Factor of the peak learning rate at an optimiser step, counted from 0.

    Linear from 0 to 1 over ``warmup`` steps, then half a cosine from 1 to ``floor`` at step ``total``.
    """
    if step < warmup:
        return step / warmup
    return cosine(step - warmup, total - warmup, 1.0, floor)
