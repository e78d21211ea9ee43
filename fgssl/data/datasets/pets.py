"""Oxford-IIIT Pets (Parkhi et al., 2012)."""

import numpy as np

from fgssl.data.datasets.base import DataSet, Published, encode
from fgssl.data.datasets.files import read_table
from fgssl.data.index import Index

SPECIES = {"1": "cat", "2": "dog"}


class Pets(DataSet):
    """37 breeds; coarse label: cat or dog. The official trainval part is the training part."""

    name = "pets"
    folder = "oxford-iiit-pet"
    layout = ("images", "annotations/trainval.txt", "annotations/test.txt")
    published = Published({"train": 3680, "test": 3669}, fine=37, coarse=2)
    source = "images.tar.gz, annotations.tar.gz from https://www.robots.ox.ac.uk/~vgg/data/pets/"
    licence = "CC BY-SA 4.0"

    def _read(self) -> Index:
        # columns: image, class id, species (1 cat, 2 dog), breed id within its species
        folder = self.root / "annotations"
        parts = {"train": read_table(folder / "trainval.txt", columns=4), "test": read_table(folder / "test.txt", 4)}
        rows = [row for part in parts.values() for row in part]
        name_of = {class_id: image.rpartition("_")[0] for image, class_id, _, _ in rows}
        order = sorted(name_of, key=lambda class_id: (len(class_id), class_id))  # by number
        return Index(
            name=self.name,
            paths=np.array([str(self.root / "images" / f"{image}.jpg") for image, _, _, _ in rows]),
            fine=encode((class_id for _, class_id, _, _ in rows), order, folder),
            fine_names=tuple(name_of[class_id] for class_id in order),
            split=np.array([part for part, listed in parts.items() for _ in listed]),
            coarse=encode((species for _, _, species, _ in rows), tuple(SPECIES), folder),
            coarse_names=tuple(SPECIES.values()),
        )
