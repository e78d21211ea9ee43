"""Fixed positions of a ViT's patches, by sines and cosines."""

from typing import Any

import torch
from torch import Tensor


def sincos_positions(rows: int, columns: int, dim: int) -> Tensor:
    """Sines and cosines of the column, then of the row, each at dim / 4 wavelengths from 2 pi to 20,000 pi (MAE, DeiT).

    Args:
        rows, columns: of the grid of patches.
        dim: a multiple of 4.

    Returns:
        [rows * columns, dim] float64, row by row.
    """
    y_N, x_N = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    rate_d = 10_000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = [place.flatten()[:, None] * rate_d for place in (x_N, y_N)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


@torch.no_grad()
def fix_positions(network: Any) -> None:
    """Give a timm ViT without class token fixed sin-cos positions; with ``dynamic_img_size`` timm interpolates them."""
    rows, columns = network.patch_embed.grid_size
    network.pos_embed.copy_(sincos_positions(rows, columns, network.pos_embed.shape[-1])[None])
    network.pos_embed.requires_grad_(False)
