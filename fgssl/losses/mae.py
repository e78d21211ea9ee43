"""MAE: patches of images, and the loss on the hidden ones (He et al., CVPR 2022, section 3).

Shapes: B batch, N patches of an image, M of them hidden, P values of a patch: its pixels times 3 channels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fgssl.losses.precision import at_least_float32

EPS = 1e-6  # added to the variance of a patch


def reconstruction_loss(predicted_BMP: Tensor, patches_BNP: Tensor, masked_BM: Tensor, *, normalise: bool) -> Tensor:
    """Mean squared error of the hidden patches; the visible ones do not count.

    Args:
        predicted_BMP: [B, M, P] predicted values of the hidden patches.
        patches_BNP: [B, N, P] all patches of the images, as ``patchify`` gives them.
        masked_BM: [B, M] int64 numbers of the hidden patches.
        normalise: compare with patches of mean 0 and variance 1. A prediction of 0 then has the loss (P - 1) / P.

    Returns:
        Scalar, mean over images, hidden patches and values.
    """
    target_BMP = at_least_float32(patches_BNP).take_along_dim(masked_BM[..., None], dim=1)
    if normalise:
        mean_BM1, deviation_BM1 = patch_statistics(target_BMP)
        target_BMP = (target_BMP - mean_BM1) / deviation_BM1
    return F.mse_loss(at_least_float32(predicted_BMP), target_BMP)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch [..., P] over its values of all channels, each [..., 1].

    The variance is the unbiased one, plus 1e-6 (MAE's code).
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + EPS).sqrt()


def patchify(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """Cut images into patches.

    Args:
        images: [B, 3, H, W].
        patch: height and width of a patch, px; H and W are multiples of them.

    Returns:
        [B, N, P], patches row by row; the values of a patch row by row, the channels of a pixel side by side.
    """
    height, width = patch
    x = images.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # [B, 3, rows, height, columns, width]
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Inverse of ``patchify``.

    Args:
        patches: [B, N, P].
        patch: height and width of a patch, px.
        grid: rows and columns of patches.

    Returns:
        [B, 3, H, W].
    """
    x = patches.unflatten(2, (*patch, -1)).unflatten(1, grid)  # [B, rows, columns, height, width, 3]
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
