"""CIFARtoy: eight classes of CIFAR-10 in two coarse groups (MaskCon, section 4.2)."""

from dataclasses import replace
from typing import Literal

import numpy as np

from fgssl.data.datasets.base import Published
from fgssl.data.datasets.cifar10 import CIFAR10
from fgssl.data.datasets.folder import add_coarse
from fgssl.data.index import Index
from fgssl.errors import UserError, did_you_mean

# The classes of coarse group A; the other four are group B. Deer and frog are left out.
GROUP_A = {
    "good": ("airplane", "automobile", "ship", "truck"),
    "bad": ("airplane", "automobile", "bird", "cat"),
    "bad_code": ("airplane", "automobile", "cat", "dog"),
}
LEFT_OUT = ("deer", "frog")


class CIFARToy(CIFAR10):
    """Eight CIFAR-10 classes, seen through two coarse groups; 40,000 training and 8,000 test images.

    Args:
        root: folder of CIFAR-10's pickled batches, or of its images as ``train/<class>/`` and ``test/<class>/``; null:
            ``$FGSSL_DATA/cifar-10-batches-py``.
        variant: grouping of the classes. ``good``: vehicles and animals. ``bad``: airplane, automobile, bird, cat in
            group A (the paper's text). ``bad_code``: airplane, automobile, cat, dog in group A (the released code).
        partial: accept a copy with other counts than the published ones, such as a subset, with a warning.
    """

    name = "cifartoy"
    published = Published({"train": 40_000, "test": 8_000}, fine=8, coarse=2)

    def __init__(
        self,
        root: str | None = None,
        variant: Literal["good", "bad", "bad_code"] = "good",
        partial: bool = False,
    ):
        super().__init__(root, partial)
        if variant not in GROUP_A:
            raise UserError(
                f"cifartoy: no variant '{variant}' (good, bad or bad_code).{did_you_mean(variant, GROUP_A)}"
            )
        self.variant = variant

    def _read(self) -> Index:
        index = keep_classes(super()._read(), lambda name: name not in LEFT_OUT)
        groups = {name: "A" if name in GROUP_A[self.variant] else "B" for name in index.fine_names}
        return add_coarse(index, groups, source=f"of variant {self.variant}")


def keep_classes(index: Index, keep) -> Index:
    """Only the rows whose class name passes ``keep``, labels counted anew from 0."""
    kept = [label for label, name in enumerate(index.fine_names) if keep(name)]
    rows = np.isin(index.fine, kept)
    return replace(
        index,
        paths=index.paths[rows],
        fine=np.searchsorted(kept, index.fine[rows]).astype(np.int64),
        fine_names=tuple(index.fine_names[label] for label in kept),
        split=index.split[rows],
        pixels=None if index.pixels is None else index.pixels[rows],
    )
