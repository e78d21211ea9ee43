"""Views of an image: decoding, cropping and resizing in the loader processes.

A view is a ``Crop``: a random box, resized and flipped to uint8 here and augmented later in batches on the device
(``augment.py``). Boxes and flips are functions of random numbers that the caller draws, NUMBERS for each of V views.
"""

import copy
import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.ImageFile import ImageFile
from scipy.special import betaincinv
from torch import Tensor

from fgssl.data.augment import Photometric
from fgssl.data.auto_augment import auto_augment
from fgssl.data.draws import uniform
from fgssl.data.images import to_rgb
from fgssl.errors import UserError, above, at_least, between

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, x1 and y1 outside
Fractions = tuple[float, float, float, float]  # x0, y0, x1, y1 in shares of width and height

ATTEMPTS = 10  # random boxes before a central one is used, as in torchvision's RandomResizedCrop
NUMBERS = 2 * ATTEMPTS + 4  # random numbers per view: area and ratio of each attempt, x, y, flip, AutoAugment
RATIO = (3 / 4, 4 / 3)  # width over height of a box


@dataclass(frozen=True)
class Crop:
    """One view: a random part of the image, resized to a square.

    Args:
        size: side of the result, px.
        scale: range of the area of the part, as a share of the image.
        flip: probability of a left-right flip.
        inside: number of an earlier view whose part contains this one (FLSL); null: a part of the whole image.
        resample: interpolation of the resizing: ``bilinear`` or ``bicubic``, both with antialiasing.
        auto_augment: apply MaskCon's CIFAR-10 policy of AutoAugment, on the CPU (its strong view at 32 px).
        photometric: photometric changes on the device.
    """

    size: int = 224
    scale: tuple[float, float] = (0.2, 1.0)
    flip: float = 0.5
    inside: int | None = None
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    auto_augment: bool = False
    photometric: Photometric = Photometric()

    def __post_init__(self):
        at_least(2, size=self.size)
        between(0, 1, flip=self.flip)


class Views:
    """List of the views of an image.

    Args:
        crops: settings of each view.
    """

    def __init__(self, crops: list[Crop]):
        self.crops = crops

    def numbers(self, seed: int, draws: np.ndarray) -> np.ndarray:
        """[B, V, NUMBERS] random numbers for ``boxes`` and ``cut`` of the samples ``draws`` [B]."""
        streams = [uniform(seed, draws, stream=2 * view, count=NUMBERS) for view in range(len(self.crops))]
        return np.stack(streams, axis=1)

    def boxes(self, size: tuple[int, int], numbers: np.ndarray) -> list[Box]:
        """Boxes of the V views in an image of ``size`` (width, height); numbers [V, NUMBERS]."""
        boxes: list[Box] = []
        for crop, row in zip(self.crops, numbers, strict=True):
            if crop.inside is None:
                boxes.append(random_box(*size, crop.scale, row))
            else:
                side = self.crops[crop.inside].size
                boxes.append(_within(boxes[crop.inside], side, random_box(side, side, crop.scale, row)))
        return boxes

    def cut(self, image_3HW: Tensor, boxes: list[Box], numbers: np.ndarray) -> list[Tensor]:
        """The V views of a uint8 image, each [3, size, size] uint8."""
        return [_cut(image_3HW, *view) for view in zip(self.crops, boxes, numbers, strict=True)]

    def read(self, file: Image.Image, numbers: np.ndarray) -> list[Tensor]:
        """The V views of an opened image file, which is decoded no larger than they need."""
        image_3HW, boxes = decode(file, self.boxes(file.size, numbers), self.crops)
        return self.cut(image_3HW, boxes, numbers)


