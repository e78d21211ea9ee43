"""Teachers: frozen copies of a student, moved by an exponential moving average (EMA)."""

import copy
from typing import NamedTuple

import torch
from torch import nn


class Pair(NamedTuple):
    """A student and the teacher that follows it."""

    student: nn.Module
    teacher: nn.Module


def teacher_of(student: nn.Module) -> nn.Module:
    """A copy of the student, equal at first, that no gradient reaches."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def ema_update(student: nn.Module, teacher: nn.Module, momentum: float) -> None:
    """teacher := momentum * teacher + (1 - momentum) * student, in place, parameters only.

    Buffers stay the teacher's own: it runs in training mode, so its BatchNorm keeps its own statistics.
    """
    theirs, ours = ([p.detach() for p in module.parameters()] for module in (teacher, student))
    if theirs:
        torch._foreach_lerp_(theirs, ours, 1 - momentum)
