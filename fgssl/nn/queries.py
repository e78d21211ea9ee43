"""Which tokens of a view are asked: one of each window (the "random pooling" of FLSL, appendix I.2)."""

import numpy as np
import torch
from torch import Tensor


def window_tokens(grid: tuple[int, int], window: int, draws: np.ndarray) -> Tensor:
    """One token of each whole window of ``window`` x ``window``; rows and columns that fill none are left out.

    Args:
        grid: rows and columns of tokens.
        window: w; 2, 3 and 4 give 49, 16 and 9 queries of 14 x 14 tokens.
        draws: [B, Q] uniform in [0, 1), Q windows row by row: the place in each, row by row; 0 is the top left.

    Returns:
        [B, Q] int64 numbers of tokens, counted row by row.
    """
    rows, columns = grid
    top_R, left_C = np.arange(rows // window) * window, np.arange(columns // window) * window
    corner_Q = (top_R[:, None] * columns + left_C).flatten()
    down, right = np.divmod((draws * window**2).astype(np.int64), window)
    return torch.from_numpy(corner_Q + down * columns + right)


def window_count(grid: tuple[int, int], window: int) -> int:
    """Q: whole windows in a grid of (rows, columns) tokens."""
    return (grid[0] // window) * (grid[1] // window)
