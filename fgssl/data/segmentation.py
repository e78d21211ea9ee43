"""Data module of semantic segmentation: batches of images and the classes of their pixels."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fgssl.data.annotated import AnnotatedData, AnnotatedImages, read_pixels
from fgssl.data.augment import Channels
from fgssl.data.datasets.ade20k import ADE20K, MaskIndex
from fgssl.data.datasets.base import DataSet
from fgssl.data.images import open_image
from fgssl.data.protocols import Protocol
from fgssl.data.views import Views
from fgssl.errors import UserError, at_least
from fgssl.metrics.segmentation import IGNORED

LONGEST = 4  # largest length of the longer side, as a factor of the target of the shorter side


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


class MaskedImages(AnnotatedImages):
    """Data set whose items are whole batches: positions and draws in, a uint8 SegmentationBatch out.

    Args:
        size: side of a training view; shorter side of an image in evaluation, px.
        scale: range of the random scale of a training view; None: the whole image.
        flip: probability of a left-right flip of a training view.
        mean: channel means, 0 to 1, the colour of pixels that the image does not cover.
        *images: as of ``Images``.
    """

    index: MaskIndex
    batch = SegmentationBatch
    count = 4

    def __init__(self, *images, size: int, scale: tuple[float, float] | None, flip: float, mean: Channels):
        super().__init__(*images)
        self.size, self.scale, self.flip, self.mean = size, scale, flip, mean

    def _views(self, row: int, numbers: np.ndarray) -> Any:
        image_3HW, mask_HW = read_pair(self.index, row)
        if self.scale is None:
            return resize(image_3HW, *scaled(mask_HW.shape, self.size)), mask_HW
        return random_view(image_3HW, mask_HW, numbers, self.size, self.scale, self.flip, self.mean)


def read_pair(index: MaskIndex, row: int) -> tuple[Tensor, Tensor]:
    """An image [3, H, W] and its mask [H, W], both uint8.

    Raises:
        UserError: one of them cannot be read, or their sizes differ.
    """
    image_3HW = read_pixels(index.paths[row])
    mask_HW = read_mask(index.masks[row], len(index.fine_names))
    if image_3HW.shape[1:] != mask_HW.shape:
        (height, width), (rows, columns) = image_3HW.shape[1:], mask_HW.shape
        raise UserError(
            f"{index.masks[row]} has {columns} x {rows} px and its image {width} x {height}: "
            "the mask belongs to another image."
        )
    return image_3HW, mask_HW


def read_mask(path: str, classes: int) -> Tensor:
    """Mask file as [H, W] uint8 classes, 255 for no class. In the file 0 is no class and class + 1 a class.

    Raises:
        UserError: the file is missing or unreadable, has several channels, or labels above the number of classes.
    """
    with open_image(path) as image:
        values_HW = np.array(image)
    if values_HW.ndim != 2 or values_HW.dtype != np.uint8:
        raise UserError(f"{path} is no mask: one channel of 8 bits is expected, the image has mode {image.mode}.")
    if values_HW.max() > classes:
        raise UserError(f"{path}: a pixel has label {values_HW.max()}; labels are 0 (no class) to {classes}.")
    return torch.from_numpy(values_HW - np.uint8(1))  # 0 - 1 is 255, IGNORED


def random_view(
    image_3HW: Tensor,
    mask_HW: Tensor,
    numbers: np.ndarray,
    size: int,
    scale: tuple[float, float],
    flip: float,
    mean: Channels,
) -> tuple[Tensor, Tensor]:
    """Random scale, crop and flip of an image and its mask, [3, size, size] and [size, size] uint8.

    Pixels that the image does not cover have the mean colour and no class.

    Args:
        image_3HW: uint8.
        mask_HW: uint8.
        numbers: [4] uniform in [0, 1): scale, x, y, flip.
        size: side of the result, px.
        scale: range of the shorter side of the scaled image, as a factor of ``size``.
        flip: probability of a left-right flip.
        mean: mean colour, 0 to 1.
    """
    u_scale, u_x, u_y, u_flip = numbers.tolist()
    height, width = scaled(mask_HW.shape, size * (scale[0] + u_scale * (scale[1] - scale[0])))
    h, w = min(height, size), min(width, size)
    y, x = int(u_y * (height - h + 1)), int(u_x * (width - w + 1))
    view = torch.tensor([round(255 * m) for m in mean], dtype=torch.uint8)[:, None, None].repeat(1, size, size)
    view[:, :h, :w] = resize(image_3HW, height, width)[:, y : y + h, x : x + w]
    labels = torch.full((size, size), IGNORED, dtype=torch.uint8)
    nearest = F.interpolate(mask_HW[None, None], size=(height, width), mode="nearest-exact")[0, 0]
    labels[:h, :w] = nearest[y : y + h, x : x + w]
    return (view.flip(-1), labels.flip(-1)) if u_flip < flip else (view, labels)


def scaled(size: torch.Size | tuple[int, ...], side: float) -> tuple[int, int]:
    """Height and width with shorter side ``side``; smaller where the longer side would exceed LONGEST x ``side``."""
    factor = min(side / min(size), LONGEST * side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def resize(image_3HW: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(image_3HW[None], size=(height, width), mode="bilinear", antialias=True)[0]


class SegmentationData(AnnotatedData):
    """Batches of random views in training and of whole images in evaluation. Prediction uses the test rows.

    Args:
        dataset: data set with a class for each pixel, and its place on the disk: ADE20K.
        protocol: training, validation and test rows.
        size: side of a training view; in evaluation the shorter side of an image, px.
        scale: range of the random shorter side of a training image, as a factor of ``size``.

    Raises:
        UserError: the data set has no masks, is missing or does not match, or a batch does not fit it.
    """

    def __init__(
        self,
        dataset: DataSet,
        protocol: Protocol = Protocol(),
        size: int = 512,
        scale: tuple[float, float] = (0.5, 2.0),
        **options,
    ):
        if not isinstance(dataset, ADE20K):
            raise UserError(f"data.dataset: {type(dataset).__name__} has no pixel classes. ADE20K has them.")
        at_least(2, **{"data.size": size})
        if not 0 < scale[0] <= scale[1]:
            raise UserError(f"data.scale is {list(scale)}, and has to be the smallest scale, above 0, and the largest.")
        super().__init__(dataset, protocol, **options)
        self.size, self.scale = size, scale

    def _images(self, rows: np.ndarray, views: Views, *shared: Any) -> MaskedImages:
        scale = self.scale if views is self.views else None
        options: dict[str, Any] = {"size": self.size, "scale": scale, "flip": self.flip, "mean": self.mean}
        return MaskedImages(self.parts.index, rows, views, *shared, **options)
