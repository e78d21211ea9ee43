"""CIFAR-10 (Krizhevsky, 2009)."""

import numpy as np

from fgssl.data.datasets.base import DataSet, Published, encode
from fgssl.data.datasets.files import read_batches
from fgssl.data.datasets.folder import read_class_folders
from fgssl.data.index import Index

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))


class CIFAR10(DataSet):
    """60,000 images of 32 x 32 px in 10 classes, from the pickled batches or from one folder a class."""

    name = "cifar10"
    folder = "cifar-10-batches-py"
    layout = (*BATCHES, "test_batch")
    other_layouts = (("train", "test"),)
    published = Published({"train": 50_000, "test": 10_000}, fine=10)
    source = (
        "cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html, or the images as "
        "train/<class>/*.jpg and test/<class>/*.jpg"
    )
    licence = "none stated; cite the technical report"

    def _read(self) -> Index:
        if not self.has(self.layout):
            index = read_class_folders(self.name, {part: self.root / part for part in ("train", "test")})
            encode(index.fine_names, CLASSES, self.root)  # other names would have other groups in CIFARtoy
            return index
        parts = {"train": [self.root / name for name in BATCHES], "test": [self.root / "test_batch"]}
        pixels, labels, split = read_batches(parts, keys=("labels",))
        return Index(
            name=self.name,
            paths=np.array([f"image {row:05d}" for row in range(len(pixels))]),
            fine=labels["labels"],
            fine_names=CLASSES,
            split=split,
            pixels=pixels,
        )
