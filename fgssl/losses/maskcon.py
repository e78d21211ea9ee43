"""Soft targets and loss of MaskCon (Feng & Patras, CVPR 2023). Shapes: B batch, K memory length, D projection."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fgssl.losses.contrastive import contrastive_logits
from fgssl.losses.precision import at_least_float32


@torch.no_grad()
def soft_targets(
    keys: Tensor, queue: Tensor, labels: Tensor, queue_labels: Tensor, *, tau: float, weight: float
) -> Tensor:
    """Target relations of each key to itself (column 0) and to the memory, masked by the coarse label (Eq. 11-15).

    Limits that hold exactly:

    - ``tau=inf``: equal relations to all entries of the same coarse label (Grafit: ``weight * SupCon + (1 - weight) *
      SelfCon``).
    - ``tau=0``: one relation of 1, to the most similar entry of the same coarse label (the first one if several tie).
    - ``weight=0``: SelfCon, at any tau.

    A key without an entry of its coarse label in the memory has SelfCon's target.

    Args:
        keys: [B, D] key projections, L2-normalised.
        queue: [K, D] memory, L2-normalised; K may be 0.
        labels: [B] coarse labels of the keys.
        queue_labels: [K] coarse labels of the memory.
        tau: temperature of the relations, in [0, inf].
        weight: w of Eq. 15, in [0, 1].

    Returns:
        [B, 1 + K] targets; each row sums to 1. float32 or wider, also under autocast.
    """
    if not tau >= 0 or not 0 <= weight <= 1:
        raise ValueError(f"tau must be at least 0 and weight within [0, 1], got tau={tau}, weight={weight}")
    z_BK = _relations(keys, queue, labels, queue_labels, tau)
    z_BK1 = torch.cat([z_BK.new_ones(len(z_BK), 1), z_BK], dim=1)  # Eq. 14: the relation to the sample itself is 1
    targets = weight * z_BK1 / z_BK1.sum(dim=1, keepdim=True)
    targets[:, 0] += 1 - weight  # Eq. 15
    return targets


def _relations(keys: Tensor, queue: Tensor, labels: Tensor, queue_labels: Tensor, tau: float) -> Tensor:
    """exp((d - max d) / tau) for entries of the same coarse label, 0 for the others [B, K] (Eq. 11-13)."""
    same_BK = labels[:, None] == queue_labels[None, :]
    dtype = at_least_float32(keys).dtype
    if tau > torch.finfo(dtype).max or len(queue) == 0:
        return same_BK.to(dtype)
    with torch.autocast(keys.device.type, enabled=False):  # bfloat16 rounds cosines by up to 0.004; tau is 0.05
        d_BK = at_least_float32(keys) @ at_least_float32(queue).T
    d_BK = d_BK.masked_fill(~same_BK, -torch.inf)
    # Maximum over the same coarse label only: with the others at 0, all-negative cosines would underflow to 0 / 0.
    d_max_B, nearest_B = d_BK.max(dim=1)
    if tau < torch.finfo(dtype).tiny:
        return F.one_hot(nearest_B, len(queue)).to(dtype) * same_BK
    d_max_B = d_max_B.masked_fill(~same_BK.any(dim=1), 0)  # no entry of this label: exp(-inf) = 0 instead of NaN
    return torch.exp((d_BK - d_max_B[:, None]) / tau)


def soft_contrastive_loss(queries: Tensor, keys: Tensor, queue: Tensor, targets: Tensor, *, tau0: float) -> Tensor:
    """Cross-entropy of soft targets against the query's softmax over own key and memory (Eq. 5 and 8).

    Args:
        queries: [B, D] query projections, L2-normalised; the only input that needs a gradient.
        keys: [B, D] key projections, L2-normalised.
        queue: [K, D] memory, L2-normalised.
        targets: [B, 1 + K] from :func:`soft_targets`.
        tau0: temperature of the projections.

    Returns:
        Scalar, mean over the batch.
    """
    return F.cross_entropy(contrastive_logits(queries, keys, queue, tau=tau0), targets)
