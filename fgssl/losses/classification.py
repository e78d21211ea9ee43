"""The loss of several labels an image. Shapes: B batch, C classes."""

from torch import Tensor
from torch.nn import functional as F

DIFFICULT = 255  # of a target: neither present nor absent


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of each class, mean over the B x C entries; a difficult one adds nothing.

    The divisor counts the difficult entries too, so that the mean over several processes is that over their images.

    Args:
        logits: [B, C] float.
        targets: [B, C] uint8: 1, 0, or 255 for difficult.
    """
    known_BC = targets != DIFFICULT
    present_BC = (targets == 1).to(logits.dtype)
    loss_BC = F.binary_cross_entropy_with_logits(logits, present_BC, reduction="none")
    return (loss_BC * known_BC).mean()
