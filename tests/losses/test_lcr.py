"""LCR's GradCAM and the fit of its attention, against plain loops in float64, finite differences and limits.

lightly has no LCR; the InfoNCE that it adds to is compared with lightly's in ``test_densecl.py``.
"""

import math

import pytest
import torch

from fgssl.losses.lcr import attention_fit, cam_peak, gradcam


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MAP, ATTENTION, CAM = random(2, 5, 3, 4), random(2, 3, 4, seed=1).abs(), random(2, 3, 4, seed=2).relu()


def softmax(values: list[float], tau: float) -> list[float]:
    powers = [math.exp(value / tau) for value in values]
    return [power / sum(powers) for power in powers]


def divergence(target: list[float], fitted: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(target, fitted, strict=True))


def groups(maps: torch.Tensor, over: str) -> list[list[float]]:
    """Positions of every distribution: those of each image, or of each row of it."""
    if over == "map":
        return [[value for row in image for value in row] for image in maps.tolist()]
    return [row for image in maps.tolist() for row in image]


def test_gradcam_is_that_of_plain_loops():
    gradient = random(2, 5, 3, 4, seed=3)
    cam = gradcam(MAP, gradient)
    for b in range(2):
        for y in range(3):
            for x in range(4):
                total = sum(MAP[b, f, y, x].item() * gradient[b, f, y, x].item() for f in range(5))
                assert cam[b, y, x].item() == pytest.approx(max(total, 0.0), rel=1e-12)
    assert (cam > 0).any()
    assert (cam == 0).any()


def test_gradcam_has_no_gradient():
    assert not gradcam(MAP.clone().requires_grad_(), random(2, 5, 3, 4, seed=3)).requires_grad


@pytest.mark.parametrize("over", ["map", "rows"])
@pytest.mark.parametrize("tau", [1.0, 0.4])
def test_fit_is_that_of_plain_loops(over, tau):
    expected = 0.0
    for cam, attention in zip(groups(CAM, over), groups(ATTENTION, over), strict=True):
        expected += divergence(softmax(cam, tau), softmax(attention, tau))
    assert attention_fit(ATTENTION, CAM, tau=tau, over=over).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("over", ["map", "rows"])
def test_gradient_of_the_fit_is_that_of_finite_differences(over):
    assert torch.autograd.gradcheck(
        lambda attention: attention_fit(attention, CAM, tau=0.4, over=over), ATTENTION.clone().requires_grad_()
    )


def test_fit_of_equal_maps_is_zero_and_of_any_shift_of_an_image_too():
    assert attention_fit(CAM, CAM, tau=0.4, over="map").item() == pytest.approx(0.0, abs=1e-12)
    assert attention_fit(CAM + 3, CAM, tau=0.4, over="map").item() == pytest.approx(0.0, abs=1e-12)


def test_fit_adds_up_the_images_of_a_batch():
    alone = [attention_fit(ATTENTION[b : b + 1], CAM[b : b + 1], tau=0.4, over="map").item() for b in range(2)]
    assert attention_fit(ATTENTION, CAM, tau=0.4, over="map").item() == pytest.approx(sum(alone), rel=1e-12)


def test_peak_is_one_of_a_flat_cam_and_the_number_of_positions_of_one_position():
    assert cam_peak(torch.zeros(2, 3, 4), tau=1.0, over="map").item() == pytest.approx(1.0)
    single = torch.zeros(2, 3, 4)
    single[:, 1, 2] = 1e4
    assert cam_peak(single, tau=1.0, over="map").item() == pytest.approx(12.0)
    assert cam_peak(single, tau=1.0, over="rows").item() == pytest.approx((1 + 4 + 1) / 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fit_of_16_bit_maps_is_taken_in_float32(dtype):
    map_BFHW, gradient = (MAP * 100).to(dtype), (random(2, 5, 3, 4, seed=3) * 1e3).to(dtype)
    cam = gradcam(map_BFHW, gradient)
    assert cam.dtype == torch.float32
    torch.testing.assert_close(cam, (map_BFHW.double() * gradient.double()).sum(1).relu().float())
    fit = attention_fit(ATTENTION.to(dtype), cam / 1e5, tau=0.4, over="map")
    expected = attention_fit(ATTENTION.to(dtype).double(), cam.double() / 1e5, tau=0.4, over="map")
    torch.testing.assert_close(fit, expected.float(), rtol=1e-5, atol=1e-6)
