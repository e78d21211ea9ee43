"""The loss of MaskCon (Feng & Patras, CVPR 2023). Shapes: B batch, K memory length, D projection."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fgssl.losses.contrastive import contrastive_logits
from fgssl.losses.precision import at_least_float32


@torch.no_grad()
def soft_targets(
    keys: Tensor, queue: Tensor, labels: Tensor, queue_labels: Tensor, *, tau: float, weight: float
) -> Tensor:
    """Inter-sample relations of each key with itself (column 0) and with the memory, masked by the coarse label.

    Eq. 11 to 15. Three limits hold exactly: ``tau=inf`` is Grafit's ``weight * SupCon + (1 - weight) * SelfCon``,
    ``tau=0`` puts all on the single nearest entry of the same coarse label (the first of equals), ``weight=0`` is
    SelfCon at any tau. A key with no entry of its coarse label falls back to SelfCon.

    Args:
        keys: [B, D] key projections, L2-normalised.
        queue: [K, D] memory, L2-normalised; K may be 0.
        labels: [B] coarse labels of the keys.
        queue_labels: [K] coarse labels of the memory.
        tau: temperature of the relations, in [0, inf].
        weight: w of Eq. 15, in [0, 1].

    Returns:
        [B, 1 + K] targets, each row of sum 1. float32 at least, also under autocast.
    """
    if tau < 0 or not 0 <= weight <= 1:
        raise ValueError(f"tau must be at least 0 and weight within [0, 1], got tau={tau}, weight={weight}")
    z_BK = _relations(keys, queue, labels, queue_labels, tau)
    z_BK1 = torch.cat([z_BK.new_ones(len(z_BK), 1), z_BK], dim=1)  # Eq. 14: the sample itself is 1
    targets = weight * z_BK1 / z_BK1.sum(dim=1, keepdim=True)
    targets[:, 0] += 1 - weight  # Eq. 15
    return targets


def _relations(keys: Tensor, queue: Tensor, labels: Tensor, queue_labels: Tensor, tau: float) -> Tensor:
    """Eq. 11 to 13: exp((d - max d) / tau) over the entries of the same coarse label, 0 elsewhere."""
    same_BK = labels[:, None] == queue_labels[None, :]
    if math.isinf(tau) or len(queue) == 0:
        return same_BK.to(at_least_float32(keys).dtype)
    with torch.autocast(keys.device.type, enabled=False):  # a bf16 cosine is off by 0.004, tau is 0.05
        d_BK = at_least_float32(keys) @ at_least_float32(queue).T
    d_BK = d_BK.masked_fill(~same_BK, -torch.inf)
    # The maximum runs over the masked-in entries: over zeroed ones, all-negative cosines underflow to 0 / 0.
    d_max_B, nearest_B = d_BK.max(dim=1)
    if tau == 0:
        return F.one_hot(nearest_B, len(queue)).to(d_BK.dtype) * same_BK
    d_max_B = d_max_B.masked_fill(~same_BK.any(dim=1), 0)  # no entry of this label: exp(-inf) = 0, not NaN
    return torch.exp((d_BK - d_max_B[:, None]) / tau)


def soft_contrastive_loss(queries: Tensor, keys: Tensor, queue: Tensor, targets: Tensor, *, tau0: float) -> Tensor:
    """Cross-entropy of the query's softmax over [own key, memory] with the soft targets. Eq. 5 and 8.

    Args:
        queries: [B, D] query projections, L2-normalised; the only input that needs a gradient.
        keys: [B, D] key projections, L2-normalised.
        queue: [K, D] memory, L2-normalised.
        targets: [B, 1 + K] from :func:`soft_targets`.
        tau0: temperature of the projection head.

    Returns:
        Scalar, mean over the batch.
    """
    return F.cross_entropy(contrastive_logits(queries, keys, queue, tau=tau0), targets)
