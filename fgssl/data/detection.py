"""Whole images with their objects as batches: the data module of the detectors."""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor
from torch.utils.data import Sampler

from fgssl.data.augment import IMAGENET_MEAN, IMAGENET_STD, Channels, normalise
from fgssl.data.cache import Cache
from fgssl.data.datamodule import DataModule, Images, Loader
from fgssl.data.datasets.base import DataSet
from fgssl.data.datasets.objects import ObjectDataSet, ObjectIndex
from fgssl.data.draws import uniform
from fgssl.data.images import read_image
from fgssl.data.protocols import Protocol
from fgssl.data.views import Views
from fgssl.errors import UserError, at_least


class DetectionBatch(NamedTuple):
    """B images and their objects, in the form that torchvision's detectors take.

    Attributes:
        images: B tensors [3, H, W], each of its own size; uint8 from the loader, normalised after
            ``on_after_batch_transfer``.
        targets: B of ``boxes`` [n, 4] float32 (x0, y0, x1, y1, px), ``labels`` [n] int64 from 1 on (0 is the
            background) and, where asked for, ``masks`` [n, H, W] uint8.
        index: [B] int64 row in the data set's index.
        draw: [B] int64 serial number of each sample in the run; -1 in evaluation.
    """

    images: list[Tensor]
    targets: list[dict[str, Tensor]]
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody asks a batch for
    draw: Tensor


class Scenes(Images):
    """Reads whole batches of whole images: positions and draws in, a uint8 DetectionBatch out.

    Args:
        masks: whether to draw the objects' masks.
        flip: probability of a left-right flip.
        **images: as of ``Images``.
    """

    index: ObjectIndex

    def __init__(self, *images, masks: bool, flip: float):
        super().__init__(*images)
        self.masks, self.flip = masks, flip

    def __getitem__(self, pairs: np.ndarray) -> DetectionBatch | UserError:  # type: ignore[override]
        """Read a batch of [B, 2] (position, draw) pairs; a UserError is handed over, as by ``Images``."""
        positions, draws = pairs.T
        flips_B1 = uniform(self.seed, draws, stream=0, count=1) < self.flip
        try:
            read = [self._read(position, flip) for position, flip in zip(positions, flips_B1, strict=True)]
        except UserError as error:
            return error
        rows = torch.tensor([row for row, _ in read])
        images, targets = zip(*(scene for _, scene in read), strict=True)
        return DetectionBatch(list(images), list(targets), rows, torch.from_numpy(draws.copy()))

    def _views(self, row: int, numbers: np.ndarray) -> Any:
        """An image and its objects, both flipped where ``numbers`` [1] says so."""
        image_3HW = torch.from_numpy(np.array(read_image(self.index.paths[row]))).permute(2, 0, 1)
        height, width = image_3HW.shape[1:]
        if (width, height) != tuple(self.index.objects.sizes[row]):
            raise UserError(
                f"{self.index.paths[row]} is of {width} x {height} px and its annotation of "
                f"{' x '.join(map(str, self.index.objects.sizes[row]))}: the boxes are of another image."
            )
        target = training_target(self.index, row, self.masks)
        if numbers[0]:
            image_3HW = image_3HW.flip(-1)
            target["boxes"] = target["boxes"][:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1])
            target["boxes"][:, [0, 2]] += width
            if self.masks:
                target["masks"] = target["masks"].flip(-1)
        return image_3HW, target


def training_target(index: ObjectIndex, row: int, masks: bool) -> dict[str, Tensor]:
    """The objects of an image to train on, cut to it; see ``DetectionBatch.targets``."""
    objects, places = index.objects, index.objects.of(row)
    width, height = objects.sizes[row]
    boxes = objects.boxes[places].clip(0, [width, height, width, height])
    solid = objects.trained[places] & (boxes[:, 2:] - boxes[:, :2] > 0.01).all(axis=1)  # px; COCO has boxes of no width
    places = places[solid]
    target = {
        "boxes": torch.from_numpy(boxes[solid]).float(),
        "labels": torch.from_numpy(objects.labels[places] + 1),
    }
    if masks:
        drawn = [rle.decode(mask_of(index, row, place)) for place in places]
        target["masks"] = torch.from_numpy(np.stack(drawn)) if drawn else torch.zeros(0, height, width).byte()
    return target


