"""Oxford Flowers-102 (Nilsback & Zisserman, 2008)."""

import numpy as np

from fgssl.data.datasets.base import DataSet, Published
from fgssl.data.datasets.files import read_mat
from fgssl.data.index import Index
from fgssl.errors import UserError

PARTS = {"trnid": "train", "valid": "val", "tstid": "test"}


class Flowers(DataSet):
    """102 flower species; the official files number the classes without names.

    Args:
        root: folder that holds ``jpg/``; null: ``$FGSSL_DATA/flowers-102``.
        trainval: train on the official train and val parts together (2,040 images), as is usual for fine-tuning;
            false: validate on the official val part.
        partial: accept a copy with other counts than the published ones, such as a subset, with a warning.
    """

    name = "flowers"
    folder = "flowers-102"
    layout = ("jpg", "imagelabels.mat", "setid.mat")
    published = Published({"train": 1020, "val": 1020, "test": 6149}, fine=102)
    source = "102flowers.tgz, imagelabels.mat, setid.mat from https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
    licence = "none stated; cite the paper"

    def __init__(self, root: str | None = None, trainval: bool = True, partial: bool = False):
        super().__init__(root, partial)
        self.trainval = trainval

    def _read(self) -> Index:
        labels = np.atleast_1d(self._field("imagelabels.mat", "labels")).astype(np.int64)
        parts = {part: np.atleast_1d(self._field("setid.mat", key)) for key, part in PARTS.items()}
        ids = np.concatenate(list(parts.values())).astype(np.int64)
        if len(ids) != len(labels) or ids.min() < 1 or ids.max() > len(labels):
            raise UserError(
                f"flowers: setid.mat lists {len(ids)} images, number {ids.min()} to {ids.max()}; "
                f"imagelabels.mat has {len(labels)} labels."
            )
        return Index(
            name=self.name,
            paths=np.array([str(self.root / "jpg" / f"image_{number:05d}.jpg") for number in ids]),
            fine=labels[ids - 1] - 1,  # MATLAB counts from 1
            fine_names=tuple(f"class {label:03d}" for label in range(1, labels.max() + 1)),
            split=np.array([part for part, rows in parts.items() for _ in rows]),
        )

    def _field(self, file: str, key: str) -> np.ndarray:
        content = read_mat(self.root / file)
        if key not in content:
            raise UserError(f"{self.root / file} has no '{key}'.")
        return content[key]
