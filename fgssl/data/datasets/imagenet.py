"""ImageNet-1k, ILSVRC 2012 (Russakovsky et al., 2015)."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from fgssl.data.datasets.base import DataSet, Published, encode
from fgssl.data.datasets.folder import read_class_folders
from fgssl.data.datasets.kept import kept_arrays
from fgssl.data.hierarchies import label_map, read_text
from fgssl.data.index import Index
from fgssl.errors import UserError

# The 12 coarse classes of MaskCon (section 4.4), in the order of its label file.
COARSE = (
    "invertebrate",
    "domestic animal",
    "bird",
    "mammal",
    "reptile or aquatic vertebrate",
    "device",
    "vehicle",
    "container",
    "instrument",
    "artifact",
    "clothing",
    "other",
)


class ImageNet(DataSet):
    """1,000 classes from ``train/<wnid>/`` and ``val/<wnid>/``; coarse label: the 12 published classes of MaskCon.

    The official validation images are the test part, as everywhere in the field: the true test labels are not public.

    Args:
        root: folder that holds ``train`` and ``val``; null: ``$FGSSL_DATA/imagenet``.
        boxes: read the bounding boxes from the XML files ``Annotations/<wnid>/<image>.xml`` (training images) and
            ``Annotations/val/<image>.xml``. That takes minutes, once: they are kept below ``$FGSSL_CACHE``, by default
            ``~/.cache/fgssl``, and read again where an image or an annotation came, went or changed.
        partial: accept a copy with other counts than the published ones, such as some of the classes, with a warning;
            the coarse labels stay the same.
    """

    name = "imagenet"
    folder = "imagenet"
    layout = ("train", "val")
    published = Published({"train": 1_281_167, "test": 50_000}, fine=1000, coarse=12)
    source = "https://image-net.org (after registration); sort the val images into one folder a wnid"
    licence = "non-commercial research and education only"

    def __init__(self, root: str | None = None, boxes: bool = False, partial: bool = False):
        super().__init__(root, partial)
        self.boxes = boxes

    def _read(self) -> Index:
        index = read_class_folders(self.name, {"train": self.root / "train", "test": self.root / "val"})
        index = replace(index, coarse=coarse_labels(index.fine_names)[index.fine], coarse_names=COARSE)
        if self.boxes:
            index = replace(index, boxes=kept_boxes(self.root / "Annotations", index.paths))
        return index


def coarse_labels(wnids: tuple[str, ...]) -> np.ndarray:
    """The published coarse label [C] int64 of each wnid; the label file counts through the 1,000 sorted wnids."""
    published = np.array(label_map("imagenet_fine_to_coarse.json"))
    return published[encode(wnids, read_text("imagenet_wnids.txt").split(), "imagenet")]


def kept_boxes(folder: Path, paths: np.ndarray) -> np.ndarray:
    """``read_boxes``, kept for the next time and for other processes."""
    names = ["/".join(path.rsplit("/", 2)[1:]) for path in paths.tolist()]
    kept = kept_arrays(annotations_in(folder), lambda: {"boxes": read_boxes(folder, paths)}, [__name__], names)
    return kept["boxes"]


def annotations_in(folder: Path) -> Iterator[os.DirEntry]:
    """The XML files ``<folder>/<wnid>/*.xml``, sorted; with their sizes and times, which take seconds for 594,000."""
    for inner in sorted(folder.iterdir() if folder.is_dir() else ()):
        if inner.is_dir():
            yield from sorted(os.scandir(inner), key=lambda entry: entry.name)


def read_boxes(folder: Path, paths: np.ndarray) -> np.ndarray:
    """The largest annotated box of each image.

    Args:
        folder: holds ``<wnid>/<image>.xml`` or ``val/<image>.xml``.
        paths: [N] image paths ``.../<wnid>/<image>.JPEG``.

    Returns:
        [N, 4] float32 (x0, y0, x1, y1) in pixels; NaN for images without an annotation.

    Raises:
        UserError: the folder is missing, or an annotation cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"imagenet: no bounding boxes: {folder} is not a folder.")
    boxes = np.full((len(paths), 4), np.nan, dtype=np.float32)
    for row, path in enumerate(map(Path, paths)):
        for annotation in (folder / path.parent.name / f"{path.stem}.xml", folder / "val" / f"{path.stem}.xml"):
            if annotation.exists():
                boxes[row] = largest_box(annotation)
                break
    return boxes


def largest_box(annotation: Path) -> tuple[float, ...]:
    """The box (x0, y0, x1, y1) of largest area in a Pascal VOC style XML file."""
    try:
        boxes = [
            tuple(float(box.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax"))
            for box in ElementTree.parse(annotation).iter("bndbox")
        ]
        return max(boxes, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{annotation}: not a bounding-box annotation: {error}") from error
