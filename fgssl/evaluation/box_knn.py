"""Bounding-box-aligned k-nearest-neighbour classification (FLSL, appendix F): patches of the object, not the image.

Shapes: B images, N test and M training images, P = 9 patches of a box, D channels.
"""

import torch
from torch import Tensor

from fgssl.evaluation.knn import knn_predict

SIDE = 3  # a box is divided into SIDE x SIDE cells


def box_patches(boxes_B4: Tensor, seen_B4: Tensor, grid: tuple[int, int]) -> Tensor:
    """The patches nearest to the centres of a box's 3 x 3 cells.

    Args:
        boxes_B4: the object's box (x0, y0, x1, y1), pixels of the stored image.
        seen_B4: the part of the image that the network sees, likewise; it fills the grid of patches. A centre outside
            of it counts to the nearest patch.
        grid: rows and columns of patches.

    Returns:
        [B, 9] int64 numbers of patches, counted row by row.
    """
    cell_S = (torch.arange(SIDE, device=boxes_B4.device, dtype=torch.float64) + 0.5) / SIDE
    places = []
    for low, count in ((1, grid[0]), (0, grid[1])):  # y, x
        start_B1, end_B1 = boxes_B4[:, low, None].double(), boxes_B4[:, low + 2, None].double()
        first_B1, last_B1 = seen_B4[:, low, None].double(), seen_B4[:, low + 2, None].double()
        centre_BS = start_B1 + (end_B1 - start_B1) * cell_S
        place_BS = (centre_BS - first_B1) / (last_B1 - first_B1) * count
        places.append(place_BS.floor().long().clamp(0, count - 1))
    row_BS, column_BS = places
    return (row_BS[:, :, None] * grid[1] + column_BS[:, None, :]).flatten(1)


def box_knn_accuracy(
    queries_NPD: Tensor, labels_N: Tensor, bank_MPD: Tensor, bank_labels_M: Tensor, *, k: int, temperature: float
) -> float:
    """Share of the test images of which any patch is classified right by its neighbours among all training patches.

    Args:
        queries_NPD, labels_N: the test images' patches and classes.
        bank_MPD, bank_labels_M: the training images'.
        k: voters of a patch, of cosine similarity; each votes with exp(cosine / temperature).
        temperature: of the votes.
    """
    bank_labels = bank_labels_M.repeat_interleave(bank_MPD.shape[1])
    flat = (queries_NPD.flatten(0, 1), bank_MPD.flatten(0, 1), bank_labels)
    predicted_NP = knn_predict(*flat, k=min(k, len(bank_labels)), temperature=temperature).view(len(queries_NPD), -1)
    return (predicted_NP == labels_N[:, None].to(predicted_NP)).any(dim=1).double().mean().item()
