"""Pascal VOC 2007, the classification task (Everingham et al., 2010)."""

import numpy as np

from fgssl.data.datasets.base import DataSet, Published
from fgssl.data.datasets.files import read_column, read_table
from fgssl.data.index import DIFFICULT, Index
from fgssl.errors import UserError

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
PARTS = {"train": "trainval", "test": "test"}
TARGETS = {"1": 1, "-1": 0, "0": DIFFICULT}


class VOC2007(DataSet):
    """20 object classes, several in an image; the official trainval part is the training part.

    ``targets`` is 1 where the class is in the image, 0 where it is not, and 255 where only difficult objects of it are,
    which the average precision leaves out. ``fine`` is -1: images have no single class label.
    """

    name = "voc2007"
    folder = "VOCdevkit/VOC2007"
    layout = (
        "JPEGImages",
        *(f"ImageSets/Main/{official}.txt" for official in PARTS.values()),
        *(f"ImageSets/Main/{CLASSES[0]}_{official}.txt" for official in PARTS.values()),
    )
    published = Published({"train": 5011, "test": 4952}, fine=20)
    source = "VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2007/"
    licence = "images from Flickr, under its terms; research only"

    def _read(self) -> Index:
        lists = self.root / "ImageSets/Main"
        ids = {part: [key for (key,) in read_table(lists / f"{PARTS[part]}.txt", columns=1)] for part in PARTS}
        targets = np.concatenate([self._targets(PARTS[part], ids[part]) for part in PARTS])
        images = [key for part in PARTS for key in ids[part]]
        return Index(
            name=self.name,
            paths=np.array([str(self.root / "JPEGImages" / f"{key}.jpg") for key in images]),
            fine=np.full(len(images), -1, dtype=np.int64),
            fine_names=CLASSES,
            split=np.array([part for part in PARTS for _ in ids[part]]),
            targets=targets,
        )

    def _targets(self, official: str, ids: list[str]) -> np.ndarray:
        """[n, 20] uint8 targets of an official part: one file a class, one line an image."""
        columns = []
        for class_name in CLASSES:
            path = self.root / "ImageSets/Main" / f"{class_name}_{official}.txt"
            if not path.exists():
                raise UserError(f"voc2007: not found: {path}.")
            values = read_column(path, ids)
            unknown = set(values) - TARGETS.keys()
            if unknown:
                raise UserError(f"{path}: values must be 1, 0 or -1, not {sorted(unknown)[0]}.")
            columns.append([TARGETS[value] for value in values])
        return np.array(columns, dtype=np.uint8).T
