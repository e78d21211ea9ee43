"""Random changes of views, images and epochs are independent of each other, and the same for the same sample."""

import numpy as np
import pytest
import torch

from fgssl.data.augment import Photometric, draw
from fgssl.data.batch import Batch
from fgssl.data.datamodule import DataModule
from fgssl.data.datasets.digits import Digits
from fgssl.data.samplers import Shuffled
from fgssl.data.views import Crop, MultiCrop, NestedCrops, PairViews, Views

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


# ---- every random number of a view: colours, area, place, ratio, flip ------------------------------------------------

COLOURS = Photometric(perspective=0.5, jitter=1.0, grey=0.5, blur=0.5, solarise=0.5)
CROP = Crop(size=8, scale=(0.2, 0.9), photometric=COLOURS)
FRAME = (100, 80)


def drawn(views: Views, draws: np.ndarray, seed: int = 0) -> np.ndarray:
    """[V, N, Q]: what N samples of V views get, one column for each quantity."""
    numbers = views.numbers(seed, draws)
    found = []
    for number, crop in enumerate(views.crops):
        boxes = np.array([views.boxes(FRAME, row)[number] for row in numbers])
        x0, y0, x1, y1 = boxes.T
        area, ratio = (x1 - x0) * (y1 - y0), np.log((x1 - x0) / (y1 - y0))
        across, down = x0 / np.maximum(FRAME[0] - (x1 - x0), 1), y0 / np.maximum(FRAME[1] - (y1 - y0), 1)
        flip = numbers[:, number, -2] < crop.flip
        chosen, parameters = draw(crop.photometric, seed, draws, 2 * number + 1, 32, 32)
        colours = [*chosen[:, 1:].T, *parameters[:, 9:13].T, parameters[:, 15]]  # of jitter and of blur
        found.append(np.stack([area, ratio, across, down, flip, *colours], axis=1).astype(float))
    return np.array(found)


def correlations(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Of each column of [N, Q] with each of [N, P]; 0 for a column that does not vary."""
    unit = []
    for columns in (ours, theirs):
        centred = columns - columns.mean(axis=0)
        unit.append(centred / np.maximum(np.linalg.norm(centred, axis=0), 1e-12))
    return np.abs(unit[0].T @ unit[1])


MANY = 1000
STRICT = 5 / MANY**0.5  # a few hundred pairs of columns: one in 10^4 of independent ones would lie above
KINDS = {
    "two alike": Views([CROP, CROP]),
    "MoCo": PairViews("moco"),
    "BYOL": PairViews("byol"),
    "DINO": MultiCrop(local_crops=1),
    "SwAV": MultiCrop(local_crops=1, colours="swav"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_random_number_of_a_view_is_correlated_with_one_of_another_view(kind):
    first, second, *_ = drawn(KINDS[kind], np.arange(MANY))
    assert correlations(first, second).max() < STRICT


@pytest.mark.parametrize("other", [(np.arange(MANY) + 1, 0), (np.arange(MANY) + MANY, 0), (np.arange(MANY), 1)])
def test_no_random_number_is_correlated_with_one_of_another_image_epoch_or_seed(other):
    views = KINDS["two alike"]
    ours, theirs = drawn(views, np.arange(MANY)), drawn(views, *other)
    assert max(correlations(ours[v], theirs[w]).max() for v in (0, 1) for w in (0, 1)) < STRICT


def test_crop_flip_and_colours_of_a_view_are_drawn_independently():
    (first, _) = drawn(KINDS["two alike"], np.arange(MANY))
    box, flip, chosen, colours, blur = first[:, :4], first[:, 4:5], first[:, 5:9], first[:, 9:13], first[:, 13:]
    groups = [box, flip, chosen, colours, blur]
    pairs = [(a, b) for number, a in enumerate(groups) for b in groups[number + 1 :]]
    assert max(correlations(a, b).max() for a, b in pairs) < STRICT
    assert np.triu(correlations(chosen, chosen), 1).max() < STRICT
    assert np.triu(correlations(box[:, 1:], box[:, 1:]), 1).max() < STRICT  # a box of a large area is less often long


def test_chances_are_those_of_the_settings():
    first, second = drawn(KINDS["BYOL"], np.arange(MANY))
    tolerance = 5 * (0.25 / MANY) ** 0.5
    names = ["flip", "jitter", "grey", "blur", "solarise"]
    for view, expected in ((first, [0.5, 0.8, 0.2, 1.0, 0.0]), (second, [0.5, 0.8, 0.2, 0.1, 0.2])):
        shares = dict(zip(names, view[:, 4:9].mean(axis=0), strict=True))
        assert shares == pytest.approx(dict(zip(names, expected, strict=True)), abs=tolerance)


# ---- equal where they should be --------------------------------------------------------------------------------------


def parts(world: int, epoch: int = 1, start_batch: int = 0) -> list[np.ndarray]:
    """Positions and draws of every batch of an epoch, put together over the processes."""
    ranks = [
        Shuffled(70, 12, seed=3, epoch=epoch, start_batch=start_batch, rank=rank, world=world) for rank in range(world)
    ]
    return [np.concatenate(shares) for shares in zip(*ranks, strict=True)]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_several_processes_draw_what_one_draws(world):
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(parts(world), parts(1), strict=True))


def test_resumed_epoch_draws_what_would_have_come():
    assert np.array_equal(np.array(parts(1, start_batch=2)), np.array(parts(1))[2:])


def test_sample_of_each_epoch_has_a_number_of_its_own_and_processes_share_none():
    draws = [batch[:, 1] for epoch in (-1, 0, 1) for batch in parts(2, epoch)]
    assert len(np.unique(np.concatenate(draws))) == 3 * 60
    first, second = (np.concatenate(list(Shuffled(70, 12, rank=rank, world=2)))[:, 1] for rank in (0, 1))
    assert not np.isin(first, second).any()


@pytest.mark.parametrize("other", [{"epoch": 2}, {"seed": 4}])
def test_orders_of_two_epochs_or_seeds_are_independent(other):
    options = {"seed": 3, "epoch": 1}
    ours, theirs = (np.argsort(Shuffled(MANY, 10, **o).order(o["epoch"])) for o in (options, options | other))
    assert abs(correlation(ours, theirs)) < STRICT


def test_nested_teacher_views_share_their_box_and_not_their_colours():
    views = NestedCrops(size=32, local_size=16, teacher_views=2, local_crops=0)
    first, second, *_ = drawn(views, np.arange(MANY))
    assert np.array_equal(first[:, :4], second[:, :4])
    assert correlations(first[:, 5:], second[:, 5:]).max() < STRICT
