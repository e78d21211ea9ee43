"""The losses of MLS (Zhu, Fu & Wu, ICCV 2023). Shapes: B batch, D dictionary length, F feature, C projection.

Labels, and the logits that they belong to, come from the two dictionaries as they are BEFORE the batch's own keys
enter: a label is a place in the dictionary, and an enqueue puts another image there.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fgssl.losses.precision import at_least_float32


@torch.no_grad()
def pseudo_labels(features: Tensor, feature_queue: Tensor, *, k: int) -> Tensor:
    """Mark the k entries of the dictionary that are most alike to each image.

    Args:
        features: [B, F] backbone features of view 1; their length does not matter.
        feature_queue: [D, F] dictionary Q_g, L2-normalised.
        k: labels an image; all D where the dictionary holds no more than k.

    Returns:
        [B, D] of 0 and 1, k ones a row; float32 at least, also under autocast.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    with torch.autocast(features.device.type, enabled=False):  # a bf16 product would not tell near entries apart
        scores_BD = at_least_float32(features) @ at_least_float32(feature_queue).T
    nearest_Bk = scores_BD.topk(min(k, len(feature_queue)), dim=1).indices
    return torch.zeros_like(scores_BD).scatter_(1, nearest_Bk, 1.0)


def multi_label_loss(projections: Tensor, projection_queue: Tensor, labels: Tensor, *, tau: float) -> Tensor:
    """Binary cross-entropy of every dictionary entry as a class of its own, all of one weight (Eq. 9).

    Args:
        projections: [B, C] z1, L2-normalised.
        projection_queue: [D, C] dictionary Q_z, L2-normalised; its order is that of the labels.
        labels: [B, D] from :func:`pseudo_labels`.
        tau: temperature.

    Returns:
        Scalar, mean over entries and batch; 0 where the dictionary is empty.
    """
    return _mean(
        F.binary_cross_entropy_with_logits(_logits(projections, projection_queue, tau), labels, reduction="none")
    )


def bce_pos_loss(projections: Tensor, projection_queue: Tensor, labels: Tensor, *, tau: float) -> Tensor:
    """The positive term of :func:`multi_label_loss` alone (supplement, Eq. 15); still over all D entries."""
    return _mean(labels * F.softplus(-_logits(projections, projection_queue, tau)))


def knn_softmax_loss(projections: Tensor, projection_queue: Tensor, labels: Tensor, *, tau: float) -> Tensor:
    """Softmax over the dictionary, mean of the positives' cross-entropies (supplement, Eq. 10).

    Eq. 11, the logarithm of a sum, is a misprint: Eq. 14 unfolds it into the sum of logarithms that Eq. 10 has.
    """
    log_p_BD = F.log_softmax(_logits(projections, projection_queue, tau), dim=1)
    return -(labels * log_p_BD).sum() / labels.sum().clamp(min=1)


def _logits(z_BC: Tensor, queue_DC: Tensor, tau: float) -> Tensor:
    """[B, D] p / tau."""
    return z_BC @ queue_DC.T / tau


def _mean(terms_BD: Tensor) -> Tensor:
    """Mean; 0, not NaN, of nothing."""
    return terms_BD.sum() / max(terms_BD.numel(), 1)
