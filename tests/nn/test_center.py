"""The teacher's centre."""

import pytest
import torch

from fgssl.nn.center import Center


def test_center_is_the_moving_average_of_batch_means():
    center, logits = Center(3, momentum=0.9), torch.randn(2, 4, 3)
    center.update(logits)
    torch.testing.assert_close(center.value, 0.1 * logits.mean((0, 1)))
    center.update(logits + 1)
    torch.testing.assert_close(center.value, 0.19 * logits.mean((0, 1)) + 0.1)


def test_center_ignores_a_batch_that_is_not_finite():
    center = Center(2)
    center.update(torch.ones(4, 2))
    before = center.value.clone()
    center.update(torch.tensor([[1.0, float("nan")]]))
    assert torch.equal(center.value, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_mean_of_16_bit_logits_is_taken_in_float32(dtype):
    torch.manual_seed(0)
    logits = (torch.randn(512, 64) + 3).to(dtype)
    center = Center(64, momentum=0.0)
    center.update(logits)
    torch.testing.assert_close(center.value, logits.double().mean(0).float(), rtol=1e-5, atol=0)
