"""Contrastive losses against a memory of keys. Shapes: B batch, K memory length, D projection."""

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_logits(queries_BD: Tensor, keys_BD: Tensor, queue_KD: Tensor, *, tau: float) -> Tensor:
    """Cosine of each query with its own key (column 0) and with every memory entry, over the temperature.

    MoCo (He et al., CVPR 2020), Eq. 1; MaskCon (Feng & Patras, CVPR 2023), Eq. 8. Inputs are L2-normalised.

    Returns:
        [B, 1 + K] logits.
    """
    own_B1 = (queries_BD * keys_BD).sum(dim=1, keepdim=True)
    return torch.cat([own_B1, queries_BD @ queue_KD.T], dim=1) / tau


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, *, tau: float) -> Tensor:
    """InfoNCE: each query ([B, D]) has its own key ([B, D]) as the only positive, the queue ([K, D]) as negatives.

    MoCo (He et al., CVPR 2020), Eq. 1. Inputs are L2-normalised; mean over the batch.
    """
    logits_BK = contrastive_logits(queries, keys, queue, tau=tau)
    return F.cross_entropy(logits_BK, logits_BK.new_zeros(len(logits_BK), dtype=torch.long))
