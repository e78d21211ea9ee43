"""Collective operations over the ranks of torch.distributed; without several ranks they return their input."""

import itertools
import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _get_default_store

from fgssl.errors import UserError

Plain = TypeVar("Plain")  # numbers, strings, lists and dictionaries
POLL = 0.05  # s between two looks into the store
_waits = itertools.count()  # names the waits in the store; equal on all ranks, which wait in the same order


def is_distributed() -> bool:
    """Whether there is more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def process_count() -> int:
    """Number of ranks."""
    return dist.get_world_size() if is_distributed() else 1


def gather_rows(*tensors: Tensor) -> list[Tensor]:
    """Concatenate each tensor ([B, ...], the same B on every rank) over the ranks, in rank order.

    The rows of all tensors are packed as bytes into one all-gather.
    """
    if not is_distributed():
        return list(tensors)
    rows = [t.detach().contiguous().view(len(t), -1).view(torch.uint8) for t in tensors]
    packed = torch.cat(rows, dim=1)
    gathered = packed.new_empty(dist.get_world_size() * len(packed), packed.shape[1])
    dist.all_gather_into_tensor(gathered, packed)
    columns = gathered.split([r.shape[1] for r in rows], dim=1)
    return [c.contiguous().view(t.dtype).view(-1, *t.shape[1:]) for c, t in zip(columns, tensors, strict=True)]


def rows_of_this_rank(gathered: Tensor) -> Tensor:
    """Rows that this rank gave to ``gather_rows``."""
    return gathered.chunk(dist.get_world_size())[dist.get_rank()] if is_distributed() else gathered


class _Gather(torch.autograd.Function):
    """All-gather of rows; the gradient of a rank's rows is the sum of the gradients of all ranks."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        gathered = rows.new_empty(dist.get_world_size() * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Concatenate [B, ...], the same B on every rank, over the ranks, in rank order.

    If every rank computes the same loss from the result, DDP's mean over ranks is the gradient of that loss.
    """
    return _Gather.apply(rows) if is_distributed() else rows


class _Sum(torch.autograd.Function):
    """All-reduce; the gradient of a rank's values is the sum of the gradients of all ranks."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        summed = values.contiguous().clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def sum_with_gradient(values: Tensor) -> Tensor:
    """Sum over the ranks, of the same shape on every rank; DDP's mean over ranks then is that of one process."""
    return _Sum.apply(values) if is_distributed() else values


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean over the ranks, without gradient. All ranks must call it."""
    value = value.detach().clone()
    if is_distributed():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


class AnyRank:
    """Flags that are raised on any rank, and this rank's ``values``, to be read later. All ranks must make it.

    On CUDA ``read`` waits for the work from before the construction alone. So the host can first give the device the
    backward pass, and then learn whether the loss is finite.

    Args:
        flags: bool tensors of one element on the device, or bools.
        values: float tensors of one element on the device.
        device: device of the collective.
    """

    def __init__(self, flags: Sequence[Tensor | bool], device: torch.device, values: Sequence[Tensor] = ()):
        self.count = len(flags)
        given = [
            x.detach() if isinstance(x, Tensor) else torch.full((), x, device=device)  # a kernel, and not a copy
            for x in (*flags, *values)
        ]
        self.packed = torch.stack([x.to(torch.float32).reshape(()) for x in given])
        self.work: Any = None
        if is_distributed():
            self.work = dist.all_reduce(self.packed[: self.count], op=dist.ReduceOp.MAX, async_op=True)
        self.stream = _stream_beside(device)

    def read(self) -> tuple[list[bool], list[float]]:
        """The flags and the values, on the host."""
        with self.stream:
            if self.work is not None:
                self.work.wait()
            numbers = self.packed.tolist()
        return [bool(number) for number in numbers[: self.count]], numbers[self.count :]


def _stream_beside(device: torch.device) -> Any:
    """Context of a second CUDA stream, which first waits for what the current one has been given by now."""
    if device.type != "cuda":
        return nullcontext()
    stream = _second_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)


@cache
def _second_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def any_rank(flag: Tensor | bool, device: torch.device) -> bool:
    """Whether ``flag`` is true on any rank, at once. All ranks must call it."""
    return AnyRank([flag], device).read()[0][0]


def from_rank_zero(work: Callable[[], Plain]) -> Plain:
    """Result of ``work``, which rank 0 alone calls. All ranks must call it.

    The other ranks wait in the key-value store of the process group, not in a collective: work on rank 0 may take
    longer than the timeout of collectives (``trainer.strategy.timeout``, 30 minutes by default).

    Args:
        work: function of plain values that JSON can hold; it must not use collectives.

    Raises:
        UserError: on the other ranks, if ``work`` failed.
    """
    if not is_distributed():
        return work()
    store, name = _get_default_store(), f"fgssl/rank_zero/{next(_waits)}"
    if dist.get_rank() == 0:
        try:
            answer = json.dumps({"result": work()}, default=float)  # numpy's numbers
        except BaseException as fault:
            store.set(name, json.dumps({"fault": f"{type(fault).__name__}: {fault}"}))
            raise
        store.set(name, answer)
    while not store.check([name]):
        time.sleep(POLL)
    told = json.loads(store.get(name))
    if "fault" in told:
        raise UserError(f"process {dist.get_rank()} ends because process 0 failed: {told['fault']}")
    return told["result"]


def wait_for_all_ranks() -> None:
    """Wait until all ranks are here, without the timeout of collectives, as in ``from_rank_zero``."""
    if not is_distributed():
        return
    store, name = _get_default_store(), f"fgssl/all/{next(_waits)}"
    store.add(name, 1)
    while store.add(name, 0) < dist.get_world_size():
        time.sleep(POLL)


def check_equal_on_ranks(values: dict[str, Tensor], step: int) -> None:
    """Check that the ranks hold equal values, such as checksums of memories.

    Args:
        values: int64 scalars by name.
        step: optimiser step, for the message.

    Raises:
        RuntimeError: names the values that differ.
    """
    if not is_distributed() or not values:
        return
    ours = torch.stack(list(values.values()))
    lowest, highest = ours.clone(), ours.clone()
    dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    differing = [name for name, same in zip(values, (lowest == highest).tolist(), strict=True) if not same]
    if differing:
        raise RuntimeError(
            f"step {step}: values differ between processes: {', '.join(differing)}. This is a bug of fgssl."
        )
