"""Query tokens of FLSL: one token of each window of a view (the "random pooling" of appendix I.2)."""

import numpy as np
import torch
from torch import Tensor


def window_tokens(grid: tuple[int, int], window: int, draws: np.ndarray, corners: np.ndarray) -> Tensor:
    """Numbers of the query tokens: one of each whole window of ``window`` x ``window`` tokens.

    Where the windows do not cover the grid, they start at its first or its last row and column, as ``corners`` says:
    drawn at random, every token can be a query (main_flsl.py:696-707).

    Args:
        grid: rows and columns of tokens.
        window: side of a window; 2, 3 and 4 give 49, 16 and 9 queries of 14 x 14 tokens.
        draws: [B, Q] uniform in [0, 1), Q windows row by row: the place in each, row by row; 0 is the top left.
        corners: [B, 2] bool, whether the windows end at the last row, and at the last column, of the grid.

    Returns:
        [B, Q] int64 numbers of tokens, counted row by row.
    """
    rows, columns = grid
    top_R, left_C = np.arange(rows // window) * window, np.arange(columns // window) * window
    corner_Q = (top_R[:, None] * columns + left_C).flatten()
    shift_B = corners @ [rows % window * columns, columns % window]
    down, right = np.divmod((draws * window**2).astype(np.int64), window)
    return torch.from_numpy(corner_Q + shift_B[:, None] + down * columns + right)


def window_count(grid: tuple[int, int], window: int) -> int:
    """Q: number of whole windows in a grid of (rows, columns) tokens."""
    return (grid[0] // window) * (grid[1] // window)
