"""COCO train2017 (Lin et al., 2014) as unlabelled images."""

import numpy as np

from fgssl.data.datasets.base import DataSet, Published
from fgssl.data.datasets.folder import images_under
from fgssl.data.index import Index


class COCO(DataSet):
    """118,287 photographs to pre-train on; no label is read (fine is -1) and there is no test part."""

    name = "coco"
    folder = "coco"
    layout = ("train2017",)
    published = Published({"train": 118_287}, fine=0)
    source = "train2017.zip from https://cocodataset.org/#download"
    licence = "images from Flickr, each under its own licence; annotations CC BY 4.0"

    def _read(self) -> Index:
        paths = images_under(self.root / "train2017")
        return Index(
            name=self.name,
            paths=np.array(paths),
            fine=np.full(len(paths), -1, dtype=np.int64),
            fine_names=(),
            split=np.full(len(paths), "train"),
        )
