"""The centre of a DINO teacher."""

import torch
from torch import Tensor, nn

from fgssl.distributed import mean_over_ranks


class Center(nn.Module):
    """Running mean of a teacher's raw logits, taken off them before the softmax (DINO, Eq. 4).

    The same on every rank, and in the checkpoint.

    Args:
        prototypes: K.
        momentum: share of the old value at an update.
    """

    value: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(prototypes))

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Move towards the mean of [..., K] logits over all ranks; call it once a batch, after the loss.

        A batch whose logits are not finite leaves it alone: its step is left out too.
        """
        mean_K = mean_over_ranks(logits.flatten(0, -2).mean(dim=0).to(self.value))
        moved_K = torch.lerp(mean_K, self.value, self.momentum)
        self.value.copy_(torch.where(torch.isfinite(mean_K).all(), moved_K, self.value))
