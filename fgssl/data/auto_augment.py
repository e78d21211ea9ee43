"""The CIFAR-10 policy of AutoAugment (Cubuk et al., CVPR 2019) as MaskCon's released code applies it.

Torchvision's ``AutoAugment`` differs: black instead of grey where the image ends, rotations to both sides, shears to
the nearest pixel, and a probability of 0.6 instead of 0.8 for the second operation of sub-policy 17. MaskCon's text
(appendix A.1) names the policy alone, so that there is one reading.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

GREY = (128, 128, 128)  # of pixels that the image does not cover
LEVELS = 9  # a magnitude is a level of 0 to 9, in ninths of an operation's range

# (probability, operation, level) of the two operations of each of the 25 sub-policies.
POLICY = (
    ((0.1, "invert", 7), (0.2, "contrast", 6)),
    ((0.7, "rotate", 2), (0.3, "translate_x", 9)),
    ((0.8, "sharpness", 1), (0.9, "sharpness", 3)),
    ((0.5, "shear_y", 8), (0.7, "translate_y", 9)),
    ((0.5, "autocontrast", 8), (0.9, "equalize", 2)),
    ((0.2, "shear_y", 7), (0.3, "posterize", 7)),
    ((0.4, "colour", 3), (0.6, "brightness", 7)),
    ((0.3, "sharpness", 9), (0.7, "brightness", 9)),
    ((0.6, "equalize", 5), (0.5, "equalize", 1)),
    ((0.6, "contrast", 7), (0.6, "sharpness", 5)),
    ((0.7, "colour", 7), (0.5, "translate_x", 8)),
    ((0.3, "equalize", 7), (0.4, "autocontrast", 8)),
    ((0.4, "translate_y", 3), (0.2, "sharpness", 6)),
    ((0.9, "brightness", 6), (0.2, "colour", 8)),
    ((0.5, "solarize", 2), (0.0, "invert", 3)),
    ((0.2, "equalize", 0), (0.6, "autocontrast", 0)),
    ((0.2, "equalize", 8), (0.8, "equalize", 4)),
    ((0.9, "colour", 9), (0.6, "equalize", 6)),
    ((0.8, "autocontrast", 4), (0.2, "solarize", 8)),
    ((0.1, "brightness", 3), (0.7, "colour", 0)),
    ((0.4, "solarize", 5), (0.9, "autocontrast", 3)),
    ((0.9, "translate_y", 9), (0.7, "translate_y", 9)),
    ((0.9, "autocontrast", 2), (0.8, "solarize", 3)),
    ((0.8, "equalize", 8), (0.1, "invert", 3)),
    ((0.7, "translate_y", 9), (0.9, "autocontrast", 1)),
)


def _affine(image: Image.Image, matrix: tuple[float, ...], resample: Image.Resampling) -> Image.Image:
    """Pixel (x, y) of the result is pixel (a x + b y + c, d x + e y + f) of the source."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=GREY)


def _shear_y(image: Image.Image, share: float, sign: int) -> Image.Image:
    return _affine(image, (1, 0, 0, sign * 0.3 * share, 1, 0), Image.Resampling.BICUBIC)


def _translate_x(image: Image.Image, share: float, sign: int) -> Image.Image:
    return _affine(image, (1, 0, sign * 150 / 331 * share * image.width, 0, 1, 0), Image.Resampling.NEAREST)


def _translate_y(image: Image.Image, share: float, sign: int) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, sign * 150 / 331 * share * image.height), Image.Resampling.NEAREST)


def _enhance(enhancer: Callable) -> Callable[[Image.Image, float, int], Image.Image]:
    return lambda image, share, sign: enhancer(image).enhance(1 + sign * 0.9 * share)


# name -> operation on an image, its magnitude (0 to 1 of the range) and a random sign
OPERATIONS: dict[str, Callable[[Image.Image, float, int], Image.Image]] = {
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": lambda image, share, sign: image.rotate(30 * share, fillcolor=GREY),  # degrees, anticlockwise only
    "colour": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "brightness": _enhance(ImageEnhance.Brightness),
    "posterize": lambda image, share, sign: ImageOps.posterize(image, round(8 - 4 * share)),
    "solarize": lambda image, share, sign: ImageOps.solarize(image, math.ceil(256 * (1 - share))),
    "autocontrast": lambda image, share, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, share, sign: ImageOps.equalize(image),
    "invert": lambda image, share, sign: ImageOps.invert(image),
}


def auto_augment(view: Tensor, number: float) -> Tensor:
    """Apply a random sub-policy to a uint8 view.

    Args:
        view: [3, H, W] uint8.
        number: uniform in [0, 1); fixes the sub-policy, which of its operations take place, and their signs.
    """
    u_policy, *chances_and_signs = np.random.default_rng(int(number * 2**53)).random(5).tolist()
    image = Image.fromarray(view.permute(1, 2, 0).numpy())
    image = apply(image, int(u_policy * len(POLICY)), *chances_and_signs)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def apply(
    image: Image.Image, policy: int, u_first: float, s_first: float, u_second: float, s_second: float
) -> Image.Image:
    """Sub-policy number ``policy`` on an image.

    Args:
        image: in RGB.
        policy: row of POLICY.
        u_first: the first operation takes place where this is below its probability.
        s_first: in [0, 1); the first operation's sign is negative below 0.5.
        u_second: the same of the second operation.
        s_second: the same of the second operation.
    """
    for (probability, name, level), u, s in zip(POLICY[policy], (u_first, u_second), (s_first, s_second), strict=True):
        if u < probability:
            image = OPERATIONS[name](image, level / LEVELS, -1 if s < 0.5 else 1)
    return image
