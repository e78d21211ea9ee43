"""KoLeo: features apart from each other (Sablayrolles et al., ICLR 2019; DINOv2: Oquab et al., TMLR 2024)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fgssl.losses.precision import at_least_float32

EPS = 1e-8  # added to differences and distances


def koleo(features_BF: Tensor) -> Tensor:
    """Minus the mean logarithm of the distance of each feature, at unit length, to its nearest neighbour in the batch.

    The differential entropy of Kozachenko and Leonenko, up to a constant and its sign. Gradient flows to both features.

    Args:
        features_BF: [B, F] features of B different images, at least 2.

    Returns:
        Scalar, log(1/2) or more: two features opposite to each other.
    """
    unit_BF = F.normalize(at_least_float32(features_BF), dim=1, eps=EPS)
    with torch.no_grad():
        nearest_B = (unit_BF @ unit_BF.T).fill_diagonal_(-2).argmax(dim=1)
    distance_B = F.pairwise_distance(unit_BF, unit_BF[nearest_B], eps=EPS)
    return -(distance_B + EPS).log().mean()
