"""Images with a class for each pixel as batches: the data module of semantic segmentation."""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Sampler

from fgssl.data.augment import IMAGENET_MEAN, IMAGENET_STD, Channels, normalise
from fgssl.data.cache import Cache
from fgssl.data.datamodule import DataModule, Images, Loader
from fgssl.data.datasets.ade20k import ADE20K, MaskIndex
from fgssl.data.datasets.base import DataSet
from fgssl.data.draws import uniform
from fgssl.data.images import open_image, read_image
from fgssl.data.protocols import Protocol
from fgssl.data.views import Views
from fgssl.errors import UserError, at_least
from fgssl.metrics.segmentation import IGNORED

LONGEST = 4  # the longer side is never more than this many times the shorter one's target


class SegmentationBatch(NamedTuple):
    """B images and the classes of their pixels.

    Attributes:
        images: B tensors [3, H, W]: in training all of one size, in evaluation each of its own; uint8 from the loader,
            normalised after ``on_after_batch_transfer``.
        masks: B tensors [H, W] uint8, 0-based class, 255 where there is none. In evaluation of the size of the image
            file, and not of the resized image.
        index: [B] int64 row in the data set's index.
        draw: [B] int64 serial number of each sample in the run; -1 in evaluation.
    """

    images: list[Tensor]
    masks: list[Tensor]
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody asks a batch for
    draw: Tensor


class MaskedImages(Images):
    """Reads whole batches: positions and draws in, a uint8 SegmentationBatch out.

    Args:
        size: side of a training view; shorter side of an image in evaluation, px.
        scale, flip: of the random view of training; None shows the whole image.
        mean: of the channels, which fills what an image does not cover.
        **images: as of ``Images``.
    """

    index: MaskIndex

    def __init__(self, *images, size: int, scale: tuple[float, float] | None, flip: float, mean: Channels):
        super().__init__(*images)
        self.size, self.scale, self.flip, self.mean = size, scale, flip, mean

    def __getitem__(self, pairs: np.ndarray) -> SegmentationBatch | UserError:  # type: ignore[override]
        """Read a batch of [B, 2] (position, draw) pairs; a UserError is handed over, as by ``Images``."""
        positions, draws = pairs.T
        numbers_B4 = uniform(self.seed, draws, stream=0, count=4)
        try:
            read = [self._read(position, numbers) for position, numbers in zip(positions, numbers_B4, strict=True)]
        except UserError as error:
            return error
        rows = torch.tensor([row for row, _ in read])
        images, masks = zip(*(pair for _, pair in read), strict=True)
        return SegmentationBatch(list(images), list(masks), rows, torch.from_numpy(draws.copy()))

    def _views(self, row: int, numbers: np.ndarray) -> Any:
        image_3HW, mask_HW = read_pair(self.index, row)
        if self.scale is None:
            return resize(image_3HW, *scaled(mask_HW.shape, self.size)), mask_HW
        return random_view(image_3HW, mask_HW, numbers, self.size, self.scale, self.flip, self.mean)


def read_pair(index: MaskIndex, row: int) -> tuple[Tensor, Tensor]:
    """An image [3, H, W] and its mask [H, W], both uint8.

    Raises:
        UserError: one of them cannot be read, or they are not of one size.
    """
    image_3HW = torch.from_numpy(np.array(read_image(index.paths[row]))).permute(2, 0, 1)
    mask_HW = read_mask(index.masks[row], len(index.fine_names))
    if image_3HW.shape[1:] != mask_HW.shape:
        (height, width), (rows, columns) = image_3HW.shape[1:], mask_HW.shape
        raise UserError(
            f"{index.masks[row]} is of {columns} x {rows} px and its image of {width} x {height}: "
            "the mask is of another image."
        )
    return image_3HW, mask_HW


