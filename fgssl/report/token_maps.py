"""Maps of a ViT's patch tokens: similarity and layout in each layer, attention of a patch (FLSL, Figs. 3 and 4).

Shapes: B images, N = h w patches, D channels, H heads.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fgssl.errors import UserError
from fgssl.nn.feature_map import token_grid
from fgssl.report.figures import layout

LAYERS = 5  # layers in a picture, from the projection of the patches to the last block
QUERIES = (
    (0.5, 0.5),
    (0.15, 0.15),
    (0.85, 0.85),
)  # (down, right) as fractions of the image: the centre and two corners


@torch.no_grad()
def similarity_maps(network: Any, images: Tensor) -> dict[int, Tensor]:
    """Aggregated similarity score (ASS): sum of a patch's cosines with all patches, divided by the largest sum.

    Patches that belong to a large region of similar patches are bright.

    Args:
        network: a timm ViT.
        images: [B, 3, H, W], normalised.

    Returns:
        Layer to [B, h, w] in 0 to 1; negative sums are shown as 0. Layer 0 is the projection of the patches, the last
        one the tokens after the final LayerNorm; of those between at most ``LAYERS`` in all.
    """
    grid, maps = token_grid(network, images.shape[-2:]), {}
    for layer, tokens_BND in tokens_of_layers(network, images).items():
        score_BN = (tokens_BND * tokens_BND.sum(dim=1, keepdim=True)).sum(dim=-1)
        maps[layer] = (score_BN / score_BN.amax(dim=1, keepdim=True)).clamp(min=0).unflatten(1, grid)
    return maps


@torch.no_grad()
def tokens_of_layers(network: Any, images: Tensor) -> dict[int, Tensor]:
    """Layer, as of ``similarity_maps``, to patch tokens [B, N, D] of unit length."""
    shown = torch.linspace(0, depth_of(network), min(LAYERS, depth_of(network) + 1)).round().int().tolist()
    outputs = _outputs_of(network, images)
    return {layer: F.normalize(outputs[layer], dim=-1) for layer in shown}


def token_layouts(network: Any, images: Tensor) -> list[dict[int, np.ndarray]]:
    """t-SNE of the patch tokens of each image in each layer, by cosine (FLSL, Fig. 4b).

    Args:
        network: a timm ViT.
        images: [B, 3, H, W], normalised.

    Returns:
        For each image: layer, as of ``similarity_maps``, to [h, w, 2] places.
    """
    rows, columns = token_grid(network, images.shape[-2:])
    layers = tokens_of_layers(network, images)
    return [
        {
            layer: layout(tokens_BND[place].cpu().numpy(), "tsne", seed=0).reshape(rows, columns, 2)
            for layer, tokens_BND in layers.items()
        }
        for place in range(len(images))
    ]


@torch.no_grad()
def attention_maps(network: Any, images: Tensor, queries: list[int]) -> Tensor:
    """Attention of patches in the last block, by head.

    Args:
        network: a timm ViT.
        images: [B, 3, H, W], normalised.
        queries: Q patches, counted row by row.

    Returns:
        [B, Q, heads, h, w]; a map and the attention to the class token sum to 1.
    """
    depth_of(network)
    seen: list[Tensor] = []
    attention = network.blocks[-1].attn
    handle = attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.forward_features(images)
    handle.remove()
    qkv = attention.qkv(seen[0]).unflatten(-1, (3, attention.num_heads, -1))
    q_BHND, k_BHND, _ = qkv.permute(2, 0, 3, 1, 4)
    prefix = network.num_prefix_tokens
    q_BHQD = attention.q_norm(q_BHND)[:, :, [prefix + query for query in queries]]
    weights_BHQN = (q_BHQD @ attention.k_norm(k_BHND).mT * attention.scale).softmax(dim=-1)
    return weights_BHQN.transpose(1, 2)[..., prefix:].unflatten(3, token_grid(network, images.shape[-2:]))


def query_patches(grid: tuple[int, int]) -> list[int]:
    """Numbers of the patches at ``QUERIES``, row by row."""
    rows, columns = grid
    return [int(down * rows) * columns + int(right * columns) for down, right in QUERIES]


def depth_of(network: Any) -> int:
    """Number of blocks of a ViT.

    Raises:
        UserError: The network is no ViT.
    """
    blocks = getattr(network, "blocks", ())
    if not blocks or not hasattr(getattr(blocks[-1], "attn", None), "qkv"):
        raise UserError(f"maps of tokens are of timm's ViTs; {type(network).__name__} is none.")
    return len(blocks)


def _outputs_of(network: Any, images: Tensor) -> list[Tensor]:
    """Patch tokens [B, N, D] after the projection and after each block; those of the last block normalised."""
    found: list[Tensor] = []
    layers = [network.patch_embed, *network.blocks[:-1], network.norm]
    handles = [layer.register_forward_hook(lambda *call: found.append(call[-1])) for layer in layers]
    network.forward_features(images)
    for handle in handles:
        handle.remove()
    projected, *blocks = found
    return [projected.flatten(1, -2), *(tokens[:, network.num_prefix_tokens :] for tokens in blocks)]
