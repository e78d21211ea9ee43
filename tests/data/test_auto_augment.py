"""MaskCon's AutoAugment policy against operations put together from PIL alone."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from fgssl.data.auto_augment import OPERATIONS, POLICY, apply, auto_augment
from fgssl.data.draws import uniform
from fgssl.data.views import NUMBERS, RECIPES, Crop, Views

SIDE = 32
NAMES = {"Color": "colour", "ShearY": "shear_y", "TranslateX": "translate_x", "TranslateY": "translate_y"}
USES_LEVEL = {name for pair in POLICY for _, name, _ in pair} - {"autocontrast", "equalize", "invert"}
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)).resize((SIDE, SIDE))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def on_grey(moved: Image.Image) -> Image.Image:
    """A picture with transparent parts in front of grey."""
    return Image.composite(moved, Image.new("RGBA", moved.size, (128, 128, 128, 128)), moved).convert("RGB")


def bicubic_shear(image: Image.Image, slope: float) -> np.ndarray:
    """Column x moved by ``slope`` x, interpolated by the cubic with a = -1 (PIL's for transforms), grey outside."""
    source, result = pixels(image), np.full((SIDE, SIDE, 3), 128)
    for x in range(SIDE):
        for y in range(SIDE):
            v = slope * (x + 0.5) + y + 0.5
            if not 0 <= v < SIDE:
                continue
            low = int(np.floor(v - 0.5))
            distances = np.abs(v - 0.5 - np.arange(low - 1, low + 3))
            near, far = distances**3 - 2 * distances**2 + 1, -(distances**3) + 5 * distances**2 - 8 * distances + 4
            weights = np.where(distances < 1, near, far)
            rows = np.clip(np.arange(low - 1, low + 3), 0, SIDE - 1)
            result[y, x] = np.clip(np.round(weights @ source[rows, x]), 0, 255)
    return result


def moved(image: Image.Image, dx: float, dy: float) -> Image.Image:
    """Pixel (x, y) becomes pixel (x + dx, y + dy), to the nearest."""
    return on_grey(image.convert("RGBA").transform(image.size, Image.Transform.AFFINE, (1, 0, dx, 0, 1, dy)))


# What each level of the policy means: shear 0 to 0.3, translation 0 to 150 / 331 of the side, rotation 0 to 30 degrees,
# enhancement 0 to 0.9, posterisation 8 to 4 bits, solarisation from 256 down to 0.
def by_pil(image: Image.Image, name: str, level: int, sign: int) -> np.ndarray:
    step = SIDE * np.linspace(0, 150 / 331, 10)[level] * sign
    factor = 1 + np.linspace(0, 0.9, 10)[level] * sign
    enhancers = {"colour": "Color", "contrast": "Contrast", "sharpness": "Sharpness", "brightness": "Brightness"}
    if name == "shear_y":
        return bicubic_shear(image, np.linspace(0, 0.3, 10)[level] * sign)
    if name in ("translate_x", "translate_y"):
        return pixels(moved(image, *((step, 0) if name == "translate_x" else (0, step))))
    if name == "rotate":
        return pixels(on_grey(image.convert("RGBA").rotate(np.linspace(0, 30, 10)[level])))
    if name in enhancers:
        return pixels(getattr(ImageEnhance, enhancers[name])(image).enhance(factor))
    if name == "posterize":
        return pixels(image) & (0x100 - 2 ** (8 - int(np.round(np.linspace(8, 4, 10))[level])))
    if name == "solarize":
        values = pixels(image)
        return np.where(values < np.linspace(256, 0, 10)[level], values, 255 - values)
    return pixels(
        {"autocontrast": ImageOps.autocontrast, "equalize": ImageOps.equalize}.get(name, ImageOps.invert)(image)
    )


USED = sorted({(name, level) for pair in POLICY for _, name, level in pair})


@pytest.mark.parametrize(("name", "level"), USED)
def test_each_operation_of_the_policy_is_pils(name, level):
    for sign in (-1, 1):
        ours = pixels(OPERATIONS[name](PHOTO, level / 9, sign))
        assert np.abs(ours - by_pil(PHOTO, name, level, sign)).max() <= (1 if name == "shear_y" else 0)


def test_image_ends_in_grey_128():
    shifted = pixels(OPERATIONS["translate_x"](PHOTO, 1.0, 1))
    assert (shifted[:, -14:] == 128).all()
    assert (pixels(OPERATIONS["rotate"](PHOTO, 1.0, 1))[0, 0] == 128).all()
    assert (pixels(OPERATIONS["shear_y"](PHOTO, 1.0, 1))[-1, -1] == 128).all()


def test_rotation_goes_one_way_only():
    assert np.array_equal(OPERATIONS["rotate"](PHOTO, 0.5, 1), OPERATIONS["rotate"](PHOTO, 0.5, -1))


def test_policy_is_torchvisions_but_for_one_probability():
    theirs = AutoAugment(AutoAugmentPolicy.CIFAR10).policies
    ours = list(POLICY)
    assert ours[16] == ((0.2, "equalize", 8), (0.8, "equalize", 4))  # MaskCon's; torchvision's: 0.2 and 0.6
    ours[16] = ((0.2, "equalize", 8), (0.6, "equalize", 4))
    for our_pair, their_pair in zip(ours, theirs, strict=True):
        for (probability, name, level), (their_name, *numbers) in zip(our_pair, their_pair, strict=True):
            assert NAMES.get(their_name, their_name.lower()) == name
            assert numbers == [probability, level if name in USES_LEVEL else None]


@pytest.mark.parametrize("policy", range(25))
def test_sub_policy_takes_its_operations_by_their_probabilities_one_after_the_other(policy):
    (p_first, first, level_1), (p_second, second, level_2) = POLICY[policy]
    for u_first in (p_first - 1e-6, p_first):
        for u_second in (p_second - 1e-6, p_second):
            wanted = PHOTO
            if u_first < p_first:
                wanted = OPERATIONS[first](wanted, level_1 / 9, -1)
            if u_second < p_second:
                wanted = OPERATIONS[second](wanted, level_2 / 9, 1)
            assert np.array_equal(apply(PHOTO, policy, u_first, 0.1, u_second, 0.9), wanted)


def test_view_depends_on_its_number_alone_and_the_number_takes_every_sub_policy(monkeypatch):
    view = torch.from_numpy(np.array(PHOTO)).permute(2, 0, 1)
    state = torch.random.get_rng_state()
    assert torch.equal(auto_augment(view, 0.25), auto_augment(view, 0.25))
    assert torch.equal(state, torch.random.get_rng_state())

    seen: list[tuple] = []
    monkeypatch.setattr("fgssl.data.auto_augment.apply", lambda image, *drawn: seen.append(drawn) or image)
    for number in uniform(0, np.arange(3000), 0, 1)[:, 0]:
        auto_augment(view, float(number))
    drawn = np.array(seen)
    counts = np.bincount(drawn[:, 0].astype(int), minlength=25)
    assert len(counts) == 25
    assert counts.min() > 70  # of 120 expected
    assert np.abs(drawn[:, 1:].mean(0) - 0.5).max() < 0.03
    assert np.abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 0.08


def test_only_maskcons_strong_view_at_32_px_uses_it():
    strong, weak = RECIPES["cifar"]
    assert (strong.auto_augment, weak.auto_augment) == (True, False)
    views = Views([Crop(SIDE, (1.0, 1.0), flip=0.0), Crop(SIDE, (1.0, 1.0), flip=0.0, auto_augment=True)])
    image, numbers = torch.from_numpy(np.array(PHOTO)).permute(2, 0, 1), np.full((2, NUMBERS), 0.5)
    plain, changed = views.cut(image, [(0, 0, SIDE, SIDE)] * 2, numbers)
    assert torch.equal(changed, auto_augment(plain, 0.5))
