"""Data sets with a class for each pixel, in masks beside the images."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fgssl.data.datasets.base import DataSet, some
from fgssl.data.index import Index
from fgssl.errors import UserError

NO_CLASS = 255  # class of the pixels without one
UNKNOWN = 254  # class of the values that a mask must not have


@dataclass(frozen=True, kw_only=True)
class MaskIndex(Index):
    """An index whose images have a mask each; ``fine`` is -1.

    Attributes:
        masks: [N] paths of the masks: one-channel images of 8 bits.
        classes: [256] uint8 class of each value of a mask: 0-based, ``NO_CLASS`` or ``UNKNOWN``.
    """

    masks: np.ndarray
    classes: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """[C] uint8 value of each class in a mask."""
        return np.array([np.flatnonzero(self.classes == label)[0] for label in range(len(self.fine_names))], np.uint8)


class MaskDataSet(DataSet):
    """A data set whose index is a ``MaskIndex``."""

    def _read(self) -> MaskIndex:
        raise NotImplementedError


def class_table(values: dict[int, int], ignored: list[int]) -> np.ndarray:
    """``MaskIndex.classes`` of a format.

    Args:
        values: value in a mask -> class.
        ignored: values of pixels without a class.
    """
    table = np.full(256, UNKNOWN, dtype=np.uint8)
    table[ignored] = NO_CLASS
    table[list(values)] = list(values.values())
    return table


def pairs(images: dict[str, Path], masks: dict[str, Path], folders: tuple[str, str]) -> list[tuple[str, str]]:
    """Paths of images and masks of equal names, in the order of the names.

    Args:
        images: images by name.
        masks: masks by name.
        folders: what the images and the masks are looked for in, for messages.

    Raises:
        UserError: an image has no mask, or a mask no image.
    """
    for ours, theirs, message in (
        (images, masks, f"images without a mask of their name in {folders[1]}"),
        (masks, images, f"masks without an image of their name in {folders[0]}"),
    ):
        if lonely := sorted(ours.keys() - theirs.keys()):
            raise UserError(f"{message}: {some([str(ours[name]) for name in lonely])}.")
    return [(str(images[name]), str(masks[name])) for name in sorted(images)]


def mask_index(
    name: str,
    fine_names: tuple[str, ...],
    classes: np.ndarray,
    train: list[tuple[str, str]],
    test: list[tuple[str, str]],
) -> MaskIndex:
    """The index of pairs of images and masks."""
    images, masks = zip(*train, *test, strict=True) if train or test else ((), ())
    return MaskIndex(
        name=name,
        paths=np.array(images, dtype=str),
        fine=np.full(len(images), -1, dtype=np.int64),
        fine_names=fine_names,
        split=np.array(["train"] * len(train) + ["test"] * len(test)),
        masks=np.array(masks, dtype=str),
        classes=classes,
    )
