"""A refactoring that changes a number of a training is seen at once: losses and weights of four steps."""

import math

import pytest

from tests.golden_runs import NAMES, figures, read_golden

pytestmark = pytest.mark.slow

# The views are float32: a processor that adds in another order gives other last digits of them, up to 1e-5 of a loss.
RTOL = 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_four_steps_have_the_losses_and_weights_of_the_golden_run(name, tmp_path):
    golden, found = read_golden()[name], figures(name, tmp_path)
    assert found.keys() == golden.keys()
    assert found.pop("loss") == pytest.approx(golden.pop("loss"), rel=RTOL, abs=RTOL)
    for part, (total, norm, count) in golden.items():
        assert found[part][2] == count, part
        assert found[part][1] == pytest.approx(norm, rel=RTOL), part
        # a sum of both signs is exact to the length of what it sums
        assert found[part][0] == pytest.approx(total, rel=RTOL, abs=RTOL * norm * math.sqrt(count)), part


def test_golden_runs_are_those_of_the_methods():
    assert tuple(read_golden()) == NAMES, "run: python -m tests.golden_runs"
