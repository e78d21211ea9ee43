"""Data sets with several annotated objects in an image, for detection and instance segmentation."""

import json
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fgssl.data.datasets.base import some
from fgssl.data.index import DIFFICULT, Index
from fgssl.errors import UserError


class Annotation(NamedTuple):
    """One object of one image.

    Attributes:
        box: x0, y0, x1, y1 in pixels, with width x1 - x0 and height y1 - y0.
        label: 0-based class.
        ignored: left out of the evaluation, also where it is detected (VOC's difficult objects, COCO's crowds, UAVDT's
            ignored areas).
        trained: used in training.
        area: area by which the evaluation groups objects by size, square px.
        outline: COCO's ``segmentation``, polygons or a run-length code; a message where it cannot be drawn; None where
            there are boxes alone.
    """

    box: tuple[float, float, float, float]
    label: int
    ignored: bool
    trained: bool
    area: float
    outline: Any = None


class Scene(NamedTuple):
    """One image: its file, official part, width and height, and objects."""

    path: str
    split: str
    size: tuple[int, int]
    objects: list[Annotation]


@dataclass(frozen=True)
class Objects:
    """The M objects of N images; image n has the objects ``starts[n]`` to ``starts[n + 1]`` - 1.

    Plain arrays, which loader processes share without copying.

    Attributes:
        starts: [N + 1] int64.
        sizes: [N, 2] int64 width and height of the images, px.
        boxes: [M, 4] float64, as ``Annotation.box``.
        labels: [M] int64.
        ignored: [M] bool.
        trained: [M] bool.
        areas: [M] float64.
        outlines: uint8 text of all outlines as JSON, joined; or None.
        outline_ends: [M + 1] int64 boundaries of the outlines in ``outlines``.
    """

    starts: np.ndarray
    sizes: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    trained: np.ndarray
    areas: np.ndarray
    outlines: np.ndarray | None
    outline_ends: np.ndarray

    def of(self, row: int) -> np.ndarray:
        """Positions of an image's objects in the arrays."""
        return np.arange(self.starts[row], self.starts[row + 1])

    @property
    def undrawable(self) -> np.ndarray:
        """Positions of the objects whose outline is a message."""
        assert self.outlines is not None
        return np.flatnonzero(self.outlines[self.outline_ends[:-1]] == ord('"'))

    def outline(self, place: int) -> Any:
        """COCO's ``segmentation`` of an object, or the message why it cannot be drawn."""
        assert self.outlines is not None
        return json.loads(self.outlines[self.outline_ends[place] : self.outline_ends[place + 1]].tobytes())


@dataclass(frozen=True, kw_only=True)
class ObjectIndex(Index):
    """An index whose images have objects; ``targets`` holds the classes of each image, ``fine`` is -1."""

    objects: Objects


def object_index(name: str, classes: tuple[str, ...], scenes: list[Scene]) -> ObjectIndex:
    """Convert the scenes of a data set to arrays.

    Training images without an object to train on are left out, as in Detectron2; test images are kept.

    Raises:
        UserError: a box lies outside its image. Boxes that cross the border are clipped in training.
    """
    scenes = [scene for scene in scenes if scene.split != "train" or any(o.trained for o in scene.objects)]
    for scene in scenes:
        for item in scene.objects:
            _check_inside(item, scene)
    found = [item for scene in scenes for item in scene.objects]
    outlined = any(isinstance(item.outline, list | dict) for item in found)
    texts = [json.dumps(item.outline).encode() if outlined else b"" for item in found]
    objects = Objects(
        starts=np.cumsum([0, *(len(scene.objects) for scene in scenes)]),
        sizes=np.array([scene.size for scene in scenes], dtype=np.int64).reshape(-1, 2),
        boxes=np.array([item.box for item in found], dtype=np.float64).reshape(-1, 4),
        labels=np.array([item.label for item in found], dtype=np.int64),
        ignored=np.array([item.ignored for item in found], dtype=bool),
        trained=np.array([item.trained for item in found], dtype=bool),
        areas=np.array([item.area for item in found], dtype=np.float64),
        outlines=np.frombuffer(b"".join(texts), dtype=np.uint8) if outlined else None,
        outline_ends=np.cumsum([0, *(len(text) for text in texts)]),
    )
    return ObjectIndex(
        name=name,
        paths=np.array([scene.path for scene in scenes]),
        fine=np.full(len(scenes), -1, dtype=np.int64),
        fine_names=classes,
        split=np.array([scene.split for scene in scenes]),
        targets=_targets(objects, len(classes)),
        objects=objects,
    )


def _check_inside(item: Annotation, scene: Scene) -> None:
    (x0, y0, x1, y1), (width, height) = item.box, scene.size
    empty = x1 <= x0 or y1 <= y0  # COCO has a few; training leaves them out
    if not empty and (min(x1, width) <= max(x0, 0) or min(y1, height) <= max(y0, 0)):
        box = ", ".join(f"{side:g}" for side in item.box)
        raise UserError(
            f"{scene.path}: an annotated box ({box}: x0, y0, x1, y1) lies outside of the image of {width} x {height} "
            "px. Mend the annotation, or see whether its numbers are in another order."
        )


def _targets(objects: Objects, classes: int) -> np.ndarray:
    """[N, C] uint8: 1 for an object of the class, 255 for ignored objects only, else 0."""
    rows = np.repeat(np.arange(len(objects.sizes)), np.diff(objects.starts))
    targets = np.zeros((len(objects.sizes), classes), dtype=np.uint8)
    targets[rows, objects.labels] = DIFFICULT
    targets[rows[~objects.ignored], objects.labels[~objects.ignored]] = 1
    return targets


def finite(value: Any, what: str) -> float:
    """A number of an annotation file; ``what`` names its place for the message.

    Raises:
        UserError: it is no number, NaN or infinite.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{what} is {json.dumps(value)}; a finite number is expected.")
    return number


def outline_fault(outline: Any, size: tuple[int, int]) -> str | None:
    """What keeps COCO's library from drawing a ``segmentation`` on an image of ``size``; None where it can be drawn.

    The library does not look itself: it reads memory of others where runs are missing, or crashes at a NaN.
    """
    if not outline:
        return "is missing"
    width, height = size
    try:
        if isinstance(outline, dict):
            if outline["size"] != [height, width]:
                return f"is of size {outline['size']} (height, width), its image of [{height}, {width}]"
            counts = outline["counts"]
            whole = isinstance(counts, str) or (min(counts) >= 0 and sum(counts) == width * height)
            return None if whole else "has runs that do not fill its image"
        drawable = len(outline[0]) > 4 and all(math.isfinite(side) for polygon in outline for side in polygon)
        return None if drawable else "has no polygon of three points, or numbers that are not finite"
    except (TypeError, KeyError, ValueError):
        return "is neither polygons nor a run-length code"


def known_class(name: Any, known: dict[Any, int], where: str) -> int:
    """Label of a class name or id.

    Raises:
        UserError: the class is not in ``known``.
    """
    if name not in known:
        raise UserError(f"{where}: category '{name}' is not in the list of categories ({some(list(known))}).")
    return known[name]
