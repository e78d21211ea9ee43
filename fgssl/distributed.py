"""The collective calls that the callbacks share."""

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_rows(*tensors: Tensor) -> list[Tensor]:
    """Concatenate each tensor ([B, ...], the same B on every rank) over the ranks, in rank order.

    One collective call for all of them: rows are packed as bytes, so that float keys and integer labels share it.
    """
    if not is_distributed():
        return list(tensors)
    rows = [t.detach().contiguous().view(len(t), -1).view(torch.uint8) for t in tensors]
    packed = torch.cat(rows, dim=1)
    gathered = packed.new_empty(dist.get_world_size() * len(packed), packed.shape[1])
    dist.all_gather_into_tensor(gathered, packed)
    columns = gathered.split([r.shape[1] for r in rows], dim=1)
    return [c.contiguous().view(t.dtype).view(-1, *t.shape[1:]) for c, t in zip(columns, tensors, strict=True)]


class _Gather(torch.autograd.Function):
    """Rows of all ranks; the gradient of a rank's rows is the sum of what all ranks ask of them."""

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

    If every rank computes the same loss of the result, DDP's mean over the ranks is that loss's gradient.
    """
    return _Gather.apply(rows) if is_distributed() else rows


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean over the ranks, without gradient. A collective call."""
    value = value.detach().clone()
    if is_distributed():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value


def any_rank(flag: Tensor | bool, device: torch.device) -> bool:
    """Whether ``flag`` is set on any rank. A collective call: every rank asks at the same point."""
    if not is_distributed():
        return bool(flag)
    flags = torch.as_tensor(flag, device=device).to(torch.int32)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags)


def check_equal_on_ranks(values: dict[str, Tensor], step: int) -> None:
    """Stop a training whose ranks hold different memories.

    Args:
        values: name -> int64 scalar that must be the same on every rank.
        step: optimiser step, for the message.

    Raises:
        RuntimeError: naming what differs.
    """
    if not is_distributed() or not values:
        return
    ours = torch.stack(list(values.values()))
    lowest, highest = ours.clone(), ours.clone()
    dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    differing = [name for name, same in zip(values, (lowest == highest).tolist(), strict=True) if not same]
    if differing:
        raise RuntimeError(f"step {step}: {', '.join(differing)} differs between processes, which must never happen.")
