"""Centre of a DINO teacher."""

import torch
from torch import Tensor, nn

from fgssl.distributed import mean_over_ranks


class Center(nn.Module):
    """Running mean of a teacher's raw logits, subtracted from them before the softmax (DINO, Eq. 4).

    It is the same on every rank and is saved in the checkpoint.

    Args:
        prototypes: number of logits K.
        momentum: share of the old value kept at an update, between 0 and 1.
    """

    value: Tensor

    def __init__(self, prototypes: int, momentum: float = 0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(prototypes))

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Move towards the mean of [..., K] logits over all ranks. Call it once per batch, after the loss.

        A batch with a logit that is not finite leaves the centre unchanged; its optimiser step is skipped too.
        """
        # In the centre's own type: the mean of bfloat16 logits, rounded to bfloat16, would be off by up to 0.4 %.
        mean_K = mean_over_ranks(logits.flatten(0, -2).mean(dim=0, dtype=self.value.dtype))
        moved_K = torch.lerp(mean_K, self.value, self.momentum)
        self.value.copy_(torch.where(torch.isfinite(mean_K).all(), moved_K, self.value))