class EvalView(Views):
    """Plain view of evaluation: resize, central crop.

    It equals torchvision's ``v2.Resize(..., antialias=True)`` and ``v2.CenterCrop`` of the fully decoded uint8 image,
    bit for bit, so that an exported network can be used without this package.

    Args:
        size: side of the result, px.
        resize: length to which the shorter side is resized before the central crop, px (OBD-SD, CMD, MLS: 256 for 224);
            None: resize the whole image to ``size`` x ``size`` (MaskCon).
        resample: interpolation of the resizing, with antialiasing.

    Raises:
        UserError: ``resize`` is below ``size``.
    """

    def __init__(
        self, size: int = 224, resize: int | None = None, resample: Literal["bilinear", "bicubic"] = "bilinear"
    ):
        super().__init__([Crop(size, flip=0.0, resample=resample)])
        if resize is not None and resize < size:
            raise UserError(f"data.eval_resize is {resize}, but the crop, data.eval_size, is {size}. Raise it.")
        self.size, self.resize, self.resample = size, resize, resample

    def numbers(self, seed: int, draws: np.ndarray) -> np.ndarray:
        return np.ones((len(draws), 1, NUMBERS))  # not random; the probability of a flip is 0

    def boxes(self, size: tuple[int, int], numbers: np.ndarray) -> list[Box]:
        """The part of an image of ``size`` (width, height) that the view shows, to whole pixels."""
        width, height = size
        if self.resize is None:
            return [(0, 0, width, height)]
        side = round(self.size / self.resize * min(width, height))
        x, y = round((width - side) / 2), round((height - side) / 2)
        return [(x, y, x + side, y + side)]

    def cut(self, image_3HW: Tensor, boxes: list[Box], numbers: np.ndarray) -> list[Tensor]:
        """The view [3, size, size] of a uint8 image: the image is resized whole, then cropped."""
        height, width = image_3HW.shape[1:]
        shape = (self.size, self.size)
        if self.resize is not None:
            shorter = min(height, width)
            shape = (self.resize * height // shorter, self.resize * width // shorter)
        resized_3HW = F.interpolate(image_3HW[None], size=shape, mode=self.resample, antialias=True)[0]
        top, left = (round((side - self.size) / 2) for side in shape)
        return [resized_3HW[:, top : top + self.size, left : left + self.size]]

    def read(self, file: Image.Image, numbers: np.ndarray) -> list[Tensor]:
        """The view of an opened image file, decoded in full: a JPEG decoded at half its size gives other features."""
        image_3HW = _whole_jpeg(file)
        if image_3HW is None:
            image_3HW = torch.from_numpy(np.array(to_rgb(file))).permute(2, 0, 1)
        return self.cut(image_3HW, [], numbers)


# ---- the views of the methods ---------------------------------------------------------------------------------------

_WARP = Photometric(perspective=0.5)
_MOCO = Photometric(jitter=0.8, grey=0.2, blur=0.5)
_SIMCLR = Photometric(jitter=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, grey=0.2, blur=0.5)
_DINO = Photometric(jitter=0.8, saturation=0.2, grey=0.2)  # jitter (0.4, 0.4, 0.2, 0.1); BYOL's too
_PEN = Photometric(perspective=0.5, jitter=0.8, saturation=0.0, hue=0.0)
_WHOLE_RANGE = Crop(scale=(0.08, 1.0), resample="bicubic")

# name -> (strong view, weak view), without their size
Recipe = Literal["cars", "sop", "cifar", "moco", "simclr", "byol", "digits"]
RECIPES: dict[Recipe, tuple[Crop, Crop]] = {
    "cars": (Crop(photometric=replace(_MOCO, perspective=0.5)), Crop(photometric=_WARP)),
    "sop": (Crop(photometric=_WARP), Crop(photometric=_WARP)),
    "cifar": (Crop(auto_augment=True), Crop()),
    "moco": (Crop(photometric=_MOCO), Crop(photometric=_MOCO)),
    "simclr": (replace(_WHOLE_RANGE, photometric=_SIMCLR), replace(_WHOLE_RANGE, photometric=_SIMCLR)),
    "byol": (
        replace(_WHOLE_RANGE, photometric=replace(_DINO, blur=1.0)),
        replace(_WHOLE_RANGE, photometric=replace(_DINO, blur=0.1, solarise=0.2)),
    ),
    "digits": (Crop(scale=(0.6, 1.0), flip=0.0, photometric=_PEN), Crop(scale=(0.8, 1.0), flip=0.0)),
}


class PairViews(Views):
    """Two views: a strong and a weak one, or two of one kind.

    Args:
        recipe: augmentation of the two views. ``cars``, ``sop``, ``cifar``: MaskCon, appendix A.1 (``cars`` also for
            CUB and other photographs, ``cifar`` for images of 32 px). ``moco``: MoCo v2's augmentation for both (MLS,
            SimSiam). ``simclr``: SimCLR's for both, appendix A, with jitter of strength 1. ``byol``: BYOL's, Table 6:
            blur of the first view with probability 1 and of the second with 0.1, solarisation of the second with 0.2
            (Barlow Twins and VICReg too). ``digits``: our own, weak and without flips.
        size: side of both views, px.
    """

    def __init__(self, recipe: Recipe = "cars", size: int = 224):
        super().__init__([replace(crop, size=size) for crop in RECIPES[recipe]])


class ContrastiveCrop(PairViews):
    """Two views of the object in the image, far apart from each other (Peng, Wang, Zhu & You, CVPR 2022).

    After ``warmup`` epochs, and again every ``every`` epochs, the network that is trained locates the object of each
    training image: a position of its last feature map belongs to the object if the sum over the channels, stretched to
    0 to 1, is above ``threshold``, and the box of these positions is the object's. Until the next time, the middle of a
    crop lies in the box of its image, more often near the borders of the box than in its centre. Area and ratio of the
    crops are those of other views, and before the first boxes all crops are.

    The defaults are those of the released code for ImageNet. Its settings for small images: ``alpha`` 0.1, ``warmup``
    and ``every`` 100 of 500 epochs.

    Args:
        recipe: augmentation of the two views, as of PairViews.
        size: side of both views, px.
        alpha: parameter of the distribution Beta(alpha, alpha) of a crop's position between the smallest and the
            largest that the box allows, along each side. 1: uniform; below 1: the borders are more frequent.
        threshold: value of the feature map above which a position belongs to the object, 0 to 1.
        warmup: epochs before the first boxes.
        every: epochs between two computations of the boxes.
    """

    def __init__(
        self,
        recipe: Recipe = "moco",
        size: int = 224,
        alpha: float = 0.6,
        threshold: float = 0.1,
        warmup: int = 20,
        every: int = 20,
    ):
        super().__init__(recipe, size)
        at_least(1, warmup=warmup, every=every)
        above(0, alpha=alpha)  # parameter of a Beta distribution
        if not 0 <= threshold < 1:
            raise UserError(f"data.views.threshold is {threshold}; it is a share of the largest value, 0 to below 1.")
        self.alpha, self.threshold, self.warmup, self.every = alpha, threshold, warmup, every
        self.object: Fractions | None = None

    def due(self, epoch: int) -> bool:
        """Whether the boxes are computed before ``epoch``, counted from 0."""
        return epoch >= self.warmup and (epoch - self.warmup) % self.every == 0

    def around(self, box: Fractions) -> "ContrastiveCrop":
        """The views of one image, whose object is in ``box``; NaN: it is not known yet."""
        views = copy.copy(self)
        views.object = None if math.isnan(box[0]) else box
        return views

    def boxes(self, size: tuple[int, int], numbers: np.ndarray) -> list[Box]:
        if self.object is None:
            return super().boxes(size, numbers)
        rows = zip(self.crops, numbers, strict=True)
        return [box_around(*size, crop.scale, row, self.object, self.alpha) for crop, row in rows]


def views_of_row(views: Views, objects: Tensor | None, row: int) -> Views:
    """Views of one image: around its object where ``views`` are ContrastiveCrop and its boxes [N, 4] are given."""
    if objects is None or not isinstance(views, ContrastiveCrop):
        return views
    x0, y0, x1, y1 = objects[row].tolist()
    return views.around((x0, y0, x1, y1))


class SingleView(Views):
    """One random crop with flip (supervised training, OBD-SD, MAE, linear probes).

    Args:
        size: side of the view, px.
        scale: range of the area of the crop, as a share of the image.
        resample: interpolation of the resizing, with antialiasing.
    """

    def __init__(
        self,
        size: int = 224,
        scale: tuple[float, float] = (0.08, 1.0),
        resample: Literal["bilinear", "bicubic"] = "bilinear",
    ):
        super().__init__([Crop(size, scale, resample=resample)])


class MultiCrop(Views):
    """Two large and several small views (DINO, EsViT, CMD, SwAV).

    Args:
        size: side of the large views, px.
        scale: range of the area of a large view, as a share of the image.
        local_size: side of the small views, px.
        local_scale: range of the area of a small view, as a share of the image.
        local_crops: number of small views.
        colours: colours, blur and interpolation. ``dino``: DINO's, with another blur for each kind of view, bicubic.
            ``swav``: SwAV's, which are SimCLR's for all views, bilinear.
    """

    def __init__(
        self,
        size: int = 224,
        scale: tuple[float, float] = (0.4, 1.0),
        local_size: int = 96,
        local_scale: tuple[float, float] = (0.05, 0.4),
        local_crops: int = 8,
        colours: Literal["dino", "swav"] = "dino",
    ):
        if colours == "swav":
            like_swav = Crop(size, scale, photometric=_SIMCLR)
            super().__init__([like_swav] * 2 + [replace(like_swav, size=local_size, scale=local_scale)] * local_crops)
            return
        large = Crop(size, scale, resample="bicubic")
        small = Crop(local_size, local_scale, resample="bicubic", photometric=replace(_DINO, blur=0.5))
        first = replace(large, photometric=replace(_DINO, blur=1.0))
        second = replace(large, photometric=replace(_DINO, blur=0.1, solarise=0.2))
        super().__init__([first, second] + [small] * local_crops)


class NestedCrops(Views):
    """Teacher views, and student views taken out of them (FLSL). No view is flipped: student and teacher stay aligned.

    Order: T teacher views; T large student views; T x ``local_crops`` small ones, those of the first teacher view
    first. ``crops[i].inside`` is the teacher view that student view i is a part of, cut out after the resizing of the
    teacher view. All teacher views of an image show the same part of it; the colours of every view are drawn
    independently.

    Args:
        size: side of teacher and large student views, px.
        teacher_scale: smallest and largest share of the image's area that the teacher views take.
        student_scale: smallest and largest share of the teacher view that a large student view takes.
        local_size: side of the small views, px.
        local_scale: smallest and largest share of the teacher view that a small view takes.
        local_crops: small views for each teacher view (2 in the released code, 0 in the paper).
        teacher_views: T (1 in the released code, 2 in the paper).
        recipe: ``paper``: blur with probability 0.5, solarisation with 0.2 (appendix E.3). ``code``: a random half of
            the views has blur with 0.5 and no solarisation, the other half blur with 0.1 and solarisation with 0.2.
    """

    def __init__(
        self,
        size: int = 224,
        teacher_scale: tuple[float, float] = (0.8, 1.0),
        student_scale: tuple[float, float] = (0.5, 1.0),
        local_size: int = 96,
        local_scale: tuple[float, float] = (0.05, 0.4),
        local_crops: int = 2,
        teacher_views: int = 1,
        recipe: Literal["paper", "code"] = "paper",
    ):
        of_paper, of_code = replace(_DINO, blur=0.5, solarise=0.2), replace(_DINO, blur=0.5, other_half=(0.1, 0.2))
        photometric = of_paper if recipe == "paper" else of_code
        teacher = Crop(size, teacher_scale, flip=0.0, resample="bicubic", photometric=photometric)
        student, local = replace(teacher, scale=student_scale), replace(teacher, size=local_size, scale=local_scale)
        self.teacher_views = teacher_views
        parents = range(teacher_views)
        super().__init__(
            [teacher for _ in parents]
            + [replace(student, inside=parent) for parent in parents]
            + [replace(local, inside=parent) for parent in parents for _ in range(local_crops)]
        )

    def numbers(self, seed: int, draws: np.ndarray) -> np.ndarray:
        numbers_BVN = super().numbers(seed, draws)
        numbers_BVN[:, 1 : self.teacher_views] = numbers_BVN[:, :1]  # the same box for all teacher views
        return numbers_BVN

    def cut(self, image_3HW: Tensor, boxes: list[Box], numbers: np.ndarray) -> list[Tensor]:
        """The views of a uint8 image, each [3, size, size] uint8; students are cut out of the teacher view."""
        views: list[Tensor] = []
        for crop, box, row in zip(self.crops, boxes, numbers, strict=True):
            if crop.inside is None:
                views.append(_cut(image_3HW, crop, box, row))
            else:
                side = self.crops[crop.inside].size
                views.append(_cut(views[crop.inside], crop, random_box(side, side, crop.scale, row), row))
        return views


# ---- geometry -------------------------------------------------------------------------------------------------------


def random_box(width: int, height: int, scale: tuple[float, float], numbers: np.ndarray) -> Box:
    """Random box with the distribution of torchvision's ``RandomResizedCrop``.

    Args:
        width: width of the image, px.
        height: height of the image, px.
        scale: range of the area, as a share of the image.
        numbers: [NUMBERS] uniform in [0, 1).
    """
    u_x, u_y = numbers[2 * ATTEMPTS : 2 * ATTEMPTS + 2].tolist()
    shape = _random_shape(width, height, scale, numbers)
    if shape is None:
        return _central(width, height)
    w, h = shape
    x, y = int(u_x * (width - w + 1)), int(u_y * (height - h + 1))
    return x, y, x + w, y + h


def box_around(
    width: int, height: int, scale: tuple[float, float], numbers: np.ndarray, box: Fractions, alpha: float
) -> Box:
    """Random box whose middle lies in ``box``, as in ContrastiveCrop's released code.

    Args:
        width: width of the image, px.
        height: height of the image, px.
        scale: range of the area, as a share of the image.
        numbers: [NUMBERS] uniform in [0, 1).
        box: box of the object, in shares of width and height.
        alpha: the position between the two that the box allows has the distribution Beta(alpha, alpha).
    """
    shape = _random_shape(width, height, scale, numbers)
    if shape is None:
        return _central(width, height)
    w, h = shape
    along_x, along_y = betaincinv(alpha, alpha, numbers[2 * ATTEMPTS : 2 * ATTEMPTS + 2]).tolist()
    x, y = _between(width, w, box[0], box[2], along_x), _between(height, h, box[1], box[3], along_y)
    return x, y, x + w, y + h


def _between(side: int, length: int, first: float, last: float, along: float) -> int:
    """Start of a crop of ``length`` px, ``along`` of the way from a middle at ``first`` of the side to ``last``."""
    low, high = (min(max(int(side * place) - length // 2, 0), side - length) for place in (first, last))
    return low + int((high - low) * along)


def _random_shape(width: int, height: int, scale: tuple[float, float], numbers: np.ndarray) -> tuple[int, int] | None:
    """Width and height of a random box that fits into the image; None where none of the attempts does."""
    attempts = numbers[: 2 * ATTEMPTS].tolist()
    for u_area, u_ratio in zip(attempts[0::2], attempts[1::2], strict=True):
        area = width * height * (scale[0] + u_area * (scale[1] - scale[0]))
        ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** u_ratio  # uniform in its logarithm
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return w, h
    return None


def _central(width: int, height: int) -> Box:
    """The largest box in the middle."""
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h


def _within(parent: Box, side: int, child: Box) -> Box:
    """Map ``child``, a box in a view of ``side`` px of ``parent``, to pixels of the image; at least one pixel."""
    x0, y0, x1, y1 = parent
    grow_x, grow_y = (x1 - x0) / side, (y1 - y0) / side
    left, top = min(x0 + round(child[0] * grow_x), x1 - 1), min(y0 + round(child[1] * grow_y), y1 - 1)
    right, bottom = x0 + round(child[2] * grow_x), y0 + round(child[3] * grow_y)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def decode(image: Image.Image, boxes: list[Box], crops: list[Crop]) -> tuple[Tensor, list[Box]]:
    """Decode an opened image; a JPEG at 1/2, 1/4 or 1/8 of its size where every view is still smaller than its part.

    Returns:
        [3, H, W] uint8, and the boxes in its pixels.
    """
    width, height = image.size
    shrink = min(min(x1 - x0, y1 - y0) / crop.size for (x0, y0, x1, y1), crop in zip(boxes, crops, strict=True))
    if shrink >= 2:
        image.draft(None, (math.ceil(width / shrink), math.ceil(height / shrink)))  # no effect on other formats
    image_3HW = _whole_jpeg(image) if image.size == (width, height) else None
    if image_3HW is None:
        rgb = np.array(image if image.mode == "RGB" else to_rgb(image))
        image_3HW = torch.from_numpy(rgb).permute(2, 0, 1)
    if image.size != (width, height):
        fx, fy = image.width / width, image.height / height
        boxes = [(round(x0 * fx), round(y0 * fy), round(x1 * fx), round(y1 * fy)) for x0, y0, x1, y1 in boxes]
    return image_3HW, boxes


def _whole_jpeg(image: Image.Image) -> Tensor | None:
    """[3, H, W] uint8 of an opened colour JPEG; None for other images, and for those that torchvision cannot decode.

    The pixels are PIL's: both use libjpeg-turbo, but PIL's way from there to an array takes a quarter of the time.
    """
    from torchvision.io import decode_jpeg  # takes a second to import

    file = image.fp if isinstance(image, ImageFile) else None
    if file is None or image.format != "JPEG" or image.mode != "RGB":
        return None
    file.seek(0)
    try:
        return decode_jpeg(torch.frombuffer(bytearray(file.read()), dtype=torch.uint8))
    except RuntimeError:  # a damaged file: PIL says in which way
        return None


def _cut(image_3HW: Tensor, crop: Crop, box: Box, numbers: np.ndarray) -> Tensor:
    """One view, [3, size, size] uint8."""
    x0, y0, x1, y1 = box
    part = image_3HW[None, :, y0:y1, x0:x1]
    # torch's uint8 kernel takes 0.35 ms for 224 px, PIL's resize 0.7 to 1.5 ms; results are equal up to rounding.
    view = F.interpolate(part, size=(crop.size, crop.size), mode=crop.resample, antialias=True)[0]
    if numbers[-2] < crop.flip:
        view = view.flip(-1)
    return auto_augment(view, numbers[-1]) if crop.auto_augment else view
