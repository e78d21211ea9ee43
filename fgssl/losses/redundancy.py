"""Losses on the statistics of a batch of projections: Barlow Twins and VICReg.

Shapes: B batch, over all processes; D projection.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fgssl.losses.precision import at_least_float32


def barlow_twins(z1_BD: Tensor, z2_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Invariance and redundancy of the cross-correlation matrix C of two views (Zbontar et al., ICML 2021, Eq. 1, 2).

    C = z1^T z2 / B, where each channel of z1 and of z2 has mean 0 and variance 1 in the batch. The variance is the mean
    square, as in Eq. 2 and in the released code's BatchNorm (which adds 1e-5 to it); the paper's pseudo-code divides by
    the standard deviation with B - 1, which multiplies C by (B - 1) / B.

    Args:
        z1_BD: projections of view 1, not normalised.
        z2_BD: projections of view 2.

    Returns:
        sum_i (1 - C_ii)^2, and sum_i sum_{j != i} C_ij^2.
    """
    z1_BD, z2_BD = (F.batch_norm(at_least_float32(z), None, None, training=True) for z in (z1_BD, z2_BD))
    batch = len(z1_BD)
    diagonal_D = (z1_BD * z2_BD).sum(dim=0) / batch
    every = squared_norm_of_product(z1_BD, z2_BD) / batch**2
    return (1 - diagonal_D).square().sum(), every - diagonal_D.square().sum()


def invariance(z1_BD: Tensor, z2_BD: Tensor) -> Tensor:
    """VICReg's s(Z, Z') (Bardes, Ponce & LeCun, ICLR 2022, Eq. 5) as in its code: mean squared difference.

    Mean over batch and channels; Eq. 5 sums over the channels, which is D times as much.
    """
    return F.mse_loss(at_least_float32(z1_BD), at_least_float32(z2_BD))


def variance(z_BD: Tensor, *, gamma: float = 1.0, eps: float = 1e-4) -> Tensor:
    """VICReg's v(Z) (Eq. 1, 2): hinge on the standard deviation of each channel, mean over the channels.

    Args:
        z_BD: projections of a view.
        gamma: standard deviation from which on a channel costs nothing.
        eps: number added to the variance (with B - 1) before the square root.
    """
    return F.relu(gamma - (at_least_float32(z_BD).var(dim=0) + eps).sqrt()).mean()


def covariance(z_BD: Tensor) -> Tensor:
    """VICReg's c(Z) (Eq. 3, 4): squares of the covariances (with B - 1) of different channels, summed, over D."""
    z_BD = at_least_float32(z_BD)
    z_BD = z_BD - z_BD.mean(dim=0)
    every = squared_norm_of_product(z_BD, z_BD) - z_BD.square().sum(dim=0).square().sum()
    return every / (len(z_BD) - 1) ** 2 / z_BD.shape[1]


def squared_norm_of_product(a_BD: Tensor, b_BD: Tensor) -> Tensor:
    """Sum of the squares of all elements of a^T b [D, D].

    A batch smaller than D has the smaller matrices a a^T and b b^T, whose inner product is the same number: at B = 256
    and D = 8192, a sixteenth of the work, and 0.5 MB instead of 268 MB.
    """
    with torch.autocast(a_BD.device.type, enabled=False):  # differences of large sums follow
        if len(a_BD) < a_BD.shape[1]:
            return ((a_BD @ a_BD.T) * (b_BD @ b_BD.T)).sum()
        return (a_BD.T @ b_BD).square().sum()
