"""Caltech-UCSD Birds-200-2011 (Wah et al., 2011)."""

import numpy as np

from fgssl.data.datasets.base import DataSet, Published, some
from fgssl.data.datasets.files import read_by_id
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
        labels = self._column("image_class_labels.txt", files)
        training = self._column("train_test_split.txt", files)
        classes = read_by_id(self.root / "classes.txt")

        class_ids = list(classes)
        fine_names = tuple(classes[key] for key in class_ids)
        unknown = sorted(set(labels) - set(class_ids))
        if unknown:
            raise UserError(f"{self.root / 'image_class_labels.txt'}: class ids not in classes.txt: {some(unknown)}.")
        fine = np.array([class_ids.index(label) for label in labels], dtype=np.int64)

        families = [family(name) for name in fine_names]
        coarse_names = tuple(sorted(set(families)))
        coarse_of = np.array([coarse_names.index(name) for name in families], dtype=np.int64)
        return Index(
            name=self.name,
            paths=np.array([str(self.root / "images" / path) for path in files.values()]),
            fine=fine,
            fine_names=fine_names,
            split=np.where(np.array(training) == "1", "train", "test"),
            coarse=coarse_of[fine],
            coarse_names=coarse_names,
            boxes=self._boxes(files),
        )

    def _column(self, name: str, files: dict[str, str]) -> list[str]:
        """One value an image, in the order of images.txt."""
        values = read_by_id(self.root / name)
        if values.keys() != files.keys():
            odd = sorted(values.keys() ^ files.keys())
            raise UserError(
                f"{self.root / name} lists {len(values)} images and images.txt {len(files)}; "
                f"in one of them only: id {some(odd)}."
            )
        return [values[key] for key in files]

    def _boxes(self, files: dict[str, str]) -> np.ndarray | None:
        """The boxes, published as (x, y, width, height); None in copies without the file."""
        if not (self.root / "bounding_boxes.txt").exists():
            return None
        rows = [value.split() for value in self._column("bounding_boxes.txt", files)]
        if any(len(row) != 4 for row in rows):
            raise UserError(f"{self.root / 'bounding_boxes.txt'}: each line must be <id> <x> <y> <width> <height>.")
        boxes = np.array(rows, dtype=np.float32)
        boxes[:, 2:] += boxes[:, :2]
        return boxes


def family(class_name: str) -> str:
    """The last word of a class name: ``001.Black_footed_Albatross`` is an Albatross."""
    return class_name.split(".")[-1].split("_")[-1]
