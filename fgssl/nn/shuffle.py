"""BatchNorm of keys over several processes: by shuffled images, or by common statistics. No gradient passes either."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from fgssl.distributed import gather_rows, is_distributed
from fgssl.errors import UserError

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]


@torch.no_grad()
def across_processes(encode: Encode, images: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Encode the images of all processes, each process a random part of them; give each its own back.

    MoCo (He et al., CVPR 2020), section 3.3, "Shuffling BN": a query and its key are normalised in different company.

    Args:
        encode: [B, 3, H, W] to two tensors of B rows.
        images: [B, 3, H, W], the same B in every process.
        seed: of the order, the same in every process.

    Returns:
        What ``encode`` gives, for ``images``, in their order.
    """
    if not is_distributed():
        return encode(images)
    rank, world = dist.get_rank(), dist.get_world_size()
    (images,) = gather_rows(images)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    mine = order.chunk(world)[rank].to(images.device)
    first, second = gather_rows(*encode(images[mine]))
    own = order.argsort().chunk(world)[rank].to(images.device)  # where this process's images went
    return first[own], second[own]


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose batch is that of all processes, for networks that take no gradient.

    torch's SyncBatchNorm, which has one, runs on GPUs only. Statistics meet in float64.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not (self.training and is_distributed()):
            return super().forward(x_BCHW)
        x = x_BCHW if x_BCHW.dtype == torch.float64 else x_BCHW.float()
        variance_C, mean_C = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        moments_2C = torch.stack([mean_C, variance_C + mean_C**2]).double()  # of equal parts: their mean is the whole's
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
    """Make every BatchNorm2d of a network synchronised, in place; names and values of its state stay.

    Raises:
        UserError: the network has another kind of BatchNorm.
    """
    for name, module in list(network.named_modules()):
        if type(module) is nn.BatchNorm2d:
            synchronised = SynchronisedBatchNorm2d(module.num_features, module.eps, module.momentum)
            synchronised.load_state_dict(module.state_dict())
            network.set_submodule(name, synchronised.requires_grad_(False))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            kind = type(module).__name__
            raise UserError(f"model.keys_batch_norm synchronised knows BatchNorm2d, not {kind} ({name}); shuffle them.")
