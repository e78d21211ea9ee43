"""Bounding-box-aligned k-nearest-neighbour classification of patch features (FLSL, appendix F).

Shapes: B images; N test images, M training images; P = 9 patches per box; D channels; Q patches with k neighbours.
"""

import torch
from torch import Tensor

from fgssl.evaluation.knn import vote
from fgssl.evaluation.search import search

SIDE = 3  # a box is divided into SIDE x SIDE cells
PART = 2**18  # patches of the bank that are searched at a time: 0.4 GB beside those of ViT-S


def box_patches(boxes_B4: Tensor, seen_B4: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches that contain the centres of the 3 x 3 cells of a box.

    Args:
        boxes_B4: boxes (x0, y0, x1, y1) in pixels of the stored image; clipped to ``seen_B4`` first
            (eval_bbox_aligned_knn.py:310-311).
        seen_B4: part of the image that the network sees, in the same pixels. It is divided into the grid of patches.
        grid: number of rows and columns of patches.

    Returns:
        [B, 9] int64 patch numbers, row by row.
    """
    cell_S = (torch.arange(SIDE, device=boxes_B4.device, dtype=torch.float64) + 0.5) / SIDE
    places = []
    for low, count in ((1, grid[0]), (0, grid[1])):  # y, x
        first_B1, last_B1 = seen_B4[:, low, None].double(), seen_B4[:, low + 2, None].double()
        start_B1 = boxes_B4[:, low, None].double().clamp(first_B1, last_B1)
        end_B1 = boxes_B4[:, low + 2, None].double().clamp(first_B1, last_B1)
        centre_BS = start_B1 + (end_B1 - start_B1) * cell_S
        place_BS = (centre_BS - first_B1) / (last_B1 - first_B1) * count
        places.append(place_BS.floor().long().clamp(0, count - 1))
    row_BS, column_BS = places
    return (row_BS[:, :, None] * grid[1] + column_BS[:, None, :]).flatten(1)


def box_knn_right(
    queries_NPD: Tensor, labels_N: Tensor, bank_MPD: Tensor, bank_labels_M: Tensor, *, k: int, temperature: float
) -> Tensor:
    """Whether at least one patch of a test image is classified correctly, [N] bool; arguments of ``patches_right``."""
    right_NP = patches_right(queries_NPD, labels_N, bank_MPD, bank_labels_M, k=k, temperature=temperature)
    return right_NP.any(dim=1)


def patches_right(
    queries_NPD: Tensor, labels_N: Tensor, bank_MPD: Tensor, bank_labels_M: Tensor, *, k: int, temperature: float
) -> Tensor:
    """Whether each patch of a test image is classified correctly by its nearest training patches.

    Args:
        queries_NPD: patches of the test images.
        labels_N: classes of the test images.
        bank_MPD: patches of the training images.
        bank_labels_M: classes of the training images.
        k: number of nearest neighbours by cosine similarity; each votes with weight exp(cosine / temperature).
        temperature: temperature of the votes.

    Returns:
        [N, P] bool.
    """
    if not len(labels_N):  # a rank without test images
        return torch.zeros(queries_NPD.shape[:2], dtype=torch.bool, device=queries_NPD.device)
    bank_labels = bank_labels_M.repeat_interleave(bank_MPD.shape[1])
    cosine_Qk, ids_Qk = nearest(queries_NPD.flatten(0, 1), bank_MPD.flatten(0, 1), min(k, len(bank_labels)))
    predicted_Q = vote(cosine_Qk, bank_labels[ids_Qk], temperature)
    return predicted_Q.view(len(queries_NPD), -1) == labels_N[:, None]


def nearest(queries_QD: Tensor, bank: Tensor, k: int, *, at_once: int = PART) -> tuple[Tensor, Tensor]:
    """``search`` in a bank of any length, part by part, so that only a part needs memory beside the bank.

    Args:
        queries_QD: query features.
        bank: [M, D] features to search in.
        k: number of neighbours.
        at_once: rows per part.

    Returns:
        Cosines [Q, k] and rows of the bank [Q, k], nearest first, as from a single search.
    """
    best_Qk = queries_QD.new_empty(len(queries_QD), 0, dtype=torch.float64)
    ids_Qk = torch.empty_like(best_Qk, dtype=torch.int64)
    for start in range(0, len(bank), at_once):
        part = bank[start : start + at_once]
        cosine_Qk, place_Qk = search(queries_QD, part, min(k, len(part)))
        cosine_QC, ids_QC = torch.cat([best_Qk, cosine_Qk], dim=1), torch.cat([ids_Qk, place_Qk + start], dim=1)
        first_Qk = cosine_QC.sort(dim=1, descending=True, stable=True).indices[:, :k]  # the lower row among ties
        best_Qk, ids_Qk = cosine_QC.gather(1, first_Qk), ids_QC.gather(1, first_Qk)
    return best_Qk, ids_Qk
