"""Data module of the detectors: batches of whole images and their objects."""

from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from fgssl.data.annotated import AnnotatedData, AnnotatedImages, read_pixels
from fgssl.data.augment import Channels
from fgssl.data.datasets.base import DataSet
from fgssl.data.datasets.object_dataset import ObjectDataSet
from fgssl.data.datasets.objects import ObjectIndex
from fgssl.data.detr_crop import DETR_NUMBERS, detr_crop
from fgssl.data.images import open_image
from fgssl.data.protocols import Protocol
from fgssl.data.views import Views
from fgssl.errors import UserError, at_least


class DetectionBatch(NamedTuple):
    """B images and their objects, in the format of torchvision's detectors.

    Attributes:
        images: B tensors [3, H, W], each of its own size; uint8 from the loader, normalised after
            ``on_after_batch_transfer``.
        targets: B of ``boxes`` [n, 4] float32 (x0, y0, x1, y1, px), ``labels`` [n] int64 from 1 on (0 is the
            background) and, where every object has an outline, ``masks`` [n, H, W] uint8 (training only).
        index: [B] int64 row in the data set's index.
        draw: [B] int64 serial number of each sample in the run; -1 in evaluation.
    """

    images: list[Tensor]
    targets: list[dict[str, Tensor]]
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody asks a batch for
    draw: Tensor


class Jitter(NamedTuple):
    """Large-scale jitter: an image of random size, of which a square is cut or which is padded to it.

    Attributes:
        size: side of the square, px.
        scale: range of the random size, as a factor of the largest size that fits into the square.
        fill: colour of the padding, 0 to 1.
    """

    size: int
    scale: tuple[float, float]
    fill: Channels


class Scenes(AnnotatedImages):
    """Data set whose items are batches of whole images: positions and draws in, a uint8 DetectionBatch out.

    Args:
        masks: draw the masks of the objects where the data set has outlines of all of them.
        flip: probability of a left-right flip.
        jitter: large-scale jitter; None: the whole image.
        crop: whether half of the images are cropped at random (``detr_crop``).
        *images: as of ``Images``.
    """

    index: ObjectIndex
    batch = DetectionBatch
    count = 2 + DETR_NUMBERS  # flip, jitter, crop

    def __init__(self, *images, masks: bool, flip: float, jitter: Jitter | None, crop: bool):
        super().__init__(*images)
        self.flip, self.jitter, self.crop = flip, jitter, crop
        objects = self.index.objects
        self.masks = masks and objects.outlines is not None and not len(objects.undrawable)

    def _views(self, row: int, numbers: np.ndarray) -> Any:
        """An image and its objects, flipped where the first of ``numbers`` is below the probability, and jittered."""
        image_3HW = read_pixels(self.index.paths[row])
        height, width = image_3HW.shape[1:]
        check_size(self.index, row, (width, height))
        target = training_target(self.index, row, self.masks)
        if numbers[0] < self.flip:
            image_3HW = image_3HW.flip(-1)
            target["boxes"] = target["boxes"][:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1])
            target["boxes"][:, [0, 2]] += width
            if self.masks:
                target["masks"] = target["masks"].flip(-1)
        if self.crop:
            return detr_crop(image_3HW, target, numbers[2:])
        if self.jitter is None:
            return image_3HW, target
        return jittered(image_3HW, target, self.jitter, seed=int(numbers[1] * 2**53))


