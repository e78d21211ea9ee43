"""CIFAR-100 (Krizhevsky, 2009)."""

import numpy as np

from fgssl.data.datasets.base import DataSet, Published
from fgssl.data.datasets.files import read_batches, read_pickle
from fgssl.data.index import Index
from fgssl.errors import UserError


class CIFAR100(DataSet):
    """60,000 images of 32 x 32 px in 100 classes and 20 superclasses (the coarse label), from the pickled batches."""

    name = "cifar100"
    folder = "cifar-100-python"
    layout = ("train", "test", "meta")
    published = Published({"train": 50_000, "test": 10_000}, fine=100, coarse=20)
    source = "cifar-100-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html"
    licence = "none stated; cite the technical report"

    def _read(self) -> Index:
        parts = {part: [self.root / part] for part in ("train", "test")}
        pixels, labels, split = read_batches(parts, keys=("fine_labels", "coarse_labels"))
        names = read_pickle(self.root / "meta")
        absent = [key for key in ("fine_label_names", "coarse_label_names") if key not in names]
        if absent:
            raise UserError(f"{self.root / 'meta'}: no '{absent[0]}' in it; get the file of CIFAR-100.")
        return Index(
            name=self.name,
            paths=np.array([f"image {row:05d}" for row in range(len(pixels))]),
            fine=labels["fine_labels"],
            fine_names=tuple(names["fine_label_names"]),
            split=split,
            coarse=labels["coarse_labels"],
            coarse_names=tuple(names["coarse_label_names"]),
            pixels=pixels,
        )
