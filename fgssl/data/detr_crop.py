"""The random crop of DETR's training images (Carion et al., ECCV 2020), as in FLSL's code for COCO."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

DETR_NUMBERS = 6
SHORT_SIDES = (400, 500, 600)  # of the image before it is cropped, px
LONG_SIDE = 1333  # at most, px
CROP = (384, 600)  # range of the sides of the crop, px


def detr_crop(image_3HW: Tensor, target: dict[str, Tensor], numbers: np.ndarray) -> tuple[Tensor, dict[str, Tensor]]:
    """With probability 0.5, resize an image to a shorter side of 400, 500 or 600 px and cut out 384 to 600 px a side.

    Objects are cut at the border of the crop; those outside of it are left out, all of them if need be. The detector
    resizes the crop afterwards, as it does whole images.

    Args:
        image_3HW: uint8.
        target: ``boxes`` [n, 4] in px, ``labels`` [n] and, optionally, ``masks`` [n, H, W] of the image.
        numbers: [6] uniform in [0, 1): whether to crop; shorter side; height, width, y and x of the crop.

    Returns:
        Image and objects.
    """
    if numbers[0] >= 0.5:
        return image_3HW, target
    side = SHORT_SIDES[int(numbers[1] * len(SHORT_SIDES))]
    size = image_3HW.shape[1:]
    factor = min(side / min(size), LONG_SIDE / max(size))
    height, width = (round(length * factor) for length in size)
    h, w = (crop_side(length, number) for length, number in zip((height, width), numbers[2:4], strict=True))
    y, x = int(numbers[4] * (height - h + 1)), int(numbers[5] * (width - w + 1))

    resized = F.interpolate(image_3HW[None], size=(height, width), mode="bilinear", antialias=True)[0]
    scale = torch.tensor([width / size[1], height / size[0]]).repeat(2)
    corner, end = torch.tensor([x, y]).repeat(2), torch.tensor([w, h]).repeat(2)
    boxes = (target["boxes"] * scale - corner).clamp(min=0).minimum(end)
    inside = (boxes[:, 2:] - boxes[:, :2] > 0).all(dim=1)
    cropped = {"boxes": boxes[inside], "labels": target["labels"][inside]}
    if "masks" in target:
        masks = F.interpolate(target["masks"][inside, None], size=(height, width), mode="nearest-exact")[:, 0]
        cropped["masks"] = masks[:, y : y + h, x : x + w]
    return resized[:, y : y + h, x : x + w], cropped


def crop_side(length: int, number: float) -> int:
    """Random side of a crop: 384 to 600 px, and at most the length of the image."""
    low, high = (min(length, side) for side in CROP)
    return low + int(number * (high - low + 1))