def mask_of(index: ObjectIndex, row: int, place: int) -> dict:
    """The mask of an object as a run-length code of COCO's library.

    Raises:
        UserError: its outline is neither polygons nor a run-length code.
    """
    width, height = index.objects.sizes[row].tolist()
    outline = index.objects.outline(place)
    try:
        if isinstance(outline, list):
            return rle.merge(rle.frPyObjects(outline, height, width))
        return rle.frPyObjects(outline, height, width) if isinstance(outline["counts"], list) else outline
    except (TypeError, KeyError, ValueError, IndexError):
        raise UserError(f"{index.paths[row]}: an object's outline (segmentation) is not of COCO's form.") from None


class DetectionData(DataModule):
    """Whole images of a data set with objects, by a protocol. Prediction shows the test rows.

    The detector resizes them, each training image to a size of its own.

    Args:
        dataset: which data set, and where: VOC0712 or COCOInstances.
        protocol: which rows train, validate and test.
        flip: probability of a left-right flip of a training image.
        batch_size: images in a training batch over all processes; each process takes an equal share. An optimiser step
            sees ``batch_size`` x ``trainer.accumulate_grad_batches`` images.
        eval_batch_size: images in an evaluation batch of one process; null: a process's share of ``batch_size``.
        num_workers: loader processes; 0 reads in the main process.
        prefetch: batches that each worker reads ahead.
        on_error: an unreadable image stops the run with its path (``error``), or the next row takes its place
            (``skip``), which is reported at the end of the epoch.
        mean, std: of the channels, for normalisation; ImageNet's.
        seed: of order and flips.

    Raises:
        UserError: the data set has no boxes, is missing or does not match, or a batch does not fit it.
    """

    def __init__(
        self,
        dataset: DataSet,
        protocol: Protocol = Protocol(),
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
        if not isinstance(dataset, ObjectDataSet):
            raise UserError(
                f"data.dataset: {type(dataset).__name__} has no boxes of objects. VOC0712 and COCOInstances have them."
            )
        at_least(0, flip=flip)
        super().__init__(
            dataset, protocol, batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers,
            prefetch=prefetch, on_error=on_error, mean=mean, std=std, seed=seed,
        )  # fmt: skip
        self.flip = flip

    def _loader(self, rows: np.ndarray, views: Views, sampler: Sampler, cache: Cache | None, lasting: bool) -> Loader:
        training = views is self.views
        method = self.trainer.lightning_module if self.trainer is not None else None
        scenes = Scenes(
            self.parts.index, rows, views, self.seed, self.on_error, self._unreadable, self._reading,
            masks=training and getattr(method, "masks", False), flip=self.flip if training else 0.0,
        )  # fmt: skip
        workers = {"persistent_workers": lasting, "prefetch_factor": self.prefetch} if self.num_workers else {}
        return Loader(scenes, sampler, num_workers=self.num_workers, pin_memory=torch.cuda.is_available(), **workers)

    def on_after_batch_transfer(self, batch: DetectionBatch, dataloader_idx: int) -> DetectionBatch:  # type: ignore[override]
        """Normalise, in the model's precision. A float batch is returned as it is."""
        if batch.images[0].is_floating_point():
            return batch
        self._report_skipped()
        dtype = self.trainer.lightning_module.dtype if self.trainer is not None else torch.float32
        images = [normalise(image[None].float().div_(255), self.mean, self.std)[0].to(dtype) for image in batch.images]
        return batch._replace(images=images)
