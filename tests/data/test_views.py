"""Boxes against torchvision's distribution, containment of nested crops, resizing, reduced decode."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms import functional as TF

from fgssl.data.images import open_image
from fgssl.data.views import (
    NUMBERS,
    RECIPES,
    Crop,
    EvalView,
    MultiCrop,
    NestedCrops,
    PairViews,
    SingleView,
    Views,
    decode,
    random_box,
)
from fgssl.errors import UserError

PHOTO = np.asarray(Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)).resize((640, 512)))


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


def all_boxes(views: Views, size: tuple[int, int], count: int) -> np.ndarray:
    """[count, V, 4]"""
    return np.array([views.boxes(size, numbers) for numbers in views.numbers(0, np.arange(count))])


@pytest.mark.parametrize("size", [(200, 200), (500, 180), (150, 400)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.05, 0.4), (0.9, 1.0)])
def test_boxes_are_distributed_as_torchvisions(size, scale):
    """Kolmogorov-Smirnov distance of area, ratio, x and y; (500, 180) at 0.9 always ends in the central fallback."""
    from scipy.stats import ks_2samp

    width, height = size
    torch.manual_seed(0)
    blank = torch.empty(1, height, width)
    theirs = np.array([RandomResizedCrop.get_params(blank, scale, (3 / 4, 4 / 3)) for _ in range(2000)])
    y, x, h, w = theirs.T
    boxes = all_boxes(SingleView(8, scale), size, 2000)[:, 0]
    x0, y0, x1, y1 = boxes.T
    ours = {"area": (x1 - x0) * (y1 - y0), "ratio": (x1 - x0) / (y1 - y0), "x": x0, "y": y0}
    for name, values in {"area": w * h, "ratio": w / h, "x": x, "y": y}.items():
        assert ks_2samp(values, ours[name]).statistic < 0.06, name  # 0.1 % of equal distributions differ by more
    assert min(x0.min(), y0.min()) >= 0
    assert x1.max() <= width
    assert y1.max() <= height


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 2)])
def test_boxes_of_extreme_images_hold_a_pixel(size):
    for numbers in np.random.default_rng(0).random((50, NUMBERS)):
        x0, y0, x1, y1 = random_box(*size, (0.05, 0.4), numbers)
        assert 0 <= x0 < x1 <= size[0]
        assert 0 <= y0 < y1 <= size[1]


@pytest.mark.parametrize("size", [(500, 375), (60, 80)])
def test_nested_crops_lie_in_their_teachers_crop(size):
    views = NestedCrops(size=224, local_crops=3, teacher_views=2)
    assert [crop.inside for crop in views.crops] == [None, None, 0, 1, 0, 0, 0, 1, 1, 1]
    assert [crop.size for crop in views.crops] == [224] * 4 + [96] * 6
    boxes = all_boxes(views, size, 200)
    for view, crop in enumerate(views.crops):
        if crop.inside is None:
            continue
        parent, child = boxes[:, crop.inside], boxes[:, view]
        assert (child[:, :2] >= parent[:, :2]).all()
        assert (child[:, 2:] <= parent[:, 2:]).all()
    area = np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1)
    share = area[:, 2] / (size[0] * size[1])
    assert share.min() > 0.38  # FLSL: effective scale 0.4 to 1
    assert share.max() <= 1


def test_multi_crop_is_dinos():
    views = MultiCrop()
    assert [crop.size for crop in views.crops] == [224, 224] + [96] * 8
    assert [crop.photometric.blur for crop in views.crops] == [1.0, 0.1] + [0.5] * 8
    assert [crop.photometric.solarise for crop in views.crops] == [0, 0.2] + [0] * 8
    share = np.prod(np.diff(all_boxes(views, (400, 300), 300).reshape(-1, 10, 2, 2), axis=2)[:, :, 0], axis=-1) / 120000
    assert share[:, :2].min() > 0.39
    assert 0.04 < share[:, 2:].min() < share[:, 2:].max() < 0.41


def test_recipes_of_simclr_and_byol_are_those_of_their_appendices():
    """Crop of 8 % to all of the image, flip; jitter, grey, blur and solarisation of the two views."""
    for name, blurs, solarised in (("simclr", (0.5, 0.5), (0, 0)), ("byol", (1.0, 0.1), (0, 0.2))):
        views = PairViews(name, size=16).crops
        assert all(
            (crop.size, crop.scale, crop.flip, crop.resample) == (16, (0.08, 1.0), 0.5, "bicubic") for crop in views
        )
        changes = [crop.photometric for crop in views]
        assert tuple(change.blur for change in changes) == blurs
        assert tuple(change.solarise for change in changes) == solarised
        jitter = (0.8, 0.8, 0.8, 0.2) if name == "simclr" else (0.4, 0.4, 0.2, 0.1)
        for change in changes:
            assert (change.brightness, change.contrast, change.saturation, change.hue) == jitter
            assert (change.jitter, change.grey) == (0.8, 0.2)


def test_multi_crop_of_swav_has_simclrs_colours_for_all_views():
    views = MultiCrop(64, (0.14, 1.0), 28, (0.05, 0.14), 6, colours="swav").crops
    assert [(crop.size, crop.scale) for crop in views] == [(64, (0.14, 1.0))] * 2 + [(28, (0.05, 0.14))] * 6
    assert {crop.photometric for crop in views} == {RECIPES["simclr"][0].photometric}
    assert {(crop.resample, crop.flip) for crop in views} == {("bilinear", 0.5)}


def test_recipes_of_maskcon():
    strong, weak = RECIPES["cars"]
    assert (strong.photometric.perspective, strong.photometric.jitter, strong.photometric.blur) == (0.5, 0.8, 0.5)
    assert (weak.photometric.perspective, weak.photometric.jitter) == (0.5, 0.0)
    assert RECIPES["sop"][0] == RECIPES["sop"][1] == weak
    assert all(crop.scale == (0.2, 1.0) for name in ("cars", "sop", "cifar") for crop in RECIPES[name])
    assert all(crop.flip == 0 and crop.photometric.hue * crop.photometric.jitter == 0 for crop in RECIPES["digits"])


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [32, 224])
def test_a_cut_is_crop_then_resize(resample, size):
    views = Views([Crop(size, flip=0.0, resample=resample)])
    numbers = np.zeros((1, NUMBERS))
    (view,) = views.cut(tensor(PHOTO), [(40, 30, 340, 230)], numbers)
    mode = TF.InterpolationMode(resample)
    wanted = np.asarray(TF.resize(Image.fromarray(PHOTO[30:230, 40:340]), [size, size], mode))
    assert view.shape == (3, size, size)
    assert abs(view.permute(1, 2, 0).numpy().astype(int) - wanted).max() <= 2  # uint8 rounding of two passes


def test_half_of_the_views_are_flipped():
    ramp = tensor(np.tile(np.arange(64, dtype=np.uint8)[None, :, None], (64, 1, 3)))
    views = SingleView(16, (1.0, 1.0))
    numbers = views.numbers(0, np.arange(1000))
    flipped = [bool(v[0, 0, 0] > v[0, 0, -1]) for row in numbers for v in views.cut(ramp, [(0, 0, 64, 64)], row)]
    assert 0.45 < np.mean(flipped) < 0.55


def test_views_depend_on_seed_draw_and_view_alone():
    views = PairViews("cars", 32)
    both = views.numbers(5, np.array([7, 8]))
    assert np.array_equal(both[1], views.numbers(5, np.array([8]))[0])
    assert not np.array_equal(both[0], both[1])
    assert not np.array_equal(both[0, 0], both[0, 1])
    assert not np.array_equal(both, views.numbers(6, np.array([7, 8])))


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", [None, 256])
def test_evaluation_view_is_torchvisions_resize_and_central_crop(resize, resample):
    view = EvalView(224, resize, resample)
    assert (view.size, view.resize, view.resample) == (224, resize, resample)
    numbers = view.numbers(0, np.array([-1]))[0]
    (ours,) = view.cut(tensor(PHOTO), view.boxes((640, 512), numbers), numbers)
    image = Image.fromarray(PHOTO)
    mode = TF.InterpolationMode(resample)
    theirs = TF.resize(image, resize or [224, 224], mode)
    theirs = TF.center_crop(theirs, [224, 224]) if resize else theirs
    difference = abs(ours.permute(1, 2, 0).numpy().astype(int) - np.asarray(theirs))
    assert difference.mean() < 0.01  # PIL rounds a few pixels the other way
    assert difference.max() <= 1


@pytest.mark.parametrize("size", [(640, 512), (301, 1000), (37, 30)])
@pytest.mark.parametrize("resize", [None, 73])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_evaluation_view_of_a_file_equals_torchvision_bit_for_bit(size, resize, suffix, tmp_path):
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(PHOTO).resize(size).save(path)
    view = EvalView(64, resize, "bicubic")
    with Image.open(path) as file:
        (ours,) = view.read(file, view.numbers(0, np.array([-1]))[0])
    whole = [v2.Resize(resize or (64, 64), v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(64)]
    assert torch.equal(ours, v2.Compose([v2.PILToTensor(), *whole])(Image.open(path)))


def test_evaluation_view_refuses_a_crop_larger_than_the_resized_image():
    with pytest.raises(UserError, match="data.eval_resize is 200, but the crop, data.eval_size, is 224"):
        EvalView(224, 200)


def test_evaluation_view_of_a_sharp_edge_depends_on_the_interpolation():
    stripes = tensor(np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((9, 9)))[..., None].repeat(3, 2).astype(np.uint8))
    image_3HW, box = 55 + 145 * stripes, (0, 0, 72, 72)
    bilinear, bicubic = (
        EvalView(48, None, mode).cut(image_3HW, [box], np.ones((1, NUMBERS)))[0] for mode in ("bilinear", "bicubic")
    )
    assert (bilinear.min(), bilinear.max()) == (55, 200)
    assert bicubic.min() < 55  # bicubic overshoots, bilinear never
    assert bicubic.max() > 200


def test_large_jpegs_are_decoded_small_only_where_every_view_shrinks(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.fromarray(PHOTO).resize((1280, 1024)).save(path, quality=95)
    crops = [Crop(96), Crop(64)]
    large, small = (0, 0, 1200, 900), (100, 200, 500, 600)
    for boxes, factor in (([large, small], 4), ([large, (0, 0, 80, 300)], 1), ([large, (0, 0, 140, 300)], 2)):
        with Image.open(path) as file:
            image_3HW, scaled = decode(file, boxes, crops)
        assert image_3HW.shape == (3, 1024 // factor, 1280 // factor)
        assert scaled == [tuple(edge // factor for edge in box) for box in boxes]
    reduced = Views(crops).cut(image_3HW, scaled, np.ones((2, NUMBERS)))
    with Image.open(path) as file:
        full = Views(crops).cut(tensor(np.asarray(file)), boxes, np.ones((2, NUMBERS)))
    assert all((a.float() - b.float()).abs().mean() < 2 for a, b in zip(reduced, full, strict=True))


KINDS = {
    "plain": {"quality": 90},
    "no subsampling": {"quality": 90, "subsampling": 0},
    "progressive": {"quality": 60, "progressive": True},
    "stored as RGB": {"quality": 90, "keep_rgb": True},
}


def colours(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height // 7 + 1, width // 7 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(64, 48), (501, 375), (33, 77)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_is_decoded_to_pils_pixels(kind, size, tmp_path, monkeypatch):
    colours(*size).save(tmp_path / "a.jpg", **KINDS[kind])
    with open_image(tmp_path / "a.jpg") as file, monkeypatch.context() as patched:
        patched.setattr(Image.Image, "tobytes", None)  # PIL is not asked for the pixels
        found, boxes = decode(file, [(1, 2, 30, 40)], [Crop(size=32)])
    assert boxes == [(1, 2, 30, 40)]
    with Image.open(tmp_path / "a.jpg") as file:
        assert np.array_equal(found.permute(1, 2, 0).numpy(), np.array(file))


@pytest.mark.parametrize(("mode", "name"), [("L", "a.jpg"), ("CMYK", "a.jpg"), ("RGB", "a.png"), ("P", "a.png")])
def test_other_images_are_decoded_by_pil(mode, name, tmp_path):
    colours(50, 40).convert(mode).save(tmp_path / name)
    with open_image(tmp_path / name) as file:
        found, _ = decode(file, [(0, 0, 50, 40)], [Crop(size=32)])
    with Image.open(tmp_path / name) as file:
        assert np.array_equal(found.permute(1, 2, 0).numpy(), np.array(file.convert("RGB")))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_jpeg_is_refused(share, tmp_path):
    colours(200, 150).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"a\.jpg \(.*truncated"), open_image(tmp_path / "a.jpg") as file:
        decode(file, [(0, 0, 200, 150)], [Crop(size=150)])