def jittered(
    image_3HW: Tensor, target: dict[str, Tensor], jitter: Jitter, seed: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Large-scale jitter (Ghiasi et al., CVPR 2021), as Detectron2 has it for ViTDet.

    The image is scaled, then a random square is cut where it is larger, and its right and lower edges are padded where
    it is smaller. Of an object that is cut, the box is that of what is left of its mask, where it has one. Objects that
    are cut off are left out.

    Args:
        image_3HW: uint8.
        target: objects, see ``DetectionBatch.targets``.
        jitter: sizes and colour.
        seed: seed of the random size and place.

    Returns:
        The image [3, size, size] and its objects.
    """
    size = jitter.size
    shown = {
        "image": tv_tensors.Image(image_3HW),
        "boxes": tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=tuple(image_3HW.shape[1:])),
        **({"masks": tv_tensors.Mask(target["masks"])} if "masks" in target else {}),
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not of the GPUs, whose random numbers are dropout's
        shown = v2.ScaleJitter((size, size), jitter.scale)(shown)
        height, width = shown["image"].shape[1:]
        whole = shown["boxes"].as_subclass(Tensor)
        fill = [round(255 * mean) for mean in jitter.fill]
        edges = [0, 0, max(0, size - width), max(0, size - height)]  # left, top, right, bottom
        shown = v2.Pad(edges, fill={tv_tensors.Image: fill, tv_tensors.Mask: 0})(shown)
        shown = v2.ClampBoundingBoxes()(v2.RandomCrop(size)(shown))
    found = {name: value.as_subclass(Tensor) for name, value in shown.items()}
    found["labels"] = target["labels"]
    if "masks" in found:
        uncut = torch.isclose(sides_of(found["boxes"]), sides_of(whole), rtol=0, atol=0.01).all(dim=1)  # px
        of_masks = masks_to_boxes(found["masks"]) + torch.tensor([0, 0, 1, 1])  # which has the last pixel, not its edge
        found["boxes"] = torch.where(uncut[:, None], found["boxes"], of_masks)
    left = (sides_of(found["boxes"]) > 0).all(dim=1)
    if "masks" in found:
        left &= found["masks"].flatten(1).bool().any(dim=1)
    return found.pop("image"), {name: value[left] for name, value in found.items()}


def sides_of(boxes_n4: Tensor) -> Tensor:
    """[n, 2] widths and heights of boxes (x0, y0, x1, y1)."""
    return boxes_n4[:, 2:] - boxes_n4[:, :2]


def check_size(index: ObjectIndex, row: int, size: tuple[int, int]) -> None:
    """Compare the width and height of an image file with those of its annotation.

    Raises:
        UserError: they differ.
    """
    if size != tuple(index.objects.sizes[row]):
        raise UserError(
            f"{index.paths[row]} has {size[0]} x {size[1]} px and its annotation "
            f"{' x '.join(map(str, index.objects.sizes[row]))}: the boxes belong to another image."
        )


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
        UserError: its outline cannot be drawn.
    """
    width, height = index.objects.sizes[row].tolist()
    outline = index.objects.outline(place)
    if isinstance(outline, str):
        raise UserError(outline)
    if isinstance(outline, list):
        return rle.merge(rle.frPyObjects(outline, height, width))
    return rle.frPyObjects(outline, height, width) if isinstance(outline["counts"], list) else outline


class DetectionData(AnnotatedData):
    """Batches of whole images and their objects, by a protocol. Prediction uses the test rows.

    The detector resizes the images.

    Args:
        dataset: data set with boxes, and its place on the disk: VOC0712, COCOInstances or UAVDT.
        protocol: training, validation and test rows.
        jitter: side in px of the square views of large-scale jitter in training (ViTDet: 1024); null: whole images.
        jitter_scale: range of the random size of an image in them, as a factor of the size that fits into the square.
        crop: crop half of the training images at random before they are resized, as DETR does (``detr_crop``); not
            with ``jitter``.

    Raises:
        UserError: the data set has no boxes, is missing or does not match, or a batch does not fit it.
    """

    def __init__(
        self,
        dataset: DataSet,
        protocol: Protocol = Protocol(),
        jitter: int | None = None,
        jitter_scale: tuple[float, float] = (0.1, 2.0),
        crop: bool = False,
        **options,
    ):
        if not isinstance(dataset, ObjectDataSet):
            raise UserError(
                f"data.dataset: {type(dataset).__name__} has no boxes of objects; VOC0712, COCOInstances and UAVDT do."
            )
        if jitter is not None:
            at_least(32, jitter=jitter)
            if crop:
                raise UserError("data.crop and data.jitter are two ways to cut images: take one of them.")
        if not 0 < jitter_scale[0] <= jitter_scale[1]:
            raise UserError(
                f"data.jitter_scale is {list(jitter_scale)}; it must be the smallest scale, above 0, and the largest."
            )
        super().__init__(dataset, protocol, **options)
        self.jitter, self.jitter_scale, self.crop = jitter, jitter_scale, crop

    def _check_header(self, row: int) -> None:
        index: Any = self.parts.index
        with open_image(index.paths[row]) as image:
            check_size(index, row, image.size)

    def _images(self, rows: np.ndarray, views: Views, *shared: Any) -> Scenes:
        training = views is self.views
        jitter = Jitter(self.jitter, self.jitter_scale, self.mean) if self.jitter is not None and training else None
        options: dict[str, Any] = {"flip": self.flip if training else 0.0, "crop": self.crop and training}
        return Scenes(self.parts.index, rows, views, *shared, masks=training, jitter=jitter, **options)
