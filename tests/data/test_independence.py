"""Random changes of views, images and epochs are independent of each other, and the same for the same sample."""

import numpy as np
import pytest
import torch

from fgssl.data.augment import Photometric
from fgssl.data.batch import Batch
from fgssl.data.datamodule import DataModule
from fgssl.data.datasets.digits import Digits
from fgssl.data.views import Crop, Views

N = 400
BRIGHT = Photometric(jitter=1.0, brightness=0.4, contrast=0.0, saturation=0.0, hue=0.0)


def changed(draws: np.ndarray, seed: int = 0) -> np.ndarray:
    """[2, N] brightness factors that two views of N equal grey images got."""
    crops = [Crop(size=8, scale=(1.0, 1.0), flip=0.0, photometric=BRIGHT)] * 2
    data = DataModule(Digits(), views=Views(crops), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), seed=seed)
    grey = torch.full((len(draws), 3, 8, 8), 100, dtype=torch.uint8)
    rows = torch.zeros(len(draws), dtype=torch.long)
    batch = Batch([grey, grey.clone()], rows, rows, rows, torch.from_numpy(draws))
    views = data.on_after_batch_transfer(batch, 0).views
    return np.stack([view.mean(dim=(1, 2, 3)).numpy() * 255 / 100 for view in views])


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


BOUND = 4 / N**0.5  # four standard errors of the correlation of independent samples


def test_brightness_is_uniform_in_its_range():
    factors = changed(np.arange(N)).ravel()
    assert factors.min() >= 0.6 - 1e-3
    assert factors.max() <= 1.4 + 1e-3
    assert np.histogram(factors, bins=4, range=(0.6, 1.4))[0].min() > 0.8 * len(factors) / 4


def test_views_of_an_image_are_changed_independently():
    first, second = changed(np.arange(N))
    assert abs(correlation(first, second)) < BOUND


def test_neighbouring_images_are_changed_independently():
    first, second = changed(np.arange(N))
    assert abs(correlation(first[:-1], first[1:])) < BOUND
    assert abs(correlation(first[:-1], second[1:])) < BOUND


@pytest.mark.parametrize(
    "other", [{"draws": np.arange(N) + N}, {"draws": np.arange(N), "seed": 1}], ids=["epoch", "seed"]
)
def test_another_epoch_or_seed_changes_independently(other):
    ours, theirs = changed(np.arange(N)), changed(**other)
    for view in (0, 1):
        assert abs(correlation(ours[view], theirs[view])) < BOUND


def test_same_sample_is_changed_alike_in_any_batch():
    whole = changed(np.arange(N))
    parts = np.concatenate([changed(np.arange(0, 150)), changed(np.arange(150, N))], axis=1)
    assert np.array_equal(whole, parts)


def test_crops_of_two_views_are_drawn_independently():
    views = Views([Crop(size=8, scale=(0.2, 1.0))] * 2)
    numbers = views.numbers(0, np.arange(N))
    boxes = np.array([views.boxes((100, 100), row) for row in numbers])
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    assert abs(correlation(area[:, 0], area[:, 1])) < BOUND
    flips = numbers[..., -2] < 0.5
    assert abs(correlation(flips[:, 0], flips[:, 1])) < BOUND
