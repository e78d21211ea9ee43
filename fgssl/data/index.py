"""Rows, labels and class names of a data set, read without opening an image."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

DIFFICULT = 255  # in ``targets``: the class is shown by difficult objects alone, which evaluation leaves out


@dataclass(frozen=True)
class Index:
    """The rows of one data set.

    Attributes:
        name: short name of the data set, as in ``fgssl data list``.
        paths: [N] absolute image paths (str), or image names where ``pixels`` or ``images`` hold the images.
        fine: [N] int64 fine labels, positions in ``fine_names``; -1 for images without a label.
        fine_names: fine class names, in label order.
        split: [N] str, official part of each row: ``"train"``, ``"val"`` or ``"test"``.
        coarse: [N] int64 coarse labels, or None.
        coarse_names: coarse class names, in label order.
        boxes: [N, 4] float32 bounding boxes (x0, y0, x1, y1) in pixels of the stored image, or None.
        pixels: [N, H, W, 3] uint8 images held in memory (digits, CIFAR batches), or None for files.
        images: sequence of N (image, label) items, such as a torch Dataset, that holds the images; or None for files.
        targets: [N, C] uint8 of several classes an image (VOC): 1 for present, 0 for absent, DIFFICULT; or None.
    """

    name: str
    paths: np.ndarray
    fine: np.ndarray
    fine_names: tuple[str, ...]
    split: np.ndarray
    coarse: np.ndarray | None = None
    coarse_names: tuple[str, ...] = ()
    boxes: np.ndarray | None = None
    pixels: np.ndarray | None = None
    targets: np.ndarray | None = None
    images: Any = None

    def __len__(self) -> int:
        return len(self.fine)

    def rows(self, part: str) -> np.ndarray:
        """Row ids of an official part, int64, ascending."""
        return np.flatnonzero(self.split == part)


def rows_hash(rows: np.ndarray) -> str:
    """Hash of row ids, eight characters; equal for equal rows."""
    return hashlib.sha256(np.ascontiguousarray(rows, dtype="<i8").tobytes()).hexdigest()[:8]
