"""Contrastive losses, against a memory of keys or within a batch. Shapes: B batch, K memory length, D projection."""

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_logits(queries_BD: Tensor, keys_BD: Tensor, queue_KD: Tensor, *, tau: float) -> Tensor:
    """Cosine similarity of each query with its own key (column 0) and with each memory entry, divided by ``tau``.

    MoCo (He et al., CVPR 2020), Eq. 1; MaskCon (Feng & Patras, CVPR 2023), Eq. 8.

    Args:
        queries_BD: query projections, L2-normalised.
        keys_BD: key projections, L2-normalised.
        queue_KD: memory, L2-normalised.
        tau: temperature.

    Returns:
        [B, 1 + K] logits.
    """
    own_B1 = (queries_BD * keys_BD).sum(dim=1, keepdim=True)
    return torch.cat([own_B1, queries_BD @ queue_KD.T], dim=1) / tau


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, *, tau: float) -> Tensor:
    """InfoNCE: the query's own key is the positive, the memory entries are the negatives (MoCo, Eq. 1).

    Args:
        queries: [B, D] query projections, L2-normalised.
        keys: [B, D] key projections, L2-normalised.
        queue: [K, D] memory, L2-normalised.
        tau: temperature.

    Returns:
        Scalar, mean over the batch.
    """
    logits_BK = contrastive_logits(queries, keys, queue, tau=tau)
    return F.cross_entropy(logits_BK, logits_BK.new_zeros(len(logits_BK), dtype=torch.long))


def nt_xent(first: Tensor, second: Tensor, *, tau: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy: the other view of an image is the positive of a view, all views of
    the other images are its negatives (SimCLR: Chen et al., ICML 2020, Eq. 1).

    Args:
        first: [B, D] projections of the first views, L2-normalised.
        second: [B, D] projections of the second views of the same images, L2-normalised.
        tau: temperature.

    Returns:
        Scalar, mean over the 2B views.
    """
    z_ND = torch.cat([first, second])  # N = 2B
    logits_NN = (z_ND @ z_ND.T / tau).fill_diagonal_(-torch.inf)
    other_view_N = torch.arange(len(z_ND), device=z_ND.device).roll(len(first))
    return F.cross_entropy(logits_NN, other_view_N)
