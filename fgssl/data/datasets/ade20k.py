"""ADE20K scene parsing benchmark (Zhou et al., 2017): one of 150 classes for nearly every pixel."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fgssl.data.datasets.base import DataSet, Published, some
from fgssl.data.index import Index
from fgssl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MaskIndex(Index):
    """An index whose images have a mask each; ``fine`` is -1.

    Attributes:
        masks: [N] paths of the masks: one-channel images with class + 1, and 0 where no class is given.
    """

    masks: np.ndarray


class ADE20K(DataSet):
    """Photographs with one of 150 classes for nearly every pixel; the official validation part is the test part."""

    name = "ade20k"
    folder = "ADEChallengeData2016"
    layout = (
        "images/training", "images/validation", "annotations/training", "annotations/validation", "objectInfo150.txt",
    )  # fmt: skip
    published = Published({"train": 20_210, "test": 2000}, fine=150)
    source = "ADEChallengeData2016.zip from http://sceneparsing.csail.mit.edu"
    licence = "images: research and education alone; annotations BSD-3-Clause"

    def _read(self) -> MaskIndex:
        train, test = self._pairs("training"), self._pairs("validation")
        images, masks = zip(*train, *test, strict=True) if train or test else ((), ())
        return MaskIndex(
            name=self.name,
            paths=np.array(images, dtype=str),
            fine=np.full(len(images), -1, dtype=np.int64),
            fine_names=_class_names(self.root / "objectInfo150.txt"),
            split=np.array(["train"] * len(train) + ["test"] * len(test)),
            masks=np.array(masks, dtype=str),
        )

    def _pairs(self, part: str) -> list[tuple[str, str]]:
        """Images of a part and their masks, by name.

        Raises:
            UserError: an image has no mask, or a mask no image.
        """
        images = {path.stem: str(path) for path in (self.root / "images" / part).glob("*.jpg")}
        masks = {path.stem: str(path) for path in (self.root / "annotations" / part).glob("*.png")}
        if images.keys() - masks.keys():
            lonely = [images[stem] for stem in sorted(images.keys() - masks.keys())]
            raise UserError(f"images without a mask of their name in annotations/{part}: {some(lonely)}.")
        if masks.keys() - images.keys():
            lonely = [masks[stem] for stem in sorted(masks.keys() - images.keys())]
            raise UserError(f"masks without an image of their name in images/{part}: {some(lonely)}.")
        return [(images[stem], masks[stem]) for stem in sorted(images)]


def _class_names(path: Path) -> tuple[str, ...]:
    """The column Name, in the order of Idx, which counts from 1; other columns differ from copy to copy.

    Raises:
        UserError: a column or a number is missing.
    """
    head, *rows = [
        [cell.strip() for cell in line.split("\t")] for line in path.read_text().splitlines() if line.strip()
    ] or [[]]
    if not {"Idx", "Name"} <= set(head):
        raise UserError(f"{path}: the first line must name the columns Idx and Name, separated by tabs.")
    number, name = head.index("Idx"), head.index("Name")
    for place, row in enumerate(rows, start=1):
        if len(row) <= max(number, name) or row[number] != str(place):
            raise UserError(f"{path}, line {place + 1}: class {place} is expected, found '{' '.join(row)}'.")
    return tuple(row[name] for row in rows)
