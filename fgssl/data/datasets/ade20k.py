"""ADE20K scene parsing benchmark (Zhou et al., 2017): one of 150 classes for nearly every pixel."""

from pathlib import Path

from fgssl.data.datasets.base import Published
from fgssl.data.datasets.files import read_utf8
from fgssl.data.datasets.masks import MaskDataSet, MaskIndex, class_table, mask_index, pairs
from fgssl.errors import UserError


class ADE20K(MaskDataSet):
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
        names = _class_names(self.root / "objectInfo150.txt")
        classes = class_table({label + 1: label for label in range(len(names))}, ignored=[0])
        return mask_index(self.name, names, classes, self._pairs("training"), self._pairs("validation"))

    def _pairs(self, part: str) -> list[tuple[str, str]]:
        images = {path.stem: path for path in (self.root / "images" / part).glob("*.jpg")}
        masks = {path.stem: path for path in (self.root / "annotations" / part).glob("*.png")}
        return pairs(images, masks, (f"images/{part}", f"annotations/{part}"))


def _class_names(path: Path) -> tuple[str, ...]:
    """The column Name, in the order of Idx, which counts from 1; other columns differ from copy to copy.

    Raises:
        UserError: a column or a number is missing.
    """
    head, *rows = [
        [cell.strip() for cell in line.split("\t")] for line in read_utf8(path).splitlines() if line.strip()
    ] or [[]]
    if not {"Idx", "Name"} <= set(head):
        raise UserError(f"{path}: the first line must name the columns Idx and Name, separated by tabs.")
    number, name = head.index("Idx"), head.index("Name")
    for place, row in enumerate(rows, start=1):
        if len(row) <= max(number, name) or row[number] != str(place):
            raise UserError(f"{path}, line {place + 1}: class {place} is expected, found '{' '.join(row)}'.")
    return tuple(row[name] for row in rows)
