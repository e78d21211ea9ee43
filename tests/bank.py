"""A search in a bank of patches, part by part, as the bounding-box k-NN makes it."""

import torch
from torch import Tensor

from fgssl.evaluation.box_knn import PART, Nearest


def nearest(queries_QD: Tensor, bank_GD: Tensor, k: int, *, at_once: int = PART) -> tuple[Tensor, Tensor]:
    """Cosines [Q, k] and rows of the bank [Q, k], nearest first, with ``at_once`` rows a part."""
    found = Nearest(queries_QD, k)
    ids_G = torch.arange(len(bank_GD), device=bank_GD.device)
    for part_GD, part_G in zip(bank_GD.split(at_once), ids_G.split(at_once), strict=True):
        found.add(part_GD, part_G)
    return found.cosine_Qk, found.ids_Qk