def read_mask(path: str, classes: int) -> Tensor:
    """[H, W] uint8 of a mask file: class, 255 where there is none. In the file 0 is none, and the classes follow.

    Raises:
        UserError: the file is missing or unreadable, has colours, or a class that there is not.
    """
    with open_image(path) as image:
        values_HW = np.array(image)
    if values_HW.ndim != 2 or values_HW.dtype != np.uint8:
        raise UserError(f"{path} is no mask: one channel of 8 bits is expected, this is an image of mode {image.mode}.")
    if values_HW.max() > classes:
        raise UserError(f"{path}: a pixel has label {values_HW.max()}, and the labels go from 0 (none) to {classes}.")
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
    """A random part of an image and the same part of its mask, [3, size, size] and [size, size] uint8.

    Scaled, cut and flipped at random. What the image does not cover is of the mean colour and has no class.

    Args:
        image_3HW, mask_HW: uint8.
        numbers: [4] uniform in [0, 1): scale, x, y, flip.
        size: side of the result, px.
        scale: smallest and largest shorter side of the scaled image, in parts of ``size``.
        flip: probability of a left-right flip.
        mean: colour, 0 to 1.
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
    """Height and width at which the shorter side is ``side``; less where the longer would exceed ``LONGEST`` times."""
    factor = min(side / min(size), LONGEST * side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def resize(image_3HW: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(image_3HW[None], size=(height, width), mode="bilinear", antialias=True)[0]


class SegmentationData(DataModule):
    """Random views of a data set with masks to train, whole images to evaluate. Prediction shows the test rows.

    Args:
        dataset: which data set, and where: ADE20K.
        protocol: which rows train, validate and test.
        size: side of a training view; in evaluation the shorter side of an image, px.
        scale: of a training image: its shorter side, in parts of ``size``, is random between these two.
        flip: probability of a left-right flip of a training image.
        batch_size: images in a training batch over all processes; each process takes an equal share. An optimiser step
            sees ``batch_size`` x ``trainer.accumulate_grad_batches`` images.
        eval_batch_size: images in an evaluation batch of one process; null: a process's share of ``batch_size``.
        num_workers: loader processes; 0 reads in the main process.
        prefetch: batches that each worker reads ahead.
        on_error: an unreadable image stops the run with its path (``error``), or the next row takes its place
            (``skip``), which is reported at the end of the epoch.
        mean, std: of the channels, for normalisation; ImageNet's.
        seed: of order and views.

    Raises:
        UserError: the data set has no masks, is missing or does not match, or a batch does not fit it.
    """

    def __init__(
        self,
        dataset: DataSet,
        protocol: Protocol = Protocol(),
        size: int = 512,
        scale: tuple[float, float] = (0.5, 2.0),
        flip: float = 0.5,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 4,
        prefetch: int = 2,
        on_error: Literal["error", "skip"] = "error",
        mean: Channels = IMAGENET_MEAN,
        std: Channels = IMAGENET_STD,
        seed: int = 0,
    ):
        if not isinstance(dataset, ADE20K):
            raise UserError(f"data.dataset: {type(dataset).__name__} has no classes of pixels. ADE20K has them.")
        at_least(2, **{"data.size": size})
        at_least(0, flip=flip)
        if not 0 < scale[0] <= scale[1]:
            raise UserError(f"data.scale is {list(scale)}: give the smallest scale, above 0, and the largest.")
        super().__init__(
            dataset, protocol, batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers,
            prefetch=prefetch, on_error=on_error, mean=mean, std=std, seed=seed,
        )  # fmt: skip
        self.size, self.scale, self.flip = size, scale, flip

    def _loader(self, rows: np.ndarray, views: Views, sampler: Sampler, cache: Cache | None, lasting: bool) -> Loader:
        images = MaskedImages(
            self.parts.index, rows, views, self.seed, self.on_error, self._unreadable, self._reading,
            size=self.size, scale=self.scale if views is self.views else None, flip=self.flip, mean=self.mean,
        )  # fmt: skip
        workers = {"persistent_workers": lasting, "prefetch_factor": self.prefetch} if self.num_workers else {}
        return Loader(images, sampler, num_workers=self.num_workers, pin_memory=torch.cuda.is_available(), **workers)

    def on_after_batch_transfer(self, batch: SegmentationBatch, dataloader_idx: int) -> SegmentationBatch:  # type: ignore[override]
        """Normalise, in the model's precision. A float batch is returned as it is."""
        if batch.images[0].is_floating_point():
            return batch
        self._report_skipped()
        dtype = self.trainer.lightning_module.dtype if self.trainer is not None else torch.float32
        images = [normalise(image[None].float().div_(255), self.mean, self.std)[0].to(dtype) for image in batch.images]
        return batch._replace(images=images)
