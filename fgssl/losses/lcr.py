"""Losses of LCR (Shu et al., CVPR 2023). Shapes: B batch, F features, H x W positions of the feature map."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fgssl.losses.precision import at_least_float32

Over = Literal["rows", "map"]


def gradcam(map_BFHW: Tensor, gradient_BFHW: Tensor) -> Tensor:
    """GradCAM of a loss: which positions of a feature map the loss depends on.

    ReLU of the sum over features of the map times the gradient of the loss with respect to it.

    Args:
        map_BFHW: feature map.
        gradient_BFHW: gradient of the loss with respect to it.

    Returns:
        [B, H, W], at least 0, without gradient.
    """
    return (at_least_float32(map_BFHW.detach()) * at_least_float32(gradient_BFHW.detach())).sum(dim=1).relu()


def cam_distribution(cam_BHW: Tensor, *, tau: float, over: Over) -> Tensor:
    """Softmax of a GradCAM divided by ``tau``, over each row of positions or over the whole map; [B, R, N]."""
    return (_parts(cam_BHW, over) / tau).softmax(dim=-1)


def attention_fit(attention_BHW: Tensor, cam_BHW: Tensor, *, tau: float, over: Over) -> Tensor:
    """Kullback-Leibler divergence of an attention map from a GradCAM, both as distributions over positions.

    Args:
        attention_BHW: attention weights, from 0 to 1.
        cam_BHW: GradCAM, a target without gradient.
        tau: temperature of both softmaxes.
        over: ``map``: one distribution an image; ``rows``: one distribution a row of the map.

    Returns:
        Scalar, in nats: sum over the images, and over the rows with ``rows``.
    """
    log_attention_BRN = (_parts(at_least_float32(attention_BHW), over) / tau).log_softmax(dim=-1)
    target_BRN = cam_distribution(cam_BHW, tau=tau, over=over)
    return F.kl_div(log_attention_BRN, target_BRN, reduction="sum")


@torch.no_grad()
def cam_peak(cam_BHW: Tensor, *, tau: float, over: Over) -> Tensor:
    """Largest probability of the GradCAM's distribution in units of the uniform one, mean over images and rows.

    1: the GradCAM is flat, and there is nothing to fit.
    """
    target_BRN = cam_distribution(cam_BHW, tau=tau, over=over)
    return target_BRN.amax(dim=-1).mean() * target_BRN.shape[-1]


def _parts(maps_BHW: Tensor, over: Over) -> Tensor:
    """[B, R, N]: R distributions of N positions."""
    return maps_BHW if over == "rows" else maps_BHW.flatten(1)[:, None]
