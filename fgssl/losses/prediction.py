"""Losses of a predictor: one view's prediction of the other view's projection. Shapes: B batch, D projection."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fgssl.losses.precision import at_least_float32


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """D(p, z) = -p / |p| . z / |z| (SimSiam: Chen & He, CVPR 2021, Eq. 1).

    Args:
        prediction: [B, D] predictions p of one view.
        target: [B, D] projections z of the other view; the caller detaches them.

    Returns:
        Scalar in -1 to 1, mean over the batch.
    """
    return -F.cosine_similarity(at_least_float32(prediction), at_least_float32(target), dim=1).mean()


def normalised_regression(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared distance of prediction and target of unit length, 2 - 2 cos(q, z') (BYOL: Grill et al., NeurIPS 2020,
    Eq. 2).

    Args:
        prediction: [B, D] predictions q(z) of one view.
        target: [B, D] projections z' of the other view; the caller detaches them.

    Returns:
        Scalar in 0 to 4, mean over the batch.
    """
    return 2 + 2 * negative_cosine(prediction, target)


@torch.no_grad()
def channel_deviation(z_BD: Tensor) -> Tensor:
    """Standard deviation over the batch of a channel of z / |z|, mean over the channels (SimSiam, Fig. 2).

    It is 0 if all outputs are equal, a collapse, and about 1 / sqrt(D) if they spread evenly.
    """
    return F.normalize(at_least_float32(z_BD), dim=1).std(dim=0).mean()
