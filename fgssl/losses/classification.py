"""The loss of several labels an image. Shapes: B batch, C classes."""

from torch import Tensor
from torch.nn import functional as F


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of each class, mean over the B x C entries; a difficult one adds nothing.

    The divisor counts the difficult entries too, so that the mean over several processes is that over their images.

    Args:
        logits: [B, C] float.
        targets: [B, C] uint8: 1 for present, 0 for absent, anything above for difficult.
    """
    known_BC = targets <= 1
    present_BC = (targets == 1).to(logits.dtype)
    loss_BC = F.binary_cross_entropy_with_logits(logits, present_BC, reduction="none")
    return (loss_BC * known_BC).mean()
