"""Collectives of two processes on the stand-in device, within one process: the other one does the same as this one.

They refuse what NCCL refuses: tensors on the CPU, tensors that are not contiguous, types that NCCL does not know.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from tests.devices.stand_in import StandIn, wait

TYPES = {
    torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32,
    torch.float64,
}  # fmt: skip


@contextmanager
def two_processes() -> Iterator[None]:
    """This process is rank 0 of two within this context."""
    replaced = {
        "is_initialized": lambda: True,
        "get_world_size": lambda group=None: 2,
        "get_rank": lambda group=None: 0,
        "get_backend": lambda group=None: "nccl",
        "all_reduce": all_reduce,
        "all_gather_into_tensor": all_gather_into_tensor,
        "all_gather_object": all_gather_object,
        "broadcast_object_list": broadcast_object_list,
        "barrier": barrier,
    }
    store = mock.patch("fgssl.distributed._get_default_store", return_value=Store())
    with mock.patch.multiple(dist, **replaced), store:
        yield


class Store:
    """Key-value store of two processes that do the same."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.counts: dict[str, int] = {}

    def set(self, name: str, value: str) -> None:
        self.values[name] = value

    def get(self, name: str) -> str:
        return self.values[name]

    def check(self, names: list[str]) -> bool:
        return all(name in self.values for name in names)

    def add(self, name: str, count: int) -> int:
        self.counts[name] = self.counts.get(name, 0) + 2 * count
        return self.counts[name]


class Done:
    """Handle of an asynchronous collective. Waiting for it holds up the device's work, not the host."""

    def wait(self) -> bool:
        return True


def check(name: str, *tensors: Tensor) -> None:
    for tensor in tensors:
        if not isinstance(tensor, StandIn):
            raise RuntimeError(f"{name}: No backend type associated with device type cpu")
        if not tensor.raw.is_contiguous():
            raise ValueError(f"{name}: Tensors must be contiguous")
        if tensor.dtype not in TYPES:
            raise TypeError(f"{name}: NCCL does not know {tensor.dtype}")


def all_reduce(tensor: Tensor, op=dist.ReduceOp.SUM, group=None, async_op: bool = False) -> Done | None:
    check("all_reduce", tensor)
    if op == dist.ReduceOp.SUM:
        tensor.raw.mul_(2)
    return Done() if async_op else None


def all_gather_into_tensor(output: Tensor, tensor: Tensor, group=None, async_op: bool = False) -> Done | None:
    check("all_gather_into_tensor", output, tensor)
    output.raw.copy_(torch.cat([tensor.raw, tensor.raw]).view(output.shape))
    return Done() if async_op else None


def all_gather_object(objects: list, obj, group=None) -> None:
    wait("object through the device")
    objects[:] = [obj, obj]


def broadcast_object_list(objects: list, src: int = 0, group=None, device=None) -> None:
    wait("object through the device")


def barrier(*_, **__) -> None:
    wait("barrier")
