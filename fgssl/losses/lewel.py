"""Aligned features of LEWEL (Huang et al., CVPR 2022). Shapes: B batch, N positions, F feature, D maps, P parts.

The loss itself is BYOL's, ``prediction.normalised_regression``.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fgssl.losses.precision import at_least_float32


def alignment_maps(z_BND: Tensor, *, tau: float) -> Tensor:
    """Alignment maps: each of the D channels of the positions' projections as a distribution over the positions.

    Args:
        z_BND: projections of the positions of a feature map; made of unit length here.
        tau: temperature of the softmax.

    Returns:
        [B, N, D] weights, with sum 1 over the positions.
    """
    return (F.normalize(at_least_float32(z_BND), dim=2) / tau).softmax(dim=1)


def aligned_features(f_BNF: Tensor, maps_BND: Tensor, *, heads: int) -> Tensor:
    """Features of P = D / ``heads`` parts of an image, each a weighted sum over the positions.

    Features and maps are cut into ``heads`` groups of neighbouring channels. Part p takes group h of the features with
    the p-th map of group h as weights.

    Args:
        f_BNF: features of the positions.
        maps_BND: weights, from ``alignment_maps``.
        heads: number of groups; F and D are multiples of it.

    Returns:
        [B, P, F].
    """
    f_BNHG, maps_BNHP = f_BNF.unflatten(2, (heads, -1)), maps_BND.to(f_BNF.dtype).unflatten(2, (heads, -1))
    return torch.einsum("bnhg,bnhp->bphg", f_BNHG, maps_BNHP).flatten(2)


@torch.no_grad()
def map_peak(maps_BND: Tensor) -> Tensor:
    """Largest weight of an alignment map in units of the uniform one, mean over images and maps.

    1: the maps are flat, and all parts are the average over the positions.
    """
    return maps_BND.amax(dim=1).mean() * maps_BND.shape[1]
