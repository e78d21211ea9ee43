"""ImageNet at 32 x 32 px (Chrabaszcz et al., 2017)."""

import numpy as np

from fgssl.data.datasets.base import DataSet, Published
from fgssl.data.datasets.files import read_batches
from fgssl.data.datasets.imagenet import COARSE, coarse_labels
from fgssl.data.hierarchies import label_map, read_text
from fgssl.data.index import Index
from fgssl.errors import UserError

BATCHES = tuple(f"train_data_batch_{number}" for number in range(1, 11))


class ImageNet32(DataSet):
    """The images of ImageNet-1k at 32 x 32 px, from the pickled batches; 12 coarse classes as in ``ImageNet``.

    All pixels are held in memory: 4 GB, twice that while they are read. The official validation batch is the test part.
    """

    name = "imagenet32"
    folder = "imagenet32"
    layout = (*BATCHES, "val_data")
    published = Published({"train": 1_281_167, "test": 50_000}, fine=1000, coarse=12)
    source = "Imagenet32_train.zip and Imagenet32_val.zip from https://image-net.org/download-images.php"
    licence = "non-commercial research and education only"

    def _read(self) -> Index:
        parts = {"train": [self.root / name for name in BATCHES], "test": [self.root / "val_data"]}
        pixels, labels, split = read_batches(parts, keys=("labels",))
        own = labels["labels"] - 1  # the batches count from 1, in an order of their own
        if own.min() < 0 or own.max() > 999:
            raise UserError(f"imagenet32 under {self.root}: labels must be 1 to 1000.")
        fine = np.array(label_map("imagenet32_to_fine.json"), dtype=np.int64)[own]
        wnids = tuple(read_text("imagenet_wnids.txt").split())
        return Index(
            name=self.name,
            paths=np.array([f"image {row:07d}" for row in range(len(pixels))]),
            fine=fine,
            fine_names=wnids,
            split=split,
            coarse=coarse_labels(wnids)[fine],
            coarse_names=COARSE,
            pixels=pixels,
        )
