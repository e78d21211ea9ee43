"""MAE's patches and loss against plain loops in float64, lightly's functions, and finite differences."""

import math

import numpy as np
import pytest
import torch
from lightly.models import utils as lightly

from fgssl.losses.mae import patch_statistics, patchify, reconstruction_loss, unpatchify

SIZES = [((4, 4), (3, 3)), ((8, 8), (4, 4)), ((2, 3), (5, 4))]  # patch, grid: square ones, and neither square


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images_of(patch: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    return random(2, 3, grid[0] * patch[0], grid[1] * patch[1])


@pytest.mark.parametrize(("patch", "grid"), SIZES)
def test_patches_are_row_by_row_with_the_channels_of_a_pixel_side_by_side(patch, grid):
    images = images_of(patch, grid)
    patches = patchify(images, patch)
    assert patches.shape == (2, grid[0] * grid[1], 3 * patch[0] * patch[1])
    for row in range(grid[0]):
        for column in range(grid[1]):
            values = [
                images[1, channel, row * patch[0] + y, column * patch[1] + x].item()
                for y in range(patch[0])
                for x in range(patch[1])
                for channel in range(3)
            ]
            assert patches[1, row * grid[1] + column].tolist() == values


@pytest.mark.parametrize(("patch", "grid"), SIZES)
def test_unpatchify_is_the_inverse_of_patchify(patch, grid):
    images = images_of(patch, grid)
    assert torch.equal(unpatchify(patchify(images, patch), patch, grid), images)


def test_patches_and_their_normalisation_are_lightlys():
    images = images_of((8, 8), (4, 4))
    patches = patchify(images, (8, 8))
    assert torch.equal(patches, lightly.patchify(images, 8))
    assert torch.equal(unpatchify(patches, (8, 8), (4, 4)), lightly.unpatchify(patches, 8))
    mean, deviation = patch_statistics(patches)
    normalised = lightly.normalize_mean_var(patches)
    torch.testing.assert_close((patches - mean) / deviation, normalised, rtol=1e-12, atol=1e-12)


def loss_by_loops(predicted: np.ndarray, patches: np.ndarray, masked: np.ndarray, normalise: bool) -> float:
    """Value by value: the squared error of each hidden patch, its mean, the mean over all hidden patches."""
    of_patches = []
    for image, numbers in enumerate(masked):
        for place, number in enumerate(numbers):
            target = patches[image, number].tolist()
            mean = sum(target) / len(target)
            variance = sum((value - mean) ** 2 for value in target) / (len(target) - 1)
            if normalise:
                target = [(value - mean) / math.sqrt(variance + 1e-6) for value in target]
            errors = [(a - b) ** 2 for a, b in zip(predicted[image, place].tolist(), target, strict=True)]
            of_patches.append(sum(errors) / len(errors))
    return sum(of_patches) / len(of_patches)


MASKED = torch.tensor([[5, 0, 7], [2, 8, 3]])


@pytest.mark.parametrize("normalise", [True, False])
def test_loss_is_that_of_the_loops(normalise):
    patches, predicted = patchify(0.3 * images_of((4, 4), (3, 3)) + 2, (4, 4)), random(2, 3, 48, seed=1)
    loss = reconstruction_loss(predicted, patches, MASKED, normalise=normalise)
    golden = loss_by_loops(predicted.numpy(), patches.numpy(), MASKED.numpy(), normalise)
    assert loss.item() == pytest.approx(golden, rel=1e-12)


def test_loss_is_the_golden_one():
    """Worked out by hand: the hidden patch (1, 2, 3, 6) has mean 3, squares 4 + 1 + 0 + 9, variance 14 / 3."""
    patches = torch.tensor([[[9.0, 9.0, 9.0, 9.0], [1.0, 2.0, 3.0, 6.0]]], dtype=torch.float64)
    predicted = torch.tensor([[[0.0, 0.0, 0.0, 1.0]]], dtype=torch.float64)
    masked = torch.tensor([[1]])
    assert reconstruction_loss(predicted, patches, masked, normalise=False).item() == (1 + 4 + 9 + 25) / 4
    deviation = math.sqrt(14 / 3 + 1e-6)
    golden = (14 / deviation**2 - 2 * 3 / deviation + 1) / 4
    assert reconstruction_loss(predicted, patches, masked, normalise=True).item() == pytest.approx(golden, rel=1e-12)


@pytest.mark.parametrize("normalise", [True, False])
def test_visible_patches_do_not_count(normalise):
    patches, predicted = patchify(images_of((4, 4), (3, 3)), (4, 4)), random(2, 3, 48, seed=1)
    loss = reconstruction_loss(predicted, patches, MASKED, normalise=normalise)
    other = patches.clone()
    for image, numbers in enumerate(MASKED.tolist()):
        visible = sorted(set(range(9)) - set(numbers))
        other[image, visible] = torch.nan
    assert torch.equal(reconstruction_loss(predicted, other, MASKED, normalise=normalise), loss)


def test_predicting_the_mean_of_normalised_patches_costs_one():
    patches = patchify(images_of((8, 8), (4, 4)), (8, 8))
    masked = torch.arange(16).expand(2, 16)
    loss = reconstruction_loss(torch.zeros_like(patches), patches, masked, normalise=True)
    assert loss.item() == pytest.approx(191 / 192, rel=1e-5)


def test_flat_patches_have_a_finite_loss_and_gradient():
    """Skies, and the borders of a drawing: the variance of such a patch is 0."""
    predicted = random(2, 3, 48).float().requires_grad_()
    loss = reconstruction_loss(predicted, torch.full((2, 9, 48), 1.7), MASKED, normalise=True)
    loss.backward()
    assert torch.isfinite(loss)
    assert bool(torch.isfinite(predicted.grad).all())


def test_gradient_is_that_of_finite_differences():
    patches, predicted = patchify(images_of((2, 2), (3, 3)), (2, 2)), random(2, 3, 12, seed=1).requires_grad_()
    for normalise in (True, False):
        assert torch.autograd.gradcheck(
            lambda p, normalise=normalise: reconstruction_loss(p, patches, MASKED, normalise=normalise), predicted
        )


def test_half_precision_is_compared_in_float32():
    patches, predicted = patchify(images_of((4, 4), (3, 3)), (4, 4)).float(), random(2, 3, 48, seed=1).bfloat16()
    loss = reconstruction_loss(predicted, patches, MASKED, normalise=True)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, reconstruction_loss(predicted.float(), patches, MASKED, normalise=True))
