"""Patch features of any timm network: what dense methods and dense evaluators see."""

from typing import Any

import torch
from torch import Tensor

from fgssl.errors import UserError


def last_features(network: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """The network's last features, pooled and by place, in one forward.

    Args:
        network: a timm network without classifier (``Backbone.build``).
        images: [B, 3, H, W].

    Returns:
        Pooled [B, F], what ``network(images)`` gives; and the map it was pooled from, [B, F', H', W'], without class
        and register tokens. F' is F but for a few networks whose head widens.
    """
    raw = network.forward_features(images)
    pooled_BF = network.forward_head(raw, pre_logits=True)
    return pooled_BF, as_map(network, raw, images)


def as_map(network: Any, raw: Tensor, images: Tensor) -> Tensor:
    """What ``forward_features`` gives of ``images``, as [B, F, H', W']; ViTs give tokens, Swin the channels last.

    Raises:
        UserError: a list of tokens that no grid explains.
    """
    if raw.ndim == 3:  # [B, prefix + N, F]
        tokens_BNF = raw[:, getattr(network, "num_prefix_tokens", 0) :]
        height, width = token_grid(network, images.shape[-2:])
        if height * width != tokens_BNF.shape[1]:
            raise UserError(
                f"{type(network).__name__} gives {tokens_BNF.shape[1]} tokens of an image of {tuple(images.shape[-2:])}"
                f" px, which are no grid of {height} x {width}: it has no map of patches."
            )
        return tokens_BNF.transpose(1, 2).unflatten(2, (height, width))
    if getattr(network, "output_fmt", "NCHW") == "NHWC":
        return raw.permute(0, 3, 1, 2)
    return raw


def token_grid(network: Any, size: torch.Size | tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patch tokens of an image of ``size`` (height, width)."""
    several = not hasattr(network, "patch_embed")  # stages with an embedding each (Twins)
    patch = network.feature_info[-1]["reduction"] if several else network.patch_embed.patch_size
    patch_h, patch_w = (patch, patch) if isinstance(patch, int) else patch
    return size[0] // patch_h, size[1] // patch_w
