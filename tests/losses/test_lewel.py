"""LEWEL's alignment maps and aligned features against plain loops in float64, gradients, and what they must be."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from fgssl.losses.lewel import aligned_features, alignment_maps, map_peak

B, N, F, D = 2, 6, 8, 12  # 2 and 4 divide F and D


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FEATURES, Z = random(B, N, F, seed=0), random(B, N, D, seed=1)


def plain_maps(z: list[list[float]], tau: float) -> list[list[float]]:
    """[N][D] of one image: a softmax over the positions of each channel."""
    unit = [[value / math.hypot(*row) for value in row] for row in z]
    powers = [[math.exp(value / tau) for value in row] for row in unit]
    totals = [sum(row[d] for row in powers) for d in range(D)]
    return [[row[d] / totals[d] for d in range(D)] for row in powers]


def plain_parts(features: list[list[float]], maps: list[list[float]], heads: int) -> list[list[float]]:
    """[P][F] of one image: channel f is in head f // (F / heads), whose map of part p is channel head * P + p."""
    parts, group = D // heads, F // heads
    return [
        [sum(maps[n][(f // group) * parts + p] * features[n][f] for n in range(N)) for f in range(F)]
        for p in range(parts)
    ]


@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_maps_are_those_of_plain_loops(tau):
    expected = torch.tensor([plain_maps(z, tau) for z in Z.tolist()], dtype=torch.float64)
    torch.testing.assert_close(alignment_maps(Z, tau=tau), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_parts_are_those_of_plain_loops(heads):
    maps = alignment_maps(Z, tau=0.2)
    images = zip(FEATURES.tolist(), maps.tolist(), strict=True)
    expected = torch.tensor([plain_parts(*image, heads) for image in images], dtype=torch.float64)
    parts = aligned_features(FEATURES, maps, heads=heads)
    assert parts.shape == (B, D // heads, F)
    torch.testing.assert_close(parts, expected, rtol=1e-12, atol=1e-15)


def test_gradient_is_that_of_finite_differences():
    def parts(features: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return aligned_features(features, alignment_maps(z, tau=0.3), heads=2)

    assert torch.autograd.gradcheck(parts, (FEATURES.clone().requires_grad_(), Z.clone().requires_grad_()))


def test_flat_maps_give_the_average_over_positions_for_every_part():
    maps = alignment_maps(torch.ones(B, N, D, dtype=torch.float64), tau=1.0)
    parts = aligned_features(FEATURES, maps, heads=4)
    torch.testing.assert_close(parts, FEATURES.mean(dim=1, keepdim=True).expand(-1, D // 4, -1))
    assert map_peak(maps).item() == pytest.approx(1)


def test_a_sharp_map_gives_the_features_of_its_position():
    z = torch.full((1, N, D), 1e-9, dtype=torch.float64)
    positions = torch.arange(D) % N
    z[0, positions, torch.arange(D)] = 1.0
    maps = alignment_maps(z, tau=1e-3)
    assert map_peak(maps).item() == pytest.approx(N)
    parts = aligned_features(FEATURES[:1], maps, heads=1)
    torch.testing.assert_close(parts[0], FEATURES[0, positions])


def test_maps_do_not_depend_on_the_length_of_a_projection():
    lengths = torch.arange(1, N + 1, dtype=torch.float64)[:, None]
    torch.testing.assert_close(alignment_maps(lengths * Z, tau=0.5), alignment_maps(Z, tau=0.5))


def test_parts_do_not_depend_on_the_order_of_the_positions():
    order = torch.tensor([3, 0, 5, 1, 4, 2])

    def parts(features: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return aligned_features(features, alignment_maps(z, tau=0.5), heads=2)

    torch.testing.assert_close(parts(FEATURES[:, order], Z[:, order]), parts(FEATURES, Z))


def test_peak_is_the_largest_weight_in_units_of_the_uniform_one():
    maps = torch.tensor([[[0.5, 0.25], [0.25, 0.25], [0.25, 0.5]]])
    assert map_peak(maps).item() == pytest.approx(3 * 0.5)


def test_half_precision_projections_give_maps_of_full_precision():
    half = Z.to(torch.bfloat16)
    assert alignment_maps(half, tau=1.0).dtype == torch.float32
    parts = aligned_features(FEATURES.to(torch.bfloat16), alignment_maps(half, tau=1.0), heads=2)
    assert parts.dtype == torch.bfloat16
    exact = aligned_features(FEATURES, alignment_maps(Z, tau=1.0), heads=2)
    torch.testing.assert_close(normalize(parts.double(), dim=2), normalize(exact, dim=2), rtol=0.05, atol=0.02)
