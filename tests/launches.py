"""Counts what a GPU would be asked to do: one launch for each operation that computes or copies."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that make a tensor without touching its elements.
FREE = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "empty", "empty_like", "empty_strided", "expand",
    "lift_fresh", "new_empty", "permute", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose",
    "unbind", "unsqueeze", "view",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Counts operations inside a ``with`` block; those on the CPU alone are left out.

    Attributes:
        by_name: number of calls of each operation.
    """

    def __init__(self):
        super().__init__()
        self.by_name: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return sum(self.by_name.values())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name not in FREE and not (isinstance(result, torch.Tensor) and result.device.type == "cpu"):
            self.by_name[name] += 1
        return result
