"""A CUDA device without a GPU: torch's fake tensors have a shape, a type and a device, and no contents.

An operation that mixes devices fails as on a GPU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fgssl.data.batch import Batch

CUDA = torch.device("cuda:0")
Module = TypeVar("Module", bound=nn.Module)


class Mode(FakeTensorMode):
    def __deepcopy__(self, memo: dict) -> "Mode":
        return self  # a teacher is a deep copy, and has to be of its student's mode


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Every tensor made inside is fake, on the CPU unless it is asked for on ``CUDA``."""
    with Mode():
        yield


def on_cuda(build: Callable[[], Module]) -> Module:
    """The module that ``build`` makes, with parameters and buffers on ``CUDA``."""
    with CUDA:
        return build()


def batch_on_cuda(views: list[Tensor]) -> Batch:
    """A batch as ``DataModule.transfer_batch_to_device`` gives it: all on the device except ``draw``."""
    rows = torch.arange(len(views[0]))
    moved = rows.to(CUDA)
    return Batch([view.to(CUDA) for view in views], moved, moved, moved, rows)
