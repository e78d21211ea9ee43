"""Photometric distortion of SSD (Liu et al., ECCV 2016) with mmsegmentation's ranges."""

import numpy as np
import torch
from torch import Tensor

from fgssl.data.augment import of_colours, shift_hue

DISTORTION_NUMBERS = 9
BRIGHTNESS = 32 / 255  # largest change of every value
FACTORS = (0.5, 1.5)  # range of the factors of contrast and saturation
HUE = 0.1  # largest shift in turns: 18 of OpenCV's 180


def distort(image_3HW: Tensor, numbers: np.ndarray) -> Tensor:
    """Change brightness, contrast, saturation and hue, each with probability 0.5.

    Brightness adds to the values, contrast multiplies them, saturation and hue are those of HSV. Contrast comes before
    saturation and hue or after them, with equal probability.

    Args:
        image_3HW: uint8.
        numbers: [9] uniform in [0, 1): whether and how brightness, contrast, saturation and hue are changed, and the
            place of contrast.

    Returns:
        [3, H, W] uint8.
    """
    (brightness, contrast, saturation, hue), amounts = numbers[:8].reshape(4, 2)[:, 0] < 0.5, numbers[1:8:2]
    contrast_first = numbers[8] < 0.5
    low, high = FACTORS
    factor = low + amounts * (high - low)
    image = image_3HW.float() / 255
    if brightness:
        image = (image + BRIGHTNESS * (2 * amounts[0] - 1)).clamp(0, 1)
    if contrast and contrast_first:
        image = (image * factor[1]).clamp(0, 1)
    if saturation:
        image = scale_saturation(image, factor[2])
    if hue:
        shift = of_colours(np.array([[1.0, 1.0, 1.0, HUE * (2 * amounts[3] - 1)]]))[:, 3:]
        image = shift_hue(image[None], torch.from_numpy(shift).float())[0]
    if contrast and not contrast_first:
        image = (image * factor[1]).clamp(0, 1)
    return (255 * image).round().byte()


def scale_saturation(image_3HW: Tensor, factor: float) -> Tensor:
    """Multiply the saturation of HSV, at most up to 1; hue and the largest channel of each pixel stay."""
    most, least = image_3HW.amax(0), image_3HW.amin(0)
    limit = torch.where(most > least, most / (most - least), torch.inf)  # the factor that makes the saturation 1
    return most - (most - image_3HW) * limit.clamp(max=factor)
