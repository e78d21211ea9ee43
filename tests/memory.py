"""Peak memory of tensors, on any device."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the storages that are alive, of ``watched`` tensors and of those made inside.

    Attributes:
        peak: largest number of bytes at a time.
    """

    def __init__(self, *watched: Tensor):
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0
        for tensor in watched:
            self._watch(tensor)

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        number = storage._cdata
        if number not in self.alive:
            self.alive[number] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, number)
            self.peak = max(self.peak, sum(self.alive.values()))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._watch(tensor)
        return result


def nbytes(tensor: Tensor) -> int:
    return torch.numel(tensor) * tensor.element_size()
