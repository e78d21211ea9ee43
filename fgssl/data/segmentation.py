"""Data module of semantic segmentation: batches of images and the classes of their pixels."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fgssl.data.annotated import AnnotatedData, AnnotatedImages, read_pixels
from fgssl.data.augment import Channels
from fgssl.data.datasets.base import DataSet
from fgssl.data.datasets.masks import UNKNOWN, MaskDataSet, MaskIndex
from fgssl.data.distortion import DISTORTION_NUMBERS, distort
from fgssl.data.images import open_image
from fgssl.data.protocols import Protocol
from fgssl.data.views import Views
from fgssl.errors import UserError, at_least
from fgssl.metrics.segmentation import IGNORED

LONGEST = 4  # largest length of the longer side, as a factor of the target of the shorter side
CROPS = 10  # crops that are looked at before one with too much of one class is taken (mmsegmentation)


class SegmentationBatch(NamedTuple):
    """B images and the classes of their pixels.

    Attributes:
        images: B tensors [3, H, W], of one size in training, of different sizes in evaluation; uint8 from the loader,
            normalised after ``on_after_batch_transfer``.
        masks: B tensors [H, W] uint8, 0-based class, 255 for no class; in evaluation in the size of the image file.
        index: [B] int64 row in the data set's index.
        draw: [B] int64 serial number of each sample in the run; -1 in evaluation.
    """

    images: list[Tensor]
    masks: list[Tensor]
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody asks a batch for
    draw: Tensor


@dataclass(frozen=True)
class RandomView:
    """Random scale, crop, flip and colours of an image and its mask.

    Pixels that the image does not cover have the mean colour and no class.

    Args:
        size: height and width of a view, px.
        short_side: shorter side of an image at scale 1, px.
        scale: range of the shorter side of the scaled image, as a factor of ``short_side``.
        flip: probability of a left-right flip.
        largest_class: largest share of one class among the labelled pixels of a crop; another crop is drawn where it is
            exceeded, 10 times at most. 1: the first crop is taken.
        distort: change brightness, contrast, saturation and hue at random (``distort``).
        mean: mean colour, 0 to 1.
    """

    size: tuple[int, int]
    short_side: int
    scale: tuple[float, float]
    flip: float
    largest_class: float
    distort: bool
    mean: Channels

    count = 4 + DISTORTION_NUMBERS + 2 * CROPS  # random numbers of a view

    def __call__(self, image_3HW: Tensor, mask_HW: Tensor, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """View [3, h, w] and its mask [h, w], uint8.

        Args:
            image_3HW: uint8.
            mask_HW: uint8.
            numbers: [``count``] uniform in [0, 1): scale, x, y, flip, colours, x and y of further crops.
        """
        u_scale, u_flip = numbers[0], numbers[3]
        factor = self.scale[0] + u_scale * (self.scale[1] - self.scale[0])
        height, width = scaled(mask_HW.shape, self.short_side * factor)
        mask_hw = F.interpolate(mask_HW[None, None], size=(height, width), mode="nearest-exact")[0, 0]
        rows, columns = self._crop(mask_hw, [numbers[1:3], *numbers[4 + DISTORTION_NUMBERS :].reshape(CROPS, 2)])
        seen_3hw = resize(image_3HW, height, width)[:, rows, columns]
        if self.distort:
            seen_3hw = distort(seen_3hw, numbers[4 : 4 + DISTORTION_NUMBERS])
        h, w = seen_3hw.shape[1:]
        view = torch.tensor([round(255 * m) for m in self.mean], dtype=torch.uint8)[:, None, None].repeat(1, *self.size)
        view[:, :h, :w] = seen_3hw
        labels = torch.full(self.size, IGNORED, dtype=torch.uint8)
        labels[:h, :w] = mask_hw[rows, columns]
        return (view.flip(-1), labels.flip(-1)) if u_flip < self.flip else (view, labels)

    def _crop(self, mask_hw: Tensor, places: list[np.ndarray]) -> tuple[slice, slice]:
        """Rows and columns of the first crop without too much of one class; the last one where all have it."""
        height, width = (min(side, most) for side, most in zip(mask_hw.shape, self.size, strict=True))
        for number, (u_x, u_y) in enumerate(places):
            y, x = int(u_y * (mask_hw.shape[0] - height + 1)), int(u_x * (mask_hw.shape[1] - width + 1))
            rows, columns = slice(y, y + height), slice(x, x + width)
            if number == CROPS or self.largest_class >= 1 or largest_share(mask_hw[rows, columns]) < self.largest_class:
                break
        return rows, columns


def largest_share(mask: Tensor) -> float:
    """Share of the most frequent class among the labelled pixels of a uint8 mask; 1 where none is labelled."""
    counts = torch.bincount(mask.flatten(), minlength=256)[:IGNORED]
    return (counts.max() / counts.sum()).item() if counts.any() else 1.0


class MaskedImages(AnnotatedImages):
    """Data set whose items are whole batches: positions and draws in, a uint8 SegmentationBatch out.

    Args:
        short_side: shorter side of an image in evaluation, px.
        view: random view of an image in training; None: the whole image.
        *images: as of ``Images``.
    """

    index: MaskIndex
    batch = SegmentationBatch
    count = RandomView.count

    def __init__(self, *images, short_side: int, view: RandomView | None):
        super().__init__(*images)
        self.short_side, self.view = short_side, view

    def _views(self, row: int, numbers: np.ndarray) -> Any:
        image_3HW, mask_HW = read_pair(self.index, row)
        if self.view is None:
            return resize(image_3HW, *scaled(mask_HW.shape, self.short_side)), mask_HW
        return self.view(image_3HW, mask_HW, numbers)


def read_pair(index: MaskIndex, row: int) -> tuple[Tensor, Tensor]:
    """An image [3, H, W] and its mask [H, W], both uint8.

    Raises:
        UserError: one of them cannot be read, or their sizes differ.
    """
    image_3HW = read_pixels(index.paths[row])
    mask_HW = read_mask(index.masks[row], index.classes)
    check_sizes(index, row, tuple(image_3HW.shape[:0:-1]), tuple(mask_HW.shape[::-1]))
    return image_3HW, mask_HW


def check_mask(index: MaskIndex, row: int) -> None:
    """Check a whole mask, and of its image what the header tells.

    Raises:
        UserError: one of them cannot be read, their sizes differ, or the mask is none, see ``read_mask``.
    """
    mask_HW = read_mask(index.masks[row], index.classes)
    with open_image(index.paths[row]) as image:
        check_sizes(index, row, image.size, tuple(mask_HW.shape[::-1]))


def check_sizes(index: MaskIndex, row: int, image: tuple[int, ...], mask: tuple[int, ...]) -> None:
    """Compare the width and height of an image and its mask.

    Raises:
        UserError: they differ.
    """
    if image != mask:
        raise UserError(
            f"{index.masks[row]} has {mask[0]} x {mask[1]} px and its image {image[0]} x {image[1]}: "
            "the mask belongs to another image."
        )


def check_mode(path: str, mask: Image.Image) -> None:
    """Check that a mask has one channel of 8 bits: labels, or numbers of a palette.

    Raises:
        UserError: it has not.
    """
    if mask.mode not in ("L", "P"):
        raise UserError(f"{path} is no mask: one channel of 8 bits is expected, the image has mode {mask.mode}.")


def read_mask(path: str, classes: np.ndarray) -> Tensor:
    """Mask file as [H, W] uint8 classes, 255 for no class.

    Args:
        path: the file.
        classes: class of each value, see ``MaskIndex.classes``.

    Raises:
        UserError: the file is missing or unreadable, has several channels, or a value without a meaning.
    """
    with open_image(path) as image:
        check_mode(path, image)
        values_HW = np.array(image)
    mask_HW = classes[values_HW]
    if (unknown := mask_HW == UNKNOWN).any():
        known = np.flatnonzero(classes != UNKNOWN)
        value, most = values_HW[unknown].max(), known[known < IGNORED].max()
        raise UserError(f"{path}: a pixel has label {value}; labels are {known.min()} to {most}.")
    return torch.from_numpy(mask_HW)


def scaled(size: torch.Size | tuple[int, ...], side: float) -> tuple[int, int]:
    """Height and width with shorter side ``side``; smaller where the longer side would exceed LONGEST x ``side``."""
    factor = min(side / min(size), LONGEST * side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def resize(image_3HW: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(image_3HW[None], size=(height, width), mode="bilinear", antialias=True)[0]


class SegmentationData(AnnotatedData):
    """Batches of random views in training and of whole images in evaluation. Prediction uses the test rows.

    Args:
        dataset: data set with a class for each pixel, and its place on the disk: ADE20K or Cityscapes.
        protocol: training, validation and test rows.
        size: side of a training view, or its height and width, px.
        short_side: shorter side of an image in evaluation and, at scale 1, in training, px; null: that of ``size``.
        scale: range of the random shorter side of a training image, as a factor of ``short_side``.
        largest_class: largest share of one class among the labelled pixels of a training view, 0 to 1; another crop is
            drawn where it is exceeded, 10 times at most (mmsegmentation's cat_max_ratio). 1: no limit.
        distort: change brightness, contrast, saturation and hue of a training view at random (mmsegmentation's
            PhotoMetricDistortion).

    Raises:
        UserError: the data set has no masks, is missing or does not match, or a batch does not fit it.
    """

    def __init__(
        self,
        dataset: DataSet,
        protocol: Protocol = Protocol(),
        size: int | tuple[int, int] = 512,
        short_side: int | None = None,
        scale: tuple[float, float] = (0.5, 2.0),
        largest_class: float = 1.0,
        distort: bool = False,
        **options,
    ):
        if not isinstance(dataset, MaskDataSet):
            raise UserError(f"data.dataset: {type(dataset).__name__} has no pixel classes. ADE20K and Cityscapes do.")
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.short_side = min(self.size) if short_side is None else short_side
        at_least(2, size=min(self.size), short_side=self.short_side)
        if not 0 < scale[0] <= scale[1]:
            raise UserError(f"data.scale is {list(scale)}, and has to be the smallest scale, above 0, and the largest.")
        if not 0 < largest_class <= 1:
            raise UserError(f"data.largest_class is {largest_class}; it must be above 0 and 1 at most.")
        super().__init__(dataset, protocol, **options)
        self.scale, self.largest_class, self.distort = scale, largest_class, distort

    def _check_header(self, row: int) -> None:
        index: Any = self.parts.index
        check_mask(index, row)

    def _images(self, rows: np.ndarray, views: Views, *shared: Any) -> MaskedImages:
        view = RandomView(
            self.size, self.short_side, self.scale, self.flip, self.largest_class, self.distort, self.mean
        )
        options: dict[str, Any] = {"short_side": self.short_side, "view": view if views is self.views else None}
        return MaskedImages(self.parts.index, rows, views, *shared, **options)
