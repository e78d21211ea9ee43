"""Loss of multi-label classification. Shapes: B batch, C classes."""

from torch import Tensor
from torch.nn import functional as F


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy with logits, mean over all B x C entries; difficult entries contribute 0.

    The divisor B x C includes the difficult entries, so that the mean over processes equals the mean over all images.

    Args:
        logits: [B, C] float.
        targets: [B, C] uint8: 1 present, 0 absent, larger values (255) difficult.

    Returns:
        Scalar.
    """
    known_BC = targets <= 1
    present_BC = (targets == 1).to(logits.dtype)
    loss_BC = F.binary_cross_entropy_with_logits(logits, present_BC, reduction="none")
    return (loss_BC * known_BC).mean()
