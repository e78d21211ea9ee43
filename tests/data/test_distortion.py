"""The photometric distortion of segmentation: known answers of each change, and how often each happens."""

import colorsys

import numpy as np
import pytest
import torch

from fgssl.data.distortion import DISTORTION_NUMBERS, distort, scale_saturation

NOTHING = np.full(DISTORTION_NUMBERS, 0.99)  # no change is made


def one_change(place: int, amount: float, **others: float) -> np.ndarray:
    numbers = NOTHING.copy()
    numbers[2 * place : 2 * place + 2] = 0.0, amount
    for name, value in others.items():
        numbers[int(name[1:])] = value
    return numbers


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_nothing_happens_without_a_change(image):
    assert distort(image, NOTHING).equal(image)


@pytest.mark.parametrize(("amount", "shift"), [(0.0, -32), (0.5, 0), (0.75, 16)])
def test_brightness_adds_up_to_32(amount, shift, image):
    assert distort(image, one_change(0, amount)).equal((image.int() + shift).clamp(0, 255).byte())


@pytest.mark.parametrize(("amount", "factor"), [(0.0, 0.5), (0.5, 1.0), (0.75, 1.25)])
def test_contrast_multiplies_the_values_first_or_last(amount, factor, image):
    expected = (image.double() * factor).clamp(0, 255)
    for place in (0.0, 0.99):
        assert (distort(image, one_change(1, amount, n8=place)).double() - expected).abs().max() <= 0.5 + 1e-6


def in_hsv(image, change) -> torch.Tensor:
    """[3, H, W] uint8 with ``change`` applied to hue, saturation and value of each pixel."""
    pixels = [
        colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in (image / 255).flatten(1).T.tolist()
    ]
    return 255 * torch.tensor(pixels).T.reshape(image.shape)


@pytest.mark.parametrize(("amount", "factor"), [(0.0, 0.5), (0.9, 1.4)])
def test_saturation_is_that_of_hsv_and_at_most_1(amount, factor, image):
    image[:, 0] = 100  # greys have no hue
    expected = in_hsv(image, lambda h, s, v: (h, min(1.0, factor * s), v))
    assert (distort(image, one_change(2, amount)).float() - expected).abs().max() < 0.51
    black = torch.zeros(3, 2, 2)
    assert scale_saturation(black, 1.5).equal(black)


@pytest.mark.parametrize(("amount", "turns"), [(0.0, -0.1), (0.8, 0.06)])
def test_hue_turns_by_a_tenth_at_most(amount, turns, image):
    expected = in_hsv(image, lambda h, s, v: ((h + turns) % 1, s, v))
    assert (distort(image, one_change(3, amount)).float() - expected).abs().max() < 0.51


def test_contrast_before_or_after_the_colours_differs_where_values_are_cut(image):
    """Bright pixels are cut before their saturation rises, or after it."""
    numbers = one_change(1, 1.0, n4=0.0, n5=1.0)
    first, last = (distort(image, np.concatenate([numbers[:8], [place]])) for place in (0.0, 0.99))
    assert not first.equal(last)


def test_each_change_is_made_in_half_of_the_draws(image):
    draws = np.random.default_rng(0).random((400, DISTORTION_NUMBERS))
    same = [distort(image[:, :2, :2], numbers).equal(image[:, :2, :2]) for numbers in draws]
    assert np.mean(same) == pytest.approx(1 / 16, abs=0.04)  # none of four
