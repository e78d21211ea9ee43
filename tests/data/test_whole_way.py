"""From a file to the tensor that a method sees, for each recipe, against PIL and torchvision one image at a time."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from fgssl.data.augment import IMAGENET_MEAN, IMAGENET_STD, Photometric, augment
from fgssl.data.batch import Batch
from fgssl.data.datamodule import DataModule
from fgssl.data.datasets.digits import Digits
from fgssl.data.draws import uniform
from fgssl.data.images import open_image
from fgssl.data.views import RECIPES, Crop, EvalView, MultiCrop, PairViews, SingleView, Views
from tests.devices.stand_in import device, stand_in

SEED, FIRST = 5, 1000
RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@pytest.fixture(scope="module")
def photograph(tmp_path_factory):
    """A file of 90 x 70 px with smooth colours, kept without loss."""
    coarse = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    path = tmp_path_factory.mktemp("photograph") / "photo.png"
    Image.fromarray(coarse).resize((90, 70), Image.Resampling.BICUBIC).save(path)
    return path


def data_module(views: Views) -> DataModule:
    return DataModule(Digits(), views=views, seed=SEED, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def read(path, views: Views, count: int) -> Batch:
    """uint8 views of the same file as ``count`` samples, as a loader stacks them."""
    draws = FIRST + np.arange(count)
    samples = []
    for numbers in views.numbers(SEED, draws):
        with open_image(path) as file:
            samples.append(views.read(file, numbers))
    rows = torch.zeros(count, dtype=torch.long)
    stacked = [torch.stack(view) for view in zip(*samples, strict=True)]
    return Batch(stacked, rows, rows, rows, torch.from_numpy(draws))


# ---- the same by other means ----------------------------------------------------------------------------------------


def box_by_hand(size: tuple[int, int], scale: tuple[float, float], u: np.ndarray) -> tuple[int, int, int, int]:
    """RandomResizedCrop of torchvision: ten attempts of an area and a ratio, then a place."""
    width, height = size
    for attempt in range(10):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * u[2 * attempt])
        ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * u[2 * attempt + 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w <= width and h <= height:
            left, top = int(u[20] * (width - w + 1)), int(u[21] * (height - h + 1))
            return left, top, left + w, top + h
    raise AssertionError("no attempt fits: take another seed")


def cut_by_pil(path, crop: Crop, u: np.ndarray) -> Image.Image:
    image = Image.open(path)
    part = image.crop(box_by_hand(image.size, crop.scale, u)).resize((crop.size,) * 2, RESAMPLE[crop.resample])
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if u[22] < crop.flip else part


def coloured_by_torchvision(x: Tensor, p: Photometric, u: np.ndarray) -> Tensor:
    """[3, S, S] in 0 to 1, with the changes that the 19 numbers of an image ask for."""
    side = x.shape[-1]
    chosen = u[:5] < [p.perspective, p.jitter, p.grey, p.blur, p.solarise]
    if chosen[0]:
        corners = np.array([[0, 0], [side - 1, 0], [side - 1, side - 1], [0, side - 1]])
        inwards = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * np.floor(u[10:18].reshape(4, 2) * (side // 4 + 1))
        x = TF.perspective(x, corners.tolist(), (corners + inwards).astype(int).tolist())
    if chosen[1]:  # as torchvision, but clipped after brightness, contrast and saturation together
        b, c, s = 1 + (2 * u[5:8] - 1) * [p.brightness, p.contrast, p.saturation]
        x = b * x
        x = c * x + (1 - c) * TF.rgb_to_grayscale(x).mean()
        x = (s * x + (1 - s) * TF.rgb_to_grayscale(x, 3)).clamp(0, 1)
        x = TF.adjust_hue(x, (2 * u[8] - 1) * p.hue)
    if chosen[2]:
        x = TF.rgb_to_grayscale(x, 3)
    if chosen[3]:
        sigma = float(0.1 + 1.9 * u[9])
        x = TF.gaussian_blur(x, [13, 13], [sigma, sigma])
    return TF.solarize(x, 128 / 255) if chosen[4] else x


def by_hand(view: int, crop: Crop, images: Tensor, count: int) -> Tensor:
    """The tensors of one view, from its uint8 images."""
    numbers = uniform(SEED, FIRST + np.arange(count), 2 * view + 1, 19)
    changed = [
        coloured_by_torchvision(x / 255, crop.photometric, u) for x, u in zip(images.float(), numbers, strict=True)
    ]
    return torch.stack([TF.normalize(x, IMAGENET_MEAN, IMAGENET_STD) for x in changed])


def share_that_differs(ours: Tensor, theirs: Tensor, by: float) -> float:
    return ((ours.float() - theirs.float()).abs() > by).float().mean().item()


# ---- the tests ------------------------------------------------------------------------------------------------------

ALL = {
    **{name: lambda size, name=name: PairViews(name, size) for name in RECIPES},
    "single": lambda size: SingleView(size),
    "dino": lambda size: MultiCrop(size, local_size=size // 2, local_crops=2),
    "swav": lambda size: MultiCrop(size, local_size=size // 2, local_crops=2, colours="swav"),
}


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", ALL)
def test_file_is_cut_as_pil_cuts_it(name, size, photograph):
    views = ALL[name](size)
    batch, numbers = read(photograph, views, 6), views.numbers(SEED, FIRST + np.arange(6))
    for number, crop in enumerate(views.crops):
        if crop.auto_augment:  # tests/data/test_auto_augment.py
            continue
        theirs = [np.array(cut_by_pil(photograph, crop, u[number])) for u in numbers]
        difference = batch.views[number].int() - torch.from_numpy(np.stack(theirs)).permute(0, 3, 1, 2).int()
        assert difference.abs().max() <= 2  # the interpolation rounds after each of its two passes
        assert (difference != 0).float().mean() < 0.1


@pytest.mark.parametrize(("size", "count"), [(32, 1), (32, 9), (64, 5), (224, 2)])
@pytest.mark.parametrize("name", ALL)
def test_batch_that_the_method_sees_is_coloured_as_torchvision_colours_it(name, size, count, photograph):
    data = data_module(ALL[name](size))
    batch = read(photograph, data.views, count)
    seen = data.on_after_batch_transfer(batch, 0).views
    for number, crop in enumerate(data.views.crops):
        theirs = by_hand(number, crop, batch.views[number], count)
        assert seen[number].shape == theirs.shape == (count, 3, crop.size, crop.size)
        # A pixel within rounding of the threshold of solarisation or of a border of the hue may fall on either side.
        assert share_that_differs(seen[number], theirs, 5e-3) < 1e-3
        # torchvision's weights of grey sum to 0.9999.
        assert share_that_differs(seen[number], theirs, 1e-3) < 0.02


@pytest.mark.parametrize("resize", [None, 40])
def test_evaluation_view_is_pils(resize, photograph):
    view, image = EvalView(32, resize), Image.open(photograph)
    shorter = resize or 32
    shape = (32, 32) if resize is None else (shorter * 90 // 70, shorter)
    theirs = TF.center_crop(image.resize(shape, Image.Resampling.BILINEAR), [32, 32])
    with open_image(photograph) as file:
        (ours,) = view.read(file, view.numbers(SEED, np.array([-1]))[0])
    assert (ours.permute(1, 2, 0).int() - torch.from_numpy(np.array(theirs)).int()).abs().max() <= 1
    rows = torch.tensor([0])
    seen = data_module(PairViews()).on_after_batch_transfer(Batch([ours[None]], rows, rows, rows, rows - 1), 0).views[0]
    torch.testing.assert_close(seen[0], TF.normalize(ours / 255, IMAGENET_MEAN, IMAGENET_STD), rtol=1e-5, atol=1e-5)


def on_device(views: list[np.ndarray], name: str, size: int) -> list[np.ndarray]:
    """Augmented views, made on the stand-in device."""
    photometrics = [crop.photometric for crop in ALL[name](size).crops]
    options = {"seed": SEED, "draws": FIRST + np.arange(len(views[0])), "streams": range(1, 2 * len(views), 2)}
    with stand_in():
        images = [torch.from_numpy(view).to(device()) for view in views]
        return [view.cpu().numpy() for view in augment(images, photometrics, **options)]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("name", ["cars", "byol", "swav"])
def test_device_colours_as_the_cpu(name, count, photograph, elsewhere):
    data = data_module(ALL[name](32))
    batch = read(photograph, data.views, count)
    theirs = data.on_after_batch_transfer(batch, 0).views
    ours = elsewhere(on_device, [view.numpy() for view in batch.views], name, 32)
    for one, other in zip(ours, theirs, strict=True):
        assert share_that_differs(torch.from_numpy(one), other, 1e-4) < 1e-3
