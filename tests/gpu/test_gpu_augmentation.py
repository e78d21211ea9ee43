"""Augmentation on a GPU is that of the CPU."""

import numpy as np
import pytest
import torch

from fgssl.data.augment import IMAGENET_MEAN, IMAGENET_STD, augment
from fgssl.data.views import RECIPES, MultiCrop
from tests.gpu.on_gpu import DEVICES

CROPS = {
    **{f"{name} {number}": [crop] for name, pair in RECIPES.items() for number, crop in enumerate(pair)},
    "multi-crop": MultiCrop().crops,
}
SIDES = ((64, 96), (37, 50))  # not square, and not even


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CROPS)
def test_augmentation_on_the_device_is_that_of_the_cpu(name, device):
    photometrics = [crop.photometric for crop in CROPS[name]]
    generator = torch.Generator().manual_seed(0)
    views = [
        torch.randint(256, (16, 3, *SIDES[number % 2]), generator=generator, dtype=torch.uint8)
        for number in range(len(photometrics))
    ]
    options = {"seed": 3, "draws": np.arange(16), "streams": [2 * number + 1 for number in range(len(views))]}
    expected = augment(views, photometrics, **options, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    found = augment([view.to(device) for view in views], photometrics, **options, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    for ours, theirs, photometric in zip(found, expected, photometrics, strict=True):
        tolerance = 1e-3 if photometric.jitter and photometric.hue else 1e-4
        difference = (ours.cpu() - theirs).abs() * torch.tensor(IMAGENET_STD).view(3, 1, 1)  # of images in 0 to 1
        # A value next to the threshold of solarisation may fall on either side of it, 1 / 255 apart.
        assert (difference <= tolerance).double().mean() >= 0.9999
        assert difference.max() <= 0.01
