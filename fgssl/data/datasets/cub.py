"""Caltech-UCSD Birds-200-2011 (Wah et al., 2011)."""

import numpy as np

from fgssl.data.datasets.base import DataSet, Published, encode
from fgssl.data.datasets.files import read_by_id, read_column
from fgssl.data.index import Index
from fgssl.errors import UserError


class CUB(DataSet):
    """200 bird species. Coarse label: the last word of the class name (Warbler, Sparrow, ...), 70 in all."""

    name = "cub"
    folder = "CUB_200_2011"
    layout = ("images", "images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    published = Published({"train": 5994, "test": 5794}, fine=200, coarse=70)
    source = "CUB_200_2011.tgz from https://data.caltech.edu/records/65de6-vp158"
    licence = "images from Flickr, their owners' rights hold; non-commercial research and education only"

    def _read(self) -> Index:
        files = read_by_id(self.root / "images.txt")
        classes = read_by_id(self.root / "classes.txt")
        label_file = self.root / "image_class_labels.txt"
        training = read_column(self.root / "train_test_split.txt", list(files))

        fine = encode(read_column(label_file, list(files)), list(classes), label_file)
        families = [family(class_name) for class_name in classes.values()]
        coarse_names = tuple(sorted(set(families)))
        return Index(
            name=self.name,
            paths=np.array([str(self.root / "images" / path) for path in files.values()]),
            fine=fine,
            fine_names=tuple(classes.values()),
            split=np.where(np.array(training) == "1", "train", "test"),
            coarse=encode(families, coarse_names, self.root / "classes.txt")[fine],
            coarse_names=coarse_names,
            boxes=self._boxes(list(files)),
        )

    def _boxes(self, ids: list[str]) -> np.ndarray | None:
        """The boxes, published as (x, y, width, height); None in copies without the file."""
        path = self.root / "bounding_boxes.txt"
        if not path.exists():
            return None
        rows = [value.split() for value in read_column(path, ids)]
        if any(len(row) != 4 for row in rows):
            raise UserError(f"{path}: each line must be <id> <x> <y> <width> <height>.")
        boxes = np.array(rows, dtype=np.float32)
        boxes[:, 2:] += boxes[:, :2]
        return boxes


def family(class_name: str) -> str:
    """The last word of a class name: ``001.Black_footed_Albatross`` is an Albatross."""
    return class_name.split(".")[-1].split("_")[-1]
