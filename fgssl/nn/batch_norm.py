"""BatchNorm over the batches of all processes, with gradient, on any device; and with fixed statistics."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fgssl.distributed import is_distributed, sum_with_gradient


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm1d of [B, C] with the statistics of the batches of all processes, the same B in every process.

    It is torch's BatchNorm1d where there is one process. Unlike torch's SyncBatchNorm it runs on CPUs too, and needs no
    setting. ``trainer.sync_batchnorm`` replaces it like any other BatchNorm.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x_BC: Tensor) -> Tensor:
        if not (self.training and is_distributed()):
            return super().forward(x_BC)
        x = x_BC if x_BC.dtype == torch.float64 else x_BC.float()
        variance_C, mean_C = (moment.double() for moment in torch.var_mean(x, dim=0, correction=0))
        moments_2C = torch.stack([mean_C, variance_C + mean_C**2])  # the processes have equal parts
        mean_C, square_C = sum_with_gradient(moments_2C) / dist.get_world_size()
        variance_C = square_C - mean_C**2
        self._track(mean_C.detach(), variance_C.detach(), count=len(x) * dist.get_world_size())
        x = (x - mean_C.to(x.dtype)) * torch.rsqrt(variance_C + self.eps).to(x.dtype)
        if self.affine:
            x = x * self.weight + self.bias
        return x.to(x_BC.dtype)

    def _track(self, mean_C: Tensor, variance_C: Tensor, count: int) -> None:
        """Move the running statistics towards those of a batch of ``count`` rows."""
        self.num_batches_tracked += 1
        for running, new in ((self.running_mean, mean_C), (self.running_var, variance_C * count / (count - 1))):
            running.lerp_(new.to(running.dtype), self.momentum or 0.0)


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """All BatchNorm layers of a module."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


def keep_statistics(module: nn.Module) -> None:
    """Let each BatchNorm normalise with its running statistics, whatever mode the module is in."""
    for layer in batch_norms(module):
        layer.register_forward_pre_hook(_use_running_statistics)


def keeps_statistics(layer: nn.Module) -> bool:
    """Whether ``keep_statistics`` was called on a BatchNorm layer."""
    return _use_running_statistics in layer._forward_pre_hooks.values()


def _use_running_statistics(layer: nn.Module, inputs: Any) -> None:
    layer.training = False  # a hook, since ``train()`` of any module above would set it
