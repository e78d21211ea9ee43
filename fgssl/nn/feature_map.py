"""Pooled and patch features of any network with timm's interface."""

from typing import Any

import torch
from torch import Tensor

from fgssl.errors import UserError


def last_features(network: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled features and the feature map of a network, from one forward pass.

    Args:
        network: timm network without classifier (``Backbone.build``).
        images: [B, 3, H, W].

    Returns:
        Pooled features [B, F], equal to ``network(images)``, and the map before pooling, [B, F', H', W'], without class
        and register tokens. F' differs from F in the few networks whose head widens the features.
    """
    raw = network.forward_features(images)
    return pooled(network, raw), as_map(network, raw, images)


def pooled(network: Any, raw: Tensor) -> Tensor:
    """Pooled features [B, F] of the output of ``forward_features``.

    Raises:
        UserError: a network that is not of timm lacks timm's ``forward_head``.
    """
    if not hasattr(network, "forward_head"):
        raise UserError(
            f"{type(network).__name__} lacks forward_head(features, pre_logits), by which networks of timm pool the "
            "output of forward_features. Add this method to its class."
        )
    return network.forward_head(raw, pre_logits=True)


def as_map(network: Any, raw: Tensor, images: Tensor) -> Tensor:
    """Convert the output of ``forward_features(images)`` to a map [B, F, H', W'] (ViT: tokens, Swin: channels last).

    Raises:
        UserError: the tokens do not form a grid.
    """
    if raw.ndim == 3:  # [B, prefix + N, F]
        tokens_BNF = raw[:, getattr(network, "num_prefix_tokens", 0) :]
        height, width = token_grid(network, images.shape[-2:])
        if height * width != tokens_BNF.shape[1]:
            raise UserError(
                f"{type(network).__name__} gives {tokens_BNF.shape[1]} tokens for an image of "
                f"{tuple(images.shape[-2:])} px, which is not a grid of {height} x {width}: it has no patch map."
            )
        return tokens_BNF.transpose(1, 2).unflatten(2, (height, width))
    if getattr(network, "output_fmt", "NCHW") == "NHWC":
        return raw.permute(0, 3, 1, 2)
    return raw


def token_grid(network: Any, size: torch.Size | tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patch tokens of an image of ``size`` (height, width)."""
    several = not hasattr(network, "patch_embed")  # Twins: one patch embedding a stage
    patch = network.feature_info[-1]["reduction"] if several else network.patch_embed.patch_size
    patch_h, patch_w = (patch, patch) if isinstance(patch, int) else patch
    return size[0] // patch_h, size[1] // patch_w
