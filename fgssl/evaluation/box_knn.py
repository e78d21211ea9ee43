"""Bounding-box-aligned k-nearest-neighbour classification of patch features (FLSL, appendix F).

Shapes: B images; N test images, M training images; P = 9 patches per box; D channels; Q patches with k neighbours.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from fgssl.evaluation.knn import vote
from fgssl.evaluation.search import search
from fgssl.metrics.ranking import slices

SIDE = 3  # a box is divided into SIDE x SIDE cells
PART = 2**18  # patches of the bank that are searched at a time: 0.2 GB of ViT-S in float16
AT_ONCE = 2**15  # patches of the test images whose neighbours are merged at a time


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


def patches_right(
    queries_NPD: Tensor,
    labels_N: Tensor,
    bank: Iterable[tuple[Tensor, Tensor]],
    labels_of_rows: Tensor,
    *,
    k: int,
    temperature: float,
) -> Tensor:
    """Whether each patch of a test image is classified correctly by its nearest training patches.

    Args:
        queries_NPD: patches of the test images.
        labels_N: classes of the test images.
        bank: parts of the bank: patches [M, P, D] of training images and their data-set rows [M]. A part is searched
            and then forgotten.
        labels_of_rows: class of each row of the data set.
        k: number of nearest neighbours by cosine similarity; each votes with weight exp(cosine / temperature).
        temperature: temperature of the votes.

    Returns:
        [N, P] bool.
    """
    patches = queries_NPD.shape[1]
    nearest = Nearest(queries_NPD.flatten(0, 1), k)
    for patches_MPD, rows_M in bank:
        ids_MP = rows_M[:, None] * patches + torch.arange(patches, device=rows_M.device)
        nearest.add(patches_MPD.flatten(0, 1), ids_MP.flatten())
    if not len(labels_N):  # a rank without test images
        return torch.zeros(queries_NPD.shape[:2], dtype=torch.bool, device=queries_NPD.device)
    predicted_Q = vote(nearest.cosine_Qk, labels_of_rows[nearest.ids_Qk // patches], temperature)
    return predicted_Q.view(len(queries_NPD), -1) == labels_N[:, None]


class Nearest:
    """The nearest rows of a bank that is searched part by part, so that only a part of it needs memory.

    The order of the parts does not matter: among ties the lower number of a row comes first.

    Args:
        queries_QD: query features.
        k: number of neighbours.

    Attributes:
        cosine_Qk: float64 cosines of the neighbours so far, nearest first; at most k columns.
        ids_Qk: int64 numbers of their rows.
    """

    def __init__(self, queries_QD: Tensor, k: int):
        self.queries_QD, self.k = queries_QD, k
        self.cosine_Qk = queries_QD.new_empty(len(queries_QD), 0, dtype=torch.float64)
        self.ids_Qk = torch.empty_like(self.cosine_Qk, dtype=torch.int64)

    def add(self, part_GD: Tensor, ids_G: Tensor) -> None:
        """Search in a part of the bank, of any precision, whose rows have the numbers ``ids_G``."""
        order = ids_G.argsort()  # search takes the lower place among ties
        part_GD, ids_G = part_GD[order].to(self.queries_QD.dtype), ids_G[order]
        found = [
            self._merged(some, *search(self.queries_QD[some], part_GD, min(self.k, len(part_GD))), ids_G)
            for some in slices(len(self.queries_QD), AT_ONCE)
        ]
        if found:
            self.cosine_Qk, self.ids_Qk = (torch.cat(columns) for columns in zip(*found, strict=True))

    def _merged(self, some: slice, cosine_Bk: Tensor, place_Bk: Tensor, ids_G: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest of a block of queries among those so far and those of a part."""
        cosine_BC = torch.cat([self.cosine_Qk[some], cosine_Bk], dim=1)
        ids_BC, order = torch.cat([self.ids_Qk[some], ids_G[place_Bk]], dim=1).sort(dim=1)
        best_BC, order = cosine_BC.gather(1, order).sort(dim=1, descending=True, stable=True)
        return best_BC[:, : self.k], ids_BC.gather(1, order[:, : self.k])
