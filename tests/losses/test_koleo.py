"""KoLeo against plain loops in float64, lightly's loss, finite differences, and its limits."""

import math

import pytest
import torch
from lightly.loss import KoLeoLoss

from fgssl.losses.koleo import koleo


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops(features: torch.Tensor) -> float:
    rows = [[value / math.hypot(*row) for value in row] for row in features.tolist()]
    nearest = [min(math.dist(a, b) for j, b in enumerate(rows) if j != i) for i, a in enumerate(rows)]
    return -sum(math.log(distance) for distance in nearest) / len(rows)


@pytest.mark.parametrize("shape", [(2, 3), (7, 5), (40, 16)])
def test_koleo_is_that_of_the_loops(shape):
    features = 3 * random(*shape)
    assert koleo(features).item() == pytest.approx(by_loops(features), rel=1e-6)


def test_koleo_is_the_golden_one():
    """Directions at 0, 90 and 180 degrees: each has a neighbour at the distance sqrt(2), whatever its length."""
    features = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-5.0, 0.0]], dtype=torch.float64)
    assert koleo(features).item() == pytest.approx(-math.log(2) / 2, rel=1e-7)


@pytest.mark.parametrize("shape", [(2, 3), (40, 16)])
def test_koleo_and_its_gradient_are_lightlys(shape):
    ours, theirs = (random(*shape).requires_grad_() for _ in range(2))
    loss, golden = koleo(ours), KoLeoLoss()(theirs)
    torch.testing.assert_close(loss, golden, rtol=1e-5, atol=1e-8)
    loss.backward()
    golden.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-8)


def test_gradient_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(koleo, random(6, 4).requires_grad_())


def test_two_features_in_one_place_have_a_finite_loss_and_gradient():
    features = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, -1.0]], requires_grad=True)
    loss = koleo(features)
    loss.backward()
    assert torch.isfinite(loss)
    assert bool(torch.isfinite(features.grad).all())


def test_half_precision_is_computed_in_float32():
    features = random(6, 4).bfloat16()
    assert torch.equal(koleo(features), koleo(features.float()))
