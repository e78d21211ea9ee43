"""Teachers: frozen copies of a student, moved by an exponential moving average (EMA) or replaced every epoch."""

import copy
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


class Pair(NamedTuple):
    """A student and the teacher that follows it.

    Attributes:
        student, teacher: of equal structure.
        every: ``step``: EMA after each optimiser step. ``epoch``: a copy of the student at the end of each epoch.
    """

    student: nn.Module
    teacher: nn.Module
    every: Literal["step", "epoch"] = "step"


def teacher_of(student: Network) -> Network:
    """A copy of the student, equal at first, that no gradient reaches."""
    return copy.deepcopy(student).requires_grad_(False)


def without_drop_path(network: Network) -> Network:
    """The network, whose stochastic depth is off from now on, also in training (a DINO teacher's)."""
    from timm.layers import DropPath  # takes seconds to import; the command line starts without it

    for module in network.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    return network


@torch.no_grad()
def ema_update(student: nn.Module, teacher: nn.Module, momentum: float) -> None:
    """teacher := momentum * teacher + (1 - momentum) * student, in place, parameters only.

    Buffers stay the teacher's own: it runs in training mode, so its BatchNorm keeps its own statistics.
    """
    theirs, ours = ([p.detach() for p in module.parameters()] for module in (teacher, student))
    if theirs:
        torch._foreach_lerp_(theirs, ours, 1 - momentum)


@torch.no_grad()
def snapshot(student: nn.Module, teacher: nn.Module) -> None:
    """teacher := student, in place, parameters and buffers."""
    for kind in (nn.Module.parameters, nn.Module.buffers):
        for theirs, ours in zip(kind(teacher), kind(student), strict=True):
            theirs.copy_(ours)
