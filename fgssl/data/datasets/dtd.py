"""Describable Textures Dataset (Cimpoi et al., 2014)."""

import numpy as np

from fgssl.data.datasets.base import DataSet, Published, encode
from fgssl.data.datasets.files import read_table
from fgssl.data.index import Index


class DTD(DataSet):
    """47 texture classes.

    Args:
        root: folder that holds ``images/`` and ``labels/``; null: ``$FGSSL_DATA/dtd``.
        partition: number of the published split, 1 to 10; results are usually reported on the first.
        trainval: train on the official train and val parts together (3,760 images), as is usual for fine-tuning;
            false: validate on the official val part.
        partial: accept a copy with other counts than the published ones, such as a subset, with a warning.
    """

    name = "dtd"
    folder = "dtd"
    layout: tuple[str, ...] = ("images", "labels/train1.txt", "labels/val1.txt", "labels/test1.txt")
    published = Published({"train": 1880, "val": 1880, "test": 1880}, fine=47)
    source = "dtd-r1.0.1.tar.gz from https://www.robots.ox.ac.uk/~vgg/data/dtd/"
    licence = "research only"

    def __init__(self, root: str | None = None, partition: int = 1, trainval: bool = True, partial: bool = False):
        super().__init__(root, partial)
        self.partition = partition
        self.trainval = trainval
        self.layout = ("images", *(f"labels/{part}{partition}.txt" for part in self.published.splits))

    def _read(self) -> Index:
        files = {
            part: [file for (file,) in read_table(self.root / f"labels/{part}{self.partition}.txt", columns=1)]
            for part in self.published.splits
        }
        listed = [file for part in files.values() for file in part]  # such as banded/banded_0002.jpg
        textures = [file.split("/")[0] for file in listed]
        fine_names = tuple(sorted(set(textures)))
        return Index(
            name=self.name,
            paths=np.array([str(self.root / "images" / file) for file in listed]),
            fine=encode(textures, fine_names, self.root / "labels"),
            fine_names=fine_names,
            split=np.array([part for part, names in files.items() for _ in names]),
        )
