"""The handwritten digits that ship with scikit-learn: real images that need no download."""

import numpy as np

from fgssl.data.datasets.base import DataSet, Published
from fgssl.data.index import Index

# Coarse groups by the shape of the stroke; there are no published ones.
STROKES = {"loop": (0, 6, 8, 9), "straight": (1, 4, 7), "curve": (2, 3, 5)}
SIZE = 32  # px; the originals are 8 x 8
TEST_SHARE = 0.25


class Digits(DataSet):
    """1,797 handwritten digits (Alpaydin & Kaynak, 1998), enlarged to 32 x 32 px.

    Coarse label: shape of the stroke: loop (0, 6, 8, 9), straight (1, 4, 7) or curve (2, 3, 5). A fixed quarter of each
    class is the test part.
    """

    name = "digits"
    folder = "digits"
    layout = ()
    published = Published({"train": 1347, "test": 450}, fine=10, coarse=3)
    source = "comes with scikit-learn (sklearn.datasets.load_digits); nothing to download"
    licence = "UCI Optical Recognition of Handwritten Digits, CC BY 4.0"

    def _read(self) -> Index:
        from sklearn.datasets import load_digits

        digits = load_digits()
        fine = digits.target.astype(np.int64)
        coarse_of = np.empty(10, dtype=np.int64)
        for group, members in enumerate(STROKES.values()):
            coarse_of[list(members)] = group
        return Index(
            name=self.name,
            paths=np.array([f"digit {row:04d}" for row in range(len(fine))]),
            fine=fine,
            fine_names=tuple("0123456789"),
            split=_split(fine),
            coarse=coarse_of[fine],
            coarse_names=tuple(STROKES),
            pixels=np.stack([_enlarge(image) for image in digits.images]),
        )


def _split(fine: np.ndarray) -> np.ndarray:
    """Mark a quarter of each class as test, the same rows always."""
    draw = np.random.default_rng(0).random(len(fine))
    split = np.full(len(fine), "train")
    for label in np.unique(fine):
        rows = np.flatnonzero(fine == label)
        split[rows[np.argsort(draw[rows])][: round(TEST_SHARE * len(rows))]] = "test"
    return split


def _enlarge(image: np.ndarray) -> np.ndarray:
    """Turn an 8 x 8 grey image of 0 to 16 into a 32 x 32 RGB image of 0 to 255."""
    from PIL import Image

    grey = Image.fromarray((image * (255 / 16)).round().astype(np.uint8))
    return np.asarray(grey.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB"))
