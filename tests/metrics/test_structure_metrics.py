import json
import math
from pathlib import Path

import pytest
import torch

from fgssl.metrics import embedding_density, spectral_decay

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "obdsd_metrics.json").read_text())
Z, LABELS = torch.tensor(GOLDEN["raw"], dtype=torch.float64), torch.tensor(GOLDEN["labels"])


def test_density_equals_golden_numbers():
    assert embedding_density(Z, LABELS) == pytest.approx(GOLDEN["pi_ratio"], rel=1e-6)


@pytest.mark.parametrize("drop", [0, 1, 2])
def test_spectral_decay_equals_golden_numbers(drop):
    assert spectral_decay(Z, drop=drop) == pytest.approx(
        GOLDEN["spectral_decay"][f"drop_{drop}"]["KL_uniform_s"], rel=1e-6
    )


def test_density_uses_classes_of_one_only_between_classes():
    z, labels = torch.eye(4)[[0, 0, 1, 2]], torch.tensor([0, 0, 1, 2])
    assert embedding_density(z, labels) == 0


def test_density_and_decay_of_a_collapsed_embedding():
    assert math.isnan(embedding_density(torch.ones(8, 4), LABELS))
    for seed in range(10):  # means that differ by rounding
        same = torch.randn(1, 100, generator=torch.Generator().manual_seed(seed)).repeat(8, 1)
        assert math.isnan(embedding_density(same, LABELS))
    assert spectral_decay(torch.ones(8, 4)) == math.inf


def test_a_singular_value_within_rounding_of_the_largest_is_0():
    steps = torch.linspace(-1, 1, 100, dtype=torch.float64)
    small = torch.stack([torch.ones_like(steps), 1e-3 * steps, 1e-14 * steps**2], dim=1)
    assert spectral_decay(small) == math.inf  # 1e-14 is not 0 beside 1e-3, but beside 1
    assert spectral_decay(small * torch.tensor([1.0, 1.0, 1e6])) == pytest.approx(0, abs=1e-12)  # one value is left


def test_structure_metrics_reject_invalid_input():
    with pytest.raises(ValueError, match="two classes"):
        embedding_density(Z, torch.arange(8))
    with pytest.raises(ValueError, match="drop is 4; it must be in 0 .. 3"):
        spectral_decay(Z, drop=4)
