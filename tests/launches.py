"""Counts operations that compute or copy: what a GPU would be asked to launch."""

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
    """Counts the operations of a ``with`` block that have their result on one kind of device.

    Args:
        device: kind of device, such as ``meta``, on which nothing is computed.

    Attributes:
        by_name: number of calls of each operation.
    """

    def __init__(self, device: str):
        super().__init__()
        self.device = device
        self.by_name: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return sum(self.by_name.values())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        elsewhere = isinstance(result, torch.Tensor) and result.device.type != self.device
        if name not in FREE and not elsewhere:
            self.by_name[name] += 1
        return result
