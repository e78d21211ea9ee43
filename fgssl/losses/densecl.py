"""Losses of DenseCL (Wang et al., CVPR 2021). Shapes: B batch, N positions, F features, D projection, K memory."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fgssl.losses.contrastive import info_nce


@torch.no_grad()
def correspondence(f1_BNF: Tensor, f2_BNF: Tensor) -> Tensor:
    """For each position of view 1 the position of view 2 with the largest cosine of backbone features.

    Args:
        f1_BNF: backbone features of view 1.
        f2_BNF: backbone features of view 2.

    Returns:
        [B, N] int64.
    """
    cosine_BNN = F.normalize(f1_BNF, dim=-1) @ F.normalize(f2_BNF, dim=-1).mT
    return cosine_BNN.argmax(dim=-1)


def dense_info_nce(r_BND: Tensor, t_BND: Tensor, c_BN: Tensor, queue_KD: Tensor, *, tau: float) -> Tensor:
    """InfoNCE of each position of view 1 with its position of view 2 as the positive.

    Args:
        r_BND: dense projections of view 1, L2-normalised.
        t_BND: dense projections of view 2, L2-normalised.
        c_BN: position of view 2 for each position of view 1, from ``correspondence``.
        queue_KD: memory of mean dense projections, L2-normalised; the negatives.
        tau: temperature.

    Returns:
        Scalar, mean over batch and positions.
    """
    positives_BND = t_BND.take_along_dim(c_BN[..., None], dim=1)
    return info_nce(r_BND.flatten(0, 1), positives_BND.flatten(0, 1), queue_KD, tau=tau)
