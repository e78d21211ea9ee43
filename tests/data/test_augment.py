"""Each photometric change against torchvision's with the same parameters; how often and how far; whose draws."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import ColorJitter, RandomPerspective
from torchvision.transforms import functional as TF

from fgssl.data import augment as module
from fgssl.data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Photometric,
    augment,
    blur_weights,
    gaussian_blur,
    grey,
    homographies,
    jitter,
    normalise,
    of_colours,
    of_grid,
    perspective,
    shift_hue,
    solarise,
    solve_homographies,
    taps_needed,
)
from fgssl.data.views import MultiCrop, NestedCrops, PairViews
from tests.launches import Launches

IMAGES = torch.rand(6, 3, 40, 52, generator=torch.Generator().manual_seed(0))
IMAGES[0] = IMAGES[0, :1]  # a grey image has no hue
IMAGES[1, :, :10] = 0
IMAGES[1, :, 30:] = 1


def per_image(function, values) -> torch.Tensor:
    return torch.stack([function(image, float(value)) for image, value in zip(IMAGES, values, strict=True)])


def tensor(parameters: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(parameters.astype(np.float32))


@pytest.mark.parametrize(
    ("column", "function"),
    [(0, TF.adjust_brightness), (1, TF.adjust_contrast), (2, TF.adjust_saturation), (3, TF.adjust_hue)],
)
def test_jitter_of_one_kind(column, function):
    factors = np.tile([1.0, 1.0, 1.0, 0.0], (6, 1))
    factors[:, column] += np.linspace(-0.4, 0.4, 6)
    found = jitter(IMAGES, tensor(of_colours(factors)))
    assert torch.allclose(found, per_image(function, factors[:, column]), atol=3e-6)


def test_jitter_of_all_kinds_where_nothing_clips():
    images = 0.4 + 0.2 * IMAGES
    b, c, s, h = 1.1, 0.8, 1.3, 0.07
    wanted = TF.adjust_hue(TF.adjust_saturation(TF.adjust_contrast(TF.adjust_brightness(images, b), c), s), h)
    assert torch.allclose(jitter(images, tensor(of_colours(np.tile([b, c, s, h], (6, 1))))), wanted, atol=3e-6)


@pytest.mark.parametrize("turns", [-0.5, -0.1, 0.0, 0.3, 0.5])
def test_hue(turns):
    shifts = tensor(of_colours(np.tile([1.0, 1.0, 1.0, turns], (6, 1)))[:, 3:])
    assert torch.allclose(shift_hue(IMAGES, shifts), TF.adjust_hue(IMAGES, turns), atol=3e-6)


def test_grey():
    assert torch.allclose(grey(IMAGES), TF.rgb_to_grayscale(IMAGES, 3), atol=1e-6)


def test_blur():
    sigma = np.linspace(0.1, 2.0, 6)
    wanted = per_image(lambda image, s: TF.gaussian_blur(image, [13, 13], [s, s]), sigma)
    assert torch.allclose(gaussian_blur(IMAGES, tensor(blur_weights(sigma, 40))), wanted, atol=2e-6)


@pytest.mark.parametrize("side", [2, 4, 6])
def test_blur_of_an_image_smaller_than_the_kernel(side):
    sigma, images = np.linspace(0.1, 2.0, 6), IMAGES[..., :side, : side + 3]
    weights = blur_weights(sigma, side)
    taps = 2 * side - 1  # as far as the border mirrors
    wanted = [TF.gaussian_blur(image, [taps, taps], [s, s]) for image, s in zip(images, sigma.tolist(), strict=True)]
    found = gaussian_blur(images, tensor(weights)[:, : taps_needed(weights)])
    assert torch.allclose(found, torch.stack(wanted), atol=2e-6)


@pytest.mark.parametrize(("sigma", "taps"), [(0.1, 1), (0.5, 3), (1.0, 6), (2.0, 7)])
def test_taps_that_are_left_out_do_not_show(sigma, taps):
    weights = blur_weights(np.full(6, sigma), 40)
    assert taps_needed(weights) == taps
    assert taps_needed(np.concatenate([weights, blur_weights(np.array([2.0]), 40)])) == 7  # as the widest one needs
    some = gaussian_blur(IMAGES, tensor(weights)[:, :taps])
    assert torch.allclose(some, gaussian_blur(IMAGES, tensor(weights)), atol=1e-6, rtol=0)


def test_solarise():
    bytes_ = torch.arange(256).repeat(1, 3, 1, 1) / 255
    wanted = TF.solarize(torch.arange(256, dtype=torch.uint8).repeat(1, 3, 1, 1), 128) / 255
    assert torch.allclose(solarise(bytes_), wanted, atol=1e-6)


def test_perspective():
    rng = np.random.default_rng(0)
    start = np.array([[0, 0], [51, 0], [51, 39], [0, 39]])
    end = start + np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * rng.integers(0, 11, (6, 4, 2))
    matrices = of_grid(solve_homographies(start.astype(float), end.astype(float)), 52, 40)
    ours = perspective(IMAGES, tensor(matrices))
    for image, corners, result in zip(IMAGES, end.tolist(), ours, strict=True):
        assert torch.allclose(result, TF.perspective(image, start.tolist(), corners), atol=3e-4)


def test_corners_move_as_far_as_torchvisions():
    corners = np.random.default_rng(0).random((3000, 8))
    start = np.array([[0, 0, 1], [51, 0, 1], [51, 39, 1], [0, 39, 1]]).T
    moved = np.linalg.inv(homographies(corners, 52, 40)) @ start  # source corners in the result
    x, y = (moved[:, axis] / moved[:, 2] for axis in (0, 1))
    theirs = np.array([RandomPerspective.get_params(52, 40, 0.5)[1] for _ in range(3000)])
    for corner in range(4):
        for ours, others in ((x[:, corner], theirs[:, corner, 0]), (y[:, corner], theirs[:, corner, 1])):
            assert set(np.round(ours).astype(int)) == set(others)  # every pixel within reach, and no other
            assert abs(ours.mean() - others.mean()) < 0.5


def test_normalise():
    assert torch.allclose(
        normalise(IMAGES.clone(), IMAGENET_MEAN, IMAGENET_STD), TF.normalize(IMAGES, IMAGENET_MEAN, IMAGENET_STD)
    )


# ---- the random part ------------------------------------------------------------------------------------------

NOISE = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def run(photometric: Photometric, images: torch.Tensor, first: int = 0, stream: int = 1, **options) -> torch.Tensor:
    options = {"seed": 0, "mean": (0, 0, 0), "std": (1, 1, 1)} | options
    draws = first + np.arange(len(images))
    return augment([images], [photometric], draws=draws, streams=[stream], **options)[0]


@pytest.mark.parametrize("name", ["perspective", "jitter", "grey", "blur", "solarise"])
@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 1.0])
def test_how_often(name, probability):
    images = NOISE.expand(2000, -1, -1, -1)
    changed = (run(Photometric(**{name: probability}), images) != images / 255).flatten(1).any(1).float().mean()
    assert abs(changed - probability) < 0.04  # 3.6 sigma; all 256 identity perspectives are rarer


@pytest.mark.parametrize(("column", "name"), enumerate(["brightness", "contrast", "saturation", "hue"]))
def test_how_far_is_torchvisions_range(column, name, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "of_colours", lambda factors: seen.append(factors) or of_colours(factors))
    run(Photometric(jitter=1.0, brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1), NOISE.expand(3000, -1, -1, -1))
    values = seen[0][:, column]
    low, high = getattr(ColorJitter(0.4, 0.3, 0.2, 0.1), name)
    assert low <= values.min() < low + 0.01 * (high - low)
    assert high >= values.max() > high - 0.01 * (high - low)
    assert abs(values.mean() - (low + high) / 2) < 0.02


def test_each_image_draws_for_itself_whatever_its_batch(monkeypatch):
    everything = Photometric(perspective=0.5, jitter=0.8, grey=0.2, blur=0.5, solarise=0.2)
    images = NOISE.repeat(20, 1, 1, 1)
    whole = run(everything, images)
    assert len({image.numpy().tobytes() for image in whole}) > 15
    halves = torch.cat([run(everything, images[:7]), run(everything, images[7:], first=7)])
    assert torch.allclose(whole, halves, atol=1e-6)
    monkeypatch.setattr(module, "CPU_CHUNK", 3 * 16 * 16)
    assert torch.allclose(whole, run(everything, images), atol=1e-6)
    assert not torch.equal(whole, run(everything, images, seed=1))
    assert not torch.equal(whole, run(everything, images, stream=3))


def test_images_larger_than_a_chunk_are_augmented_one_by_one():
    side = math.isqrt(module.CPU_CHUNK) + 1
    view = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, side, side), np.uint8))
    photometric, options = PairViews().crops[0].photometric, {"seed": 0, "streams": [1]}
    (both,) = augment([view], [photometric], draws=np.arange(2), **options)
    for number in range(2):
        (alone,) = augment([view[number : number + 1]], [photometric], draws=np.array([number]), **options)
        assert torch.equal(both[number], alone[0])


def test_input_is_left_alone_and_output_is_planar():
    images = NOISE.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    before = images.clone()
    result = run(Photometric(jitter=1.0, blur=1.0), images)
    assert torch.equal(images, before)
    assert result.dtype == torch.float32
    assert result.is_contiguous()


# ---- views together ---------------------------------------------------------------------------------------------

VIEWS = {
    "pair": PairViews("cars", 32),
    "multi-crop": MultiCrop(32, local_size=16),
    "nested": NestedCrops(32, local_size=16, teacher_views=2, recipe="code"),
}


def test_result_is_float32_whatever_the_default_type():
    photometric, images = Photometric(perspective=0.5, jitter=0.5, blur=0.5, solarise=0.5), NOISE.repeat(9, 1, 1, 1)
    expected = run(photometric, images)
    torch.set_default_dtype(torch.float64)  # as Lightning does for precision 64-true
    try:
        assert torch.equal(run(photometric, images), expected)
        assert expected.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def images_of(views, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = [(count, 3, crop.size, crop.size) for crop in views.crops]
    return [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for shape in shapes]


def augmented(views, images: list[torch.Tensor]) -> list[torch.Tensor]:
    photometrics, streams = [crop.photometric for crop in views.crops], range(1, 2 * len(images), 2)
    return augment(images, photometrics, seed=5, draws=np.arange(len(images[0])), streams=streams)


@pytest.mark.parametrize("name", VIEWS)
def test_views_of_one_size_in_one_call_are_the_same_pictures(name, monkeypatch):
    images = images_of(VIEWS[name], 12)
    apart = augmented(VIEWS[name], images)
    monkeypatch.setattr(module, "_together", module._by_size)
    together = augmented(VIEWS[name], images)
    for one, other in zip(apart, together, strict=True):
        assert other.is_contiguous()
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(("name", "budget"), [("pair", 95), ("multi-crop", 170), ("nested", 175)])
def test_kernel_launches_of_a_batch(name, budget):
    """On a device other than the CPU, copies to it included; ten crops of multi-crop took 1,072 one by one."""
    images = [image.to("meta") for image in images_of(VIEWS[name], 64)]  # computes nothing, but goes a GPU's way
    with Launches("meta") as launches:
        augmented(VIEWS[name], images)
    assert budget - 20 < launches.count <= budget, launches.by_name
