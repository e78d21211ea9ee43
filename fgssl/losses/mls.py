"""Losses of MLS (Zhu, Fu & Wu, ICCV 2023). Shapes: B batch, D dictionary length, F feature, C projection.

Labels and logits come from the two dictionaries as they are before the keys of the batch enter: a label is a position
in the dictionary, and enqueuing puts another image there.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fgssl.losses.precision import at_least_float32

Reduction = Literal["mean", "balanced", "sum"]


@torch.no_grad()
def pseudo_labels(features: Tensor, feature_queue: Tensor, *, k: int) -> Tensor:
    """Label each image with the k most similar dictionary entries.

    Args:
        features: [B, F] backbone features of view 1, of any length.
        feature_queue: [D, F] dictionary Q_g, L2-normalised.
        k: labels per image; all D entries where the dictionary holds fewer than k.

    Returns:
        [B, D] of 0 and 1 with k ones per row; at least float32, also under autocast.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    with torch.autocast(features.device.type, enabled=False):  # bfloat16 scores would not separate close entries
        scores_BD = at_least_float32(features) @ at_least_float32(feature_queue).T
    nearest_Bk = scores_BD.topk(min(k, len(feature_queue)), dim=1).indices
    return torch.zeros_like(scores_BD).scatter_(1, nearest_Bk, 1.0)


def pull_and_push(
    projections: Tensor, projection_queue: Tensor, labels: Tensor, *, tau: float, reduction: Reduction = "mean"
) -> tuple[Tensor, Tensor]:
    """Two terms of the binary cross-entropy of Eq. 9: the labelled and the remaining entries of the dictionary.

    Args:
        projections: [B, C] z1, L2-normalised.
        projection_queue: [D, C] dictionary Q_z, L2-normalised, in the order of the labels.
        labels: [B, D] from :func:`pseudo_labels`.
        tau: temperature.
        reduction: how the entries of one image are reduced, see :func:`multi_label_loss`.

    Returns:
        Two scalars, means over the batch; 0 for an empty dictionary.
    """
    logits_BD = at_least_float32(_logits(projections, projection_queue, tau))
    pull_B = (labels * F.softplus(-logits_BD)).sum(dim=1)  # -y log sigmoid(p / tau)
    push_B = ((1 - labels) * F.softplus(logits_BD)).sum(dim=1)  # -(1 - y) log(1 - sigmoid(p / tau))
    if reduction == "mean":
        entries = max(1, len(projection_queue))
        pull_B, push_B = pull_B / entries, push_B / entries
    elif reduction == "balanced":
        pull_B = 0.5 * pull_B / labels.sum(dim=1).clamp(min=1)
        push_B = 0.5 * push_B / (1 - labels).sum(dim=1).clamp(min=1)
    return pull_B.mean(), push_B.mean()


def multi_label_loss(
    projections: Tensor, projection_queue: Tensor, labels: Tensor, *, tau: float, reduction: Reduction = "mean"
) -> Tensor:
    """Binary cross-entropy with every dictionary entry as a class (Eq. 9).

    Args:
        projections: [B, C] z1, L2-normalised.
        projection_queue: [D, C] dictionary Q_z, L2-normalised, in the order of the labels.
        labels: [B, D] from :func:`pseudo_labels`.
        tau: temperature.
        reduction: how the entries of one image are reduced. ``mean``: mean over all D entries, as Eq. 9 is printed.
            ``balanced``: mean over the labelled entries and mean over the remaining entries, then the mean of both.
            ``sum``: sum over all entries.

    Returns:
        Scalar, mean over the batch; 0 for an empty dictionary.
    """
    pull, push = pull_and_push(projections, projection_queue, labels, tau=tau, reduction=reduction)
    return pull + push


def bce_pos_loss(
    projections: Tensor, projection_queue: Tensor, labels: Tensor, *, tau: float, reduction: Reduction = "mean"
) -> Tensor:
    """Positive term of :func:`multi_label_loss` (supplement, Eq. 15), with the same arguments and reduction."""
    return pull_and_push(projections, projection_queue, labels, tau=tau, reduction=reduction)[0]


def knn_softmax_loss(projections: Tensor, projection_queue: Tensor, labels: Tensor, *, tau: float) -> Tensor:
    """Softmax over the dictionary, mean of the cross-entropies of the labelled entries (supplement, Eq. 10).

    Eq. 11, the logarithm of a sum, is a misprint: Eq. 14 expands it into the sum of logarithms of Eq. 10.
    """
    log_p_BD = F.log_softmax(_logits(projections, projection_queue, tau), dim=1)
    return -(labels * log_p_BD).sum() / labels.sum().clamp(min=1)


def mean_length(queue_DC: Tensor) -> Tensor:
    """Length of the mean of unit vectors [D, C]: 0 where they cancel, 1 where all are equal; 0 for an empty tensor."""
    return queue_DC.sum(dim=0).norm() / max(1, len(queue_DC))


def _logits(z_BC: Tensor, queue_DC: Tensor, tau: float) -> Tensor:
    """[B, D] p / tau."""
    return z_BC @ queue_DC.T / tau
