"""Barlow Twins' and VICReg's losses: golden numbers worked out element by element, gradients, and lightly's losses."""

import math

import pytest
import torch
from lightly.loss import BarlowTwinsLoss, VICRegLoss

from fgssl.losses.redundancy import barlow_twins, covariance, invariance, squared_norm_of_product, variance

SHAPES = [(4, 7), (9, 4), (5, 5)]  # B < D, as in the papers; B > D; equal
Z1 = [[1.0, -2.0, 0.5], [0.0, 1.0, 2.5], [-3.0, 0.5, 1.0], [2.0, 4.0, -1.5]]
Z2 = [[0.5, -1.0, 1.5], [1.0, 1.5, 2.0], [-2.0, -0.5, 0.0], [1.5, 3.0, -1.0]]


def pair(batch: int, dim: int, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Two views with a mean, a scale and correlations between the channels."""
    generator = torch.Generator().manual_seed(batch * dim)
    z1, noise = torch.randn(2, batch, dim, generator=generator, dtype=torch.float64)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    z1 = 0.7 * z1 @ mix + 2
    return z1.to(dtype), (z1 + 0.3 * noise).to(dtype)


def column(rows: list[list[float]], i: int) -> list[float]:
    return [row[i] for row in rows]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def correlation(one: list[float], other: list[float], eps: float) -> float:
    """Eq. 2 of Barlow Twins, with ``eps`` added to both variances."""
    a, b = ([x - mean(values) for x in values] for values in (one, other))
    variances = (mean([x * x for x in a]) + eps, mean([x * x for x in b]) + eps)
    return mean([x * y for x, y in zip(a, b, strict=True)]) / math.sqrt(variances[0] * variances[1])


def plain_covariance(one: list[float], other: list[float]) -> float:
    a, b = ([x - mean(values) for x in values] for values in (one, other))
    return sum(x * y for x, y in zip(a, b, strict=True)) / (len(a) - 1)


def of(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def close(actual, expected, rtol=1e-9):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=rtol, atol=1e-12)


# ---- Barlow Twins ----------------------------------------------------------------------------------------------------


def plain_barlow_twins(z1: list[list[float]], z2: list[list[float]]) -> tuple[float, float]:
    channels = range(len(z1[0]))
    c = [[correlation(column(z1, i), column(z2, j), eps=1e-5) for j in channels] for i in channels]
    invariance_term = sum((1 - c[i][i]) ** 2 for i in channels)
    return invariance_term, sum(c[i][j] ** 2 for i in channels for j in channels if i != j)


def test_barlow_twins_of_a_small_batch_has_these_terms():
    terms = barlow_twins(of(Z1), of(Z2))
    close(torch.stack(terms), [0.03666797856290174, 1.1586677025376106])
    close(torch.stack(terms), plain_barlow_twins(Z1, Z2))


@pytest.mark.parametrize("shape", SHAPES)
def test_barlow_twins_is_the_plain_sum_over_the_matrix(shape):
    z1, z2 = pair(*shape)
    close(torch.stack(barlow_twins(z1, z2)), plain_barlow_twins(z1.tolist(), z2.tolist()))


@pytest.mark.parametrize("shape", SHAPES)
def test_barlow_twins_has_the_gradient_of_finite_differences(shape):
    z1, z2 = (z.requires_grad_() for z in pair(*shape))
    assert torch.autograd.gradcheck(barlow_twins, (z1, z2))


@pytest.mark.parametrize("shape", [*SHAPES, (64, 512)])
def test_barlow_twins_is_lightlys(shape):
    z1, z2 = pair(*shape, dtype=torch.float32)
    on, off = barlow_twins(z1, z2)
    close(on + 0.0051 * off, BarlowTwinsLoss(lambda_param=0.0051)(z1, z2), rtol=1e-5)


def test_barlow_twins_of_uncorrelated_channels_that_agree_is_zero():
    signs = of([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])  # orthogonal columns
    on, off = barlow_twins(100 * signs, 100 * signs + 5)  # the variance is large beside BatchNorm's 1e-5
    close(torch.stack([on, off]), [0.0, 0.0])
    _, off = barlow_twins(100 * signs[:, [0, 0, 1]], 100 * signs[:, [0, 0, 1]])
    close(off, 2.0, rtol=1e-6)  # two channels that are the same


# ---- VICReg ----------------------------------------------------------------------------------------------------------


def plain_variance(z: list[list[float]]) -> float:
    channels = [column(z, i) for i in range(len(z[0]))]
    return mean([max(0.0, 1 - math.sqrt(plain_covariance(x, x) + 1e-4)) for x in channels])


def plain_covariance_term(z: list[list[float]]) -> float:
    channels = [column(z, i) for i in range(len(z[0]))]
    pairs = [(a, b) for i, a in enumerate(channels) for j, b in enumerate(channels) if i != j]
    return sum(plain_covariance(a, b) ** 2 for a, b in pairs) / len(channels)


def test_vicreg_of_a_small_batch_has_these_terms():
    small = [[x / 4 for x in row] for row in Z1]  # or no channel would be below the hinge
    close(invariance(of(Z1), of(Z2)), 8.25 / 12)
    close(torch.stack([variance(of(small)), covariance(of(Z1))]), [0.4770283593877726, 6.576678240740743])
    close(variance(of(small)), plain_variance(small))
    close(covariance(of(Z1)), plain_covariance_term(Z1))


@pytest.mark.parametrize("shape", SHAPES)
def test_vicreg_terms_are_the_plain_sums(shape):
    z1, z2 = pair(*shape)
    differences = [(a - b) ** 2 for a, b in zip(z1.flatten().tolist(), z2.flatten().tolist(), strict=True)]
    close(invariance(z1, z2), mean(differences))
    close(variance(0.2 * z1), plain_variance((0.2 * z1).tolist()))
    close(covariance(z1), plain_covariance_term(z1.tolist()))


@pytest.mark.parametrize("shape", SHAPES)
def test_vicreg_terms_have_the_gradient_of_finite_differences(shape):
    z1, z2 = (z.requires_grad_() for z in pair(*shape))
    assert torch.autograd.gradcheck(invariance, (z1, z2))
    assert torch.autograd.gradcheck(lambda z: variance(0.2 * z), (z1,))
    assert torch.autograd.gradcheck(covariance, (z1,))


@pytest.mark.parametrize("shape", [*SHAPES, (64, 512)])
@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_vicreg_is_lightlys(shape, scale):
    """With the released code's mean of the two views' variance terms; Eq. 6 of the paper adds them."""
    z1, z2 = (scale * z for z in pair(*shape, dtype=torch.float32))
    v = (variance(z1) + variance(z2)) / 2
    loss = 25 * invariance(z1, z2) + 25 * v + covariance(z1) + covariance(z2)
    close(loss, VICRegLoss()(z1, z2), rtol=1e-5)


def test_variance_of_a_constant_channel_is_finite_and_pulls_it_apart():
    z = torch.zeros(4, 2, requires_grad=True)
    loss = variance(z)
    close(loss, 0.99)
    loss.backward()
    assert torch.isfinite(z.grad).all()


# ---- the number that both share --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_squared_norm_is_that_of_the_whole_matrix(shape):
    a, b = pair(*shape)
    close(squared_norm_of_product(a, b), sum(x * x for row in (a.T @ b).tolist() for x in row))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_losses_of_16_bit_projections_are_computed_in_32_bits(kind):
    z1, z2 = (z.to(kind) for z in pair(64, 96))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = [*barlow_twins(z1, z2), invariance(z1, z2), variance(0.2 * z1), covariance(z1)]
    exact = [z.double() for z in (z1, z2)]
    theirs = [*barlow_twins(*exact), invariance(*exact), variance((0.2 * z1).double()), covariance(exact[0])]
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == torch.float32
        close(our, their, rtol=1e-4)
