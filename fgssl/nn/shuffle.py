"""BatchNorm of the key encoder over several processes: shuffled images, or common statistics. Both without gradient."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from fgssl.distributed import gather_rows, is_distributed
from fgssl.errors import UserError

Encode = Callable[[Tensor], tuple[Tensor, ...]]


@torch.no_grad()
def across_processes(encode: Encode, images: Tensor, *, seed: int) -> tuple[Tensor, ...]:
    """Encode a random part of the images of all processes in each process, and return the rows of its own images.

    MoCo (He et al., CVPR 2020), section 3.3, "Shuffling BN": BatchNorm normalises a query and its key in different
    batches.

    Args:
        encode: Function from [B, 3, H, W] to tensors of B rows.
        images: [B, 3, H, W], the same B in every process.
        seed: Seed of the order, the same in every process.

    Returns:
        The outputs of ``encode`` for ``images``, in their order.
    """
    if not is_distributed():
        return encode(images)
    rank, world = dist.get_rank(), dist.get_world_size()
    (images,) = gather_rows(images)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    mine, own = order.chunk(world)[rank], order.argsort().chunk(world)[rank]  # own: where this process's images went
    mine, own = (rows.to(images.device, non_blocking=True) for rows in (mine, own))
    return tuple(rows[own] for rows in gather_rows(*encode(images[mine])))


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d with the statistics of the batches of all processes, without gradient.

    Unlike torch's SyncBatchNorm it runs on CPUs too. The statistics are averaged in float64.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not (self.training and is_distributed()):
            return super().forward(x_BCHW)
        x = x_BCHW if x_BCHW.dtype == torch.float64 else x_BCHW.float()
        variance_C, mean_C = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        moments_2C = torch.stack([mean_C, variance_C + mean_C**2]).double()  # the processes have equal parts
        dist.all_reduce(moments_2C)
        mean_C, square_C = moments_2C / dist.get_world_size()
        variance_C = square_C - mean_C**2
        count = x.numel() // x.shape[1] * dist.get_world_size()
        self.num_batches_tracked += 1
        for running, new in ((self.running_mean, mean_C), (self.running_var, variance_C * count / (count - 1))):
            running.lerp_(new.to(running.dtype), self.momentum or 0.0)
        mean_C, variance_C = mean_C.to(x.dtype), variance_C.to(x.dtype)
        return F.batch_norm(x_BCHW, mean_C, variance_C, self.weight, self.bias, training=False, eps=self.eps)


def synchronise_batch_norm(network: nn.Module) -> None:
    """Replace every BatchNorm2d of a network by a synchronised one, in place; its state dict keeps names and values.

    Raises:
        UserError: The network has another kind of BatchNorm.
    """
    for name, module in list(network.named_modules()):
        if type(module) is nn.BatchNorm2d:
            synchronised = SynchronisedBatchNorm2d(module.num_features, module.eps, module.momentum)
            synchronised.load_state_dict(module.state_dict())
            network.set_submodule(name, synchronised.requires_grad_(False))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            kind = type(module).__name__
            raise UserError(f"model.keys_batch_norm synchronised needs BatchNorm2d, not {kind} ({name}): set shuffled.")
