"""Fixed sine-cosine position embeddings of a ViT."""

from typing import Any

import torch
from torch import Tensor


def sincos_positions(rows: int, columns: int, dim: int) -> Tensor:
    """Sine-cosine embeddings of a grid of patches: sines and cosines of the column, then of the row (MAE's code).

    Each half has dim / 4 wavelengths from 2 pi to 20,000 pi patches.

    Args:
        rows: rows of the grid.
        columns: columns of the grid.
        dim: width of the embedding, a multiple of 4.

    Returns:
        [rows * columns, dim] float64, row by row.
    """
    y_N, x_N = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    rate_d = 10_000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = [place.flatten()[:, None] * rate_d for place in (x_N, y_N)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


@torch.no_grad()
def fix_positions(network: Any) -> None:
    """Replace the position embeddings of a timm ViT by fixed sines and cosines, in place.

    Those of class and register tokens, if there are any, are 0 (MAE's code).

    With ``dynamic_img_size`` timm interpolates them to other image sizes, with antialiasing. FLSL's code interpolates
    without it: the 6 x 6 embeddings of a 96 px view differ by 5 %, those of larger grids by 1 %.
    """
    rows, columns = network.patch_embed.grid_size
    _, count, dim = network.pos_embed.shape
    network.pos_embed[:, : count - rows * columns] = 0
    network.pos_embed[:, count - rows * columns :] = sincos_positions(rows, columns, dim).to(network.pos_embed)
    network.pos_embed.requires_grad_(False)
