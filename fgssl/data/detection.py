"""Data module of the detectors: batches of whole images and their objects."""

from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor

from fgssl.data.annotated import AnnotatedData, AnnotatedImages, read_pixels
from fgssl.data.datasets.base import DataSet
from fgssl.data.datasets.objects import ObjectDataSet, ObjectIndex
from fgssl.data.detr_crop import DETR_NUMBERS, detr_crop
from fgssl.data.protocols import Protocol
from fgssl.data.views import Views
from fgssl.errors import UserError


class DetectionBatch(NamedTuple):
    """B images and their objects, in the format of torchvision's detectors.

    Attributes:
        images: B tensors [3, H, W], each of its own size; uint8 from the loader, normalised after
            ``on_after_batch_transfer``.
        targets: B of ``boxes`` [n, 4] float32 (x0, y0, x1, y1, px), ``labels`` [n] int64 from 1 on (0 is the
            background) and, where the data set has outlines, ``masks`` [n, H, W] uint8 (training only).
        index: [B] int64 row in the data set's index.
        draw: [B] int64 serial number of each sample in the run; -1 in evaluation.
    """

    images: list[Tensor]
    targets: list[dict[str, Tensor]]
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody asks a batch for
    draw: Tensor


class Scenes(AnnotatedImages):
    """Data set whose items are batches of whole images: positions and draws in, a uint8 DetectionBatch out.

    Args:
        masks: draw the masks of the objects where the data set has outlines.
        flip: probability of a left-right flip.
        crop: whether half of the images are cropped at random (``detr_crop``).
        *images: as of ``Images``.
    """

    index: ObjectIndex
    batch = DetectionBatch
    count = 1 + DETR_NUMBERS

    def __init__(self, *images, masks: bool, flip: float, crop: bool = False):
        super().__init__(*images)
        self.flip, self.crop = flip, crop
        self.masks = masks and self.index.objects.outlines is not None

    def _views(self, row: int, numbers: np.ndarray) -> Any:
        """An image and its objects, both flipped where ``numbers`` [1] is below the probability."""
        image_3HW = read_pixels(self.index.paths[row])
        height, width = image_3HW.shape[1:]
        if (width, height) != tuple(self.index.objects.sizes[row]):
            raise UserError(
                f"{self.index.paths[row]} has {width} x {height} px and its annotation "
                f"{' x '.join(map(str, self.index.objects.sizes[row]))}: the boxes belong to another image."
            )
        target = training_target(self.index, row, self.masks)
        if numbers[0] < self.flip:
            image_3HW = image_3HW.flip(-1)
            target["boxes"] = target["boxes"][:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1])
            target["boxes"][:, [0, 2]] += width
            if self.masks:
                target["masks"] = target["masks"].flip(-1)
        return detr_crop(image_3HW, target, numbers[1:]) if self.crop else (image_3HW, target)


def training_target(index: ObjectIndex, row: int, masks: bool) -> dict[str, Tensor]:
    """Objects of an image for training, clipped to it; see ``DetectionBatch.targets``."""
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
    """Mask of an object as a run-length code of COCO's library.

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
        raise UserError(
            f"{index.paths[row]}: the outline (segmentation) of an object is not in COCO's format."
        ) from None


class DetectionData(AnnotatedData):
    """Batches of whole images and their objects, by a protocol. Prediction uses the test rows.

    The detector resizes the images.

    Args:
        dataset: data set with boxes, and its place on the disk: VOC0712 or COCOInstances.
        protocol: training, validation and test rows.
        crop: crop half of the training images at random before they are resized, as DETR does (``detr_crop``).

    Raises:
        UserError: the data set has no boxes, is missing or does not match, or a batch does not fit it.
    """

    def __init__(self, dataset: DataSet, protocol: Protocol = Protocol(), crop: bool = False, **options):
        if not isinstance(dataset, ObjectDataSet):
            raise UserError(
                f"data.dataset: {type(dataset).__name__} has no boxes of objects. VOC0712 and COCOInstances have them."
            )
        super().__init__(dataset, protocol, **options)
        self.crop = crop

    def _images(self, rows: np.ndarray, views: Views, *shared: Any) -> Scenes:
        training = views is self.views
        options: dict[str, Any] = {"flip": self.flip if training else 0.0, "crop": self.crop and training}
        return Scenes(self.parts.index, rows, views, *shared, masks=training, **options)
