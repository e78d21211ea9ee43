"""MIT Indoor Scenes, also called Indoor67 (Quattoni & Torralba, 2009)."""

import numpy as np

from fgssl.data.datasets.base import DataSet, Published, encode
from fgssl.data.datasets.files import read_table
from fgssl.data.index import Index

LISTS = {"train": "TrainImages.txt", "test": "TestImages.txt"}


class Indoor67(DataSet):
    """67 indoor scenes with 80 training and 20 test images each, by the published lists (of 15,620 images)."""

    name = "indoor67"
    folder = "indoorCVPR_09"
    layout = ("Images", *LISTS.values())
    published = Published({"train": 5360, "test": 1340}, fine=67)
    source = "indoorCVPR_09.tar, TrainImages.txt, TestImages.txt from https://web.mit.edu/torralba/www/indoor.html"
    licence = "research only"

    def _read(self) -> Index:
        files = {part: [file for (file,) in read_table(self.root / name, 1)] for part, name in LISTS.items()}
        listed = [file for part in files.values() for file in part]  # such as gameroom/bt_132294gameroom2.jpg
        scenes = [file.split("/")[0] for file in listed]
        fine_names = tuple(sorted(set(scenes)))
        return Index(
            name=self.name,
            paths=np.array([str(self.root / "Images" / file) for file in listed]),
            fine=encode(scenes, fine_names, self.root),
            fine_names=fine_names,
            split=np.array([part for part, names in files.items() for _ in names]),
        )
