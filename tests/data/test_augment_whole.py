"""The whole of ``augment``, from uint8 to normalised floats, against torchvision's operations one image at a time."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as TF

from fgssl.data import augment as module
from fgssl.data.augment import IMAGENET_MEAN, IMAGENET_STD, Photometric, augment
from fgssl.data.draws import uniform

COUNT, SEED, STREAM = 7, 3, 5
NUMBERS = uniform(SEED, np.arange(COUNT), STREAM, 18)  # per image: 5 chances, 5 amounts, 8 corner coordinates
OFF = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}


def photographs(size: int) -> Tensor:
    """Smooth colours with some noise, black, white and grey parts, [COUNT, 3, size, size] uint8."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(COUNT, 3, 5, 5, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    images = 1.4 * images - 0.2 + 0.1 * torch.rand(images.shape, generator=generator)
    images[0] = images[0, :1]  # no colour
    return images.clamp(0, 1).mul(255).to(torch.uint8)


def factor(i: int, column: int, reach: float) -> float:
    return (2 * NUMBERS[i, 5 + column] - 1) * reach


def warp(x: Tensor, i: int) -> Tensor:
    """A perspective of distortion 0.5, as ``RandomPerspective`` makes it of corners moved by whole pixels."""
    side = x.shape[-1]
    corners = np.array([[0, 0], [side - 1, 0], [side - 1, side - 1], [0, side - 1]])
    moved = np.floor(NUMBERS[i, 10:].reshape(4, 2) * (side // 4 + 1)).astype(int)
    return TF.perspective(
        x, corners.tolist(), (corners + np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * moved).tolist()
    )


def blur(x: Tensor, i: int) -> Tensor:
    sigma = float(np.float32(0.1 + 1.9 * NUMBERS[i, 9]))
    return TF.gaussian_blur(x, [13, 13], [sigma, sigma])


# name -> what augment is told, torchvision's operation on one float image in 0 .. 1
OPERATIONS = {
    "none": (Photometric(), lambda x, i: x),
    "perspective": (Photometric(perspective=1.0), warp),
    "brightness": (
        Photometric(jitter=1.0, **OFF | {"brightness": 0.4}),
        lambda x, i: TF.adjust_brightness(x, 1 + factor(i, 0, 0.4)),
    ),
    "contrast": (
        Photometric(jitter=1.0, **OFF | {"contrast": 0.4}),
        lambda x, i: TF.adjust_contrast(x, 1 + factor(i, 1, 0.4)),
    ),
    "saturation": (
        Photometric(jitter=1.0, **OFF | {"saturation": 0.4}),
        lambda x, i: TF.adjust_saturation(x, 1 + factor(i, 2, 0.4)),
    ),
    "hue": (Photometric(jitter=1.0, **OFF | {"hue": 0.1}), lambda x, i: TF.adjust_hue(x, factor(i, 3, 0.1))),
    "grey": (Photometric(grey=1.0), lambda x, i: TF.rgb_to_grayscale(x, 3)),
    "blur": (Photometric(blur=1.0), blur),
    "solarise": (Photometric(solarise=1.0), lambda x, i: TF.solarize(x, 128 / 255)),
}


def wanted(images: Tensor, *operations) -> Tensor:
    """The operations in turn on each image by itself, then torchvision's normalisation."""
    results = []
    for i, image in enumerate(images.float() / 255):
        for operation in operations:
            image = operation(image, i)
        results.append(TF.normalize(image, IMAGENET_MEAN, IMAGENET_STD))
    return torch.stack(results)


def ours(images: Tensor, photometric: Photometric) -> Tensor:
    options = {"seed": SEED, "draws": np.arange(COUNT), "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return augment([images], [photometric], streams=[STREAM], **options)[0]


def in_chunks_of(images: int, size: int, monkeypatch) -> None:
    monkeypatch.setattr(module, "CPU_CHUNK", images * size * size)


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("chunk", [1, 5])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_and_normalisation_are_torchvisions(name, chunk, size, monkeypatch):
    photometric, operation = OPERATIONS[name]
    in_chunks_of(chunk, size, monkeypatch)
    images = photographs(size)
    difference = (ours(images, photometric) - wanted(images, operation)).abs()
    # torchvision solves for the eight numbers of a perspective in float32: a few 1e-4 of a pixel
    assert difference.max() < (5e-3 if name == "perspective" else 3e-5)


@pytest.mark.parametrize("size", [32, 64, 224])
def test_chunks_of_the_library_at_three_sizes(size):
    images = photographs(size)
    assert torch.allclose(ours(images, Photometric(grey=1.0)), wanted(images, OPERATIONS["grey"][1]), atol=3e-5)


@pytest.mark.parametrize("chunk", [1, 5])
def test_some_images_grey_and_the_others_untouched(chunk, monkeypatch):
    in_chunks_of(chunk, 32, monkeypatch)
    images = photographs(32)
    chosen = NUMBERS[:, 2] < 0.5
    assert 0 < chosen.sum() < COUNT
    right = wanted(images, lambda x, i: TF.rgb_to_grayscale(x, 3) if chosen[i] else x)
    assert torch.allclose(ours(images, Photometric(grey=0.5)), right, atol=3e-5)


@pytest.mark.parametrize("chunk", [1, 5])
def test_operations_follow_each_other_in_the_order_of_the_recipes(chunk, monkeypatch):
    """Perspective, colour, grey, blur, solarise."""
    in_chunks_of(chunk, 64, monkeypatch)
    everything = Photometric(1.0, 1.0, brightness=0.4, contrast=0.0, saturation=0.0, hue=0.0, grey=1.0, blur=1.0)
    operations = [OPERATIONS[name][1] for name in ("perspective", "brightness", "grey", "blur")]
    images = photographs(64)
    assert (ours(images, everything) - wanted(images, *operations)).abs().max() < 5e-3
    solarised = Photometric(grey=1.0, blur=1.0, solarise=1.0)
    operations = [OPERATIONS[name][1] for name in ("grey", "blur", "solarise")]
    difference = (ours(images, solarised) - wanted(images, *operations)).abs()
    assert (difference > 3e-5).float().mean() < 1e-4  # a value within rounding of the threshold may fall on either side
