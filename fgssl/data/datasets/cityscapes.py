"""Cityscapes (Cordts et al., CVPR 2016): street scenes with one of 19 classes for nearly every pixel."""

from pathlib import Path

from fgssl.data.datasets.base import Published
from fgssl.data.datasets.masks import MaskDataSet, MaskIndex, class_table, mask_index, pairs

# The evaluated classes in the order of their train ids, and their ids in the files *_labelIds.png.
CLASSES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
IDS = range(34)  # of all labels, those outside the evaluation included
IMAGE, TRAIN_IDS, LABEL_IDS = "_leftImg8bit.png", "_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"


class Cityscapes(MaskDataSet):
    """Street scenes of 2048 x 1024 px with fine annotations; the official validation part is the test part.

    Masks are the files ``*_gtFine_labelTrainIds.png`` (made by Cityscapes' script createTrainIdLabelImgs.py) where
    every image has one; otherwise the downloaded ``*_gtFine_labelIds.png``, whose 34 labels become the 19 evaluated
    classes. Both give the same classes. The 1,525 test images have no public annotations and are not read.
    """

    name = "cityscapes"
    folder = "cityscapes"
    layout = ("leftImg8bit/train", "leftImg8bit/val", "gtFine/train", "gtFine/val")
    published = Published({"train": 2975, "test": 500}, fine=19)
    source = "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from https://www.cityscapes-dataset.com"
    licence = "non-commercial research and education; https://www.cityscapes-dataset.com/license"

    def _read(self) -> MaskIndex:
        images = {part: self._files("leftImg8bit", part, IMAGE) for part in ("train", "val")}
        masks = {part: self._files("gtFine", part, TRAIN_IDS) for part in images}
        converted = all(images[part].keys() <= masks[part].keys() for part in images)
        if not converted:
            masks = {part: self._files("gtFine", part, LABEL_IDS) for part in images}
        train, test = (
            pairs(images[part], masks[part], (f"leftImg8bit/{part}", f"gtFine/{part}")) for part in ("train", "val")
        )
        ids = list(range(len(CLASSES)) if converted else CLASSES.values())
        classes = class_table(
            dict(zip(ids, range(len(ids)), strict=True)),
            ignored=[255] if converted else [255, *(number for number in IDS if number not in ids)],
        )
        return mask_index(self.name, tuple(CLASSES), classes, train, test)

    def _files(self, kind: str, part: str, ending: str) -> dict[str, Path]:
        """Files of a part, by city, sequence and frame (``aachen_000000_000019``)."""
        found = (self.root / kind / part).glob(f"*/*{ending}")
        return {path.name.removesuffix(ending): path for path in found}
