"""The losses of SimCLR, BYOL and SimSiam: numbers worked out in plain loops, lightly's, gradients, and collapse."""

import math

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from torch.nn.functional import normalize

from fgssl.losses.contrastive import nt_xent
from fgssl.losses.prediction import channel_deviation, negative_cosine, normalised_regression

B, D = 5, 7


def rows(seed: int, count: int = B) -> torch.Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FIRST, SECOND = rows(0), rows(1)


def cosine_of(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def nt_xent_in_loops(first: list, second: list, tau: float) -> float:
    """Eq. 1 of SimCLR and the mean of Algorithm 1: views 2k-1 and 2k are those of image k."""
    views = [view for pair in zip(first, second, strict=True) for view in pair]
    total = 0.0
    for i, view in enumerate(views):
        partner = i + 1 if i % 2 == 0 else i - 1
        others = [math.exp(cosine_of(view, other) / tau) for k, other in enumerate(views) if k != i]
        total -= math.log(math.exp(cosine_of(view, views[partner]) / tau) / sum(others))
    return total / len(views)


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_nt_xent_is_equation_1_and_lightlys(tau):
    ours = nt_xent(normalize(FIRST), normalize(SECOND), tau=tau)
    assert ours.item() == pytest.approx(nt_xent_in_loops(FIRST.tolist(), SECOND.tolist(), tau), rel=1e-12)
    assert ours.item() == pytest.approx(NTXentLoss(temperature=tau)(FIRST, SECOND).item(), rel=1e-5)


def test_nt_xent_has_known_limits():
    """All views equal: each of the 2B - 1 others is as likely. One image: its other view is the only candidate."""
    same = normalize(torch.ones(B, D, dtype=torch.float64))
    assert nt_xent(same, same, tau=0.1).item() == pytest.approx(math.log(2 * B - 1))
    assert nt_xent(normalize(FIRST[:1]), normalize(SECOND[:1]), tau=0.1).item() == 0
    apart = torch.eye(B, D, dtype=torch.float64)
    assert nt_xent(apart, apart, tau=0.01).item() == pytest.approx(0, abs=1e-12)


def test_nt_xent_takes_views_that_are_far_apart_at_a_low_temperature():
    z = normalize(FIRST).float()
    loss = nt_xent(z.requires_grad_(), -z.detach(), tau=1e-3)
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(z.grad).all()


def test_gradients_are_those_of_finite_differences():
    first, second = FIRST.clone().requires_grad_(), SECOND.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, tau=0.3), (first, second))
    assert torch.autograd.gradcheck(negative_cosine, (first, second))
    assert torch.autograd.gradcheck(normalised_regression, (first, second))


def test_negative_cosine_is_that_of_plain_loops_and_lightlys():
    pairs = zip(FIRST.tolist(), SECOND.tolist(), strict=True)
    expected = -sum(cosine_of(p, z) for p, z in pairs) / B
    assert negative_cosine(FIRST, SECOND).item() == pytest.approx(expected, rel=1e-12)
    assert NegativeCosineSimilarity()(FIRST, SECOND).item() == pytest.approx(expected, rel=1e-5)


def test_normalised_regression_is_the_squared_distance_of_unit_vectors():
    """BYOL, Eq. 2: its left and its right hand side."""
    expected = 0.0
    for p, z in zip(FIRST.tolist(), SECOND.tolist(), strict=True):
        p, z = ([x / math.hypot(*row) for x in row] for row in (p, z))
        expected += sum((a - b) ** 2 for a, b in zip(p, z, strict=True)) / B
    assert normalised_regression(FIRST, SECOND).item() == pytest.approx(expected, rel=1e-12)
    assert normalised_regression(FIRST, 3 * FIRST).item() == pytest.approx(0, abs=1e-12)
    assert normalised_regression(FIRST, -FIRST).item() == pytest.approx(4)


def test_losses_of_half_precision_are_worked_out_in_float32():
    """The cosine of 4096 channels in bfloat16 would be off by a per cent."""
    p = torch.randn(3, 4096, generator=torch.Generator().manual_seed(2))
    z = p + 0.1 * torch.randn(3, 4096, generator=torch.Generator().manual_seed(3))
    p, z = p.bfloat16(), z.bfloat16()
    ours = negative_cosine(p, z)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(negative_cosine(p.double(), z.double()).item(), rel=1e-6)


def test_channel_deviation_is_zero_in_a_collapse_and_one_over_the_root_of_d_when_spread():
    assert channel_deviation(FIRST[:1].expand(B, D) * 3).item() == pytest.approx(0, abs=1e-12)
    assert channel_deviation(rows(4, 20_000)).item() == pytest.approx(1 / math.sqrt(D), rel=0.01)
