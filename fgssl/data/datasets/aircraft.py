"""FGVC-Aircraft, release 2013b (Maji et al., 2013)."""

from typing import Literal

import numpy as np

from fgssl.data.datasets.base import DataSet, Published, encode
from fgssl.data.datasets.files import read_by_id, read_column, read_table
from fgssl.data.index import Index
from fgssl.errors import UserError, did_you_mean

CLASS_LISTS = {"family": "families.txt", "manufacturer": "manufacturers.txt"}


class Aircraft(DataSet):
    """100 aircraft variants in 70 families of 30 manufacturers.

    Args:
        root: folder that holds ``data/``; null: ``$FGSSL_DATA/fgvc-aircraft-2013b``.
        coarse: level of the coarse label: ``family`` or ``manufacturer``.
        trainval: train on the official train and val parts together (6,667 images), as is usual; false: validate on
            the official val part.
        partial: accept a copy with other counts than the published ones, such as a subset, with a warning.
    """

    name = "aircraft"
    folder = "fgvc-aircraft-2013b"
    layout = (
        "data/images",
        "data/variants.txt",
        *(f"data/{file}" for file in CLASS_LISTS.values()),
        *(f"data/images_variant_{part}.txt" for part in ("train", "val", "test")),
    )
    published = Published({"train": 3334, "val": 3333, "test": 3333}, fine=100, coarse=70)
    source = "fgvc-aircraft-2013b.tar.gz from https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
    licence = "non-commercial research only; the photographers keep their rights"

    def __init__(
        self,
        root: str | None = None,
        coarse: Literal["family", "manufacturer"] = "family",
        trainval: bool = True,
        partial: bool = False,
    ):
        super().__init__(root, partial)
        if coarse not in CLASS_LISTS:
            raise UserError(f"aircraft: no level '{coarse}' (family, manufacturer).{did_you_mean(coarse, CLASS_LISTS)}")
        self.coarse = coarse
        self.trainval = trainval
        self.published = Published(self.published.splits, fine=100, coarse={"family": 70, "manufacturer": 30}[coarse])

    def _read(self) -> Index:
        data = self.root / "data"
        ids: list[str] = []
        variants: list[str] = []
        groups: list[str] = []
        split: list[str] = []
        for part in ("train", "val", "test"):
            rows = read_by_id(data / f"images_variant_{part}.txt")
            ids += rows
            variants += rows.values()
            groups += read_column(data / f"images_{self.coarse}_{part}.txt", list(rows))
            split += [part] * len(rows)
        fine_names = tuple(name for (name,) in read_table(data / "variants.txt", columns=1))
        coarse_names = tuple(name for (name,) in read_table(data / CLASS_LISTS[self.coarse], columns=1))
        return Index(
            name=self.name,
            paths=np.array([str(data / "images" / f"{key}.jpg") for key in ids]),
            fine=encode(variants, fine_names, data / "images_variant_*.txt"),
            fine_names=fine_names,
            split=np.array(split),
            coarse=encode(groups, coarse_names, data / f"images_{self.coarse}_*.txt"),
            coarse_names=coarse_names,
            boxes=self._boxes(ids),
        )

    def _boxes(self, ids: list[str]) -> np.ndarray | None:
        """The published boxes (x0, y0, x1, y1); None in copies without the file."""
        path = self.root / "data/images_box.txt"
        if not path.exists():
            return None
        rows = [value.split() for value in read_column(path, ids)]
        if any(len(row) != 4 for row in rows):
            raise UserError(f"{path}: each line must be <id> <xmin> <ymin> <xmax> <ymax>.")
        return np.array(rows, dtype=np.float32)
