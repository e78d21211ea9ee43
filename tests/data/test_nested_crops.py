"""FLSL's nested crops: student and teacher views agree in geometry, and their colours follow paper or code."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fgssl.data.augment import augment
from fgssl.data.views import NestedCrops

COUNT = 40


def coordinates(width: int, height: int) -> torch.Tensor:
    """An image whose red channel is the column and whose green channel is the row, each from 0 to 255."""
    x, y = torch.linspace(0, 255, width), torch.linspace(0, 255, height)
    image_3HW = torch.stack([x.expand(height, width), y[:, None].expand(height, width), torch.zeros(height, width)])
    return image_3HW.round().to(torch.uint8)


@pytest.mark.parametrize("size", [(500, 375), (333, 500), (1280, 960)])
@pytest.mark.parametrize("teachers", [1, 2])
def test_student_view_is_a_part_of_the_teacher_view(size, teachers):
    """The student's box, cut out of the teacher's finished view, is the student's view; the box lies in the image."""
    views = NestedCrops(224, local_size=96, local_crops=2, teacher_views=teachers)
    image_3HW = coordinates(*size)
    for numbers in views.numbers(0, np.arange(COUNT)):
        boxes = views.boxes(size, numbers)
        cut = views.cut(image_3HW, boxes, numbers)
        for crop, box, view in zip(views.crops, boxes, cut, strict=True):
            if crop.inside is None:
                continue
            x0, y0, x1, y1 = boxes[crop.inside]
            left, right = (round((x - x0) * 224 / (x1 - x0)) for x in box[0::2])
            top, bottom = (round((y - y0) * 224 / (y1 - y0)) for y in box[1::2])
            part = cut[crop.inside][None, :, top:bottom, left:right]
            wanted = F.interpolate(part, size=(crop.size, crop.size), mode="bicubic", antialias=True)[0]
            assert (view.int() - wanted.int()).abs().max() <= 3


def test_student_view_has_the_resolution_of_the_teacher_view():
    """Cut out of the resized view (main_flsl.py:714-719): stripes that the teacher view cannot show are gone."""
    stripes = torch.zeros(3, 300, 300, dtype=torch.uint8)
    stripes[..., ::2] = 255
    views = NestedCrops(64, local_size=48, local_crops=2)
    for numbers in views.numbers(0, np.arange(5)):
        teacher, *students = views.cut(stripes, views.boxes((300, 300), numbers), numbers)
        for view in (teacher, *students):
            assert (view[:, 4:-4, 4:-4].int() - 127).abs().max() <= 8


def test_all_teacher_views_of_an_image_show_one_place():
    views = NestedCrops(224, local_crops=0, teacher_views=2)
    boxes = np.array([views.boxes((500, 375), numbers) for numbers in views.numbers(0, np.arange(COUNT))])
    assert (boxes[:, 0] == boxes[:, 1]).all()
    assert len(np.unique(boxes[:, 0], axis=0)) > COUNT // 2  # and another one in each image
    assert (boxes[:, 2] != boxes[:, 3]).any(axis=1).mean() > 0.9  # the students' parts are drawn apart


def shares(recipe: str, stream: int) -> tuple[float, float, float]:
    """Shares of the images that are blurred, solarised and both, of a dark-and-bright edge without other changes."""
    crop = NestedCrops(32, local_crops=0, recipe=recipe).crops[1]
    photometric = type(crop.photometric)(**{**vars(crop.photometric), "jitter": 0.0, "grey": 0.0})
    edge = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    edge[..., 8:] = 250
    options = {"seed": 0, "draws": np.arange(4000), "streams": [stream], "mean": (0.0,) * 3, "std": (1.0,) * 3}
    found = augment([edge.expand(4000, -1, -1, -1)], [photometric], **options)[0]
    solarised = found[:, 0, 8, 15] < 0.5
    smooth = (found[:, 0, 8, 7] - found[:, 0, 8, 0]).abs() > 1e-3
    return solarised.float().mean().item(), smooth.float().mean().item(), (solarised & smooth).float().mean().item()


def test_paper_recipe_blurs_half_and_solarises_a_fifth_of_the_views():
    solarised, blurred, both = shares("paper", stream=3)
    assert solarised == pytest.approx(0.2, abs=0.02)
    assert blurred == pytest.approx(0.5 * 0.92, abs=0.04)  # a blur of sigma below 0.25 px shows no change
    assert both == pytest.approx(solarised * blurred, abs=0.02)


def test_code_recipe_blurs_and_solarises_different_halves():
    """main_flsl.py:673-682: either blur 0.5, or blur 0.1 then solarisation 0.2, each for half of the views."""
    solarised, blurred, both = shares("code", stream=3)
    assert solarised == pytest.approx(0.1, abs=0.015)
    assert blurred == pytest.approx(0.3 * 0.92, abs=0.03)
    assert both == pytest.approx(0.5 * 0.1 * 0.2, abs=0.006)


def test_colours_of_the_views_are_drawn_independently():
    views = NestedCrops(16, local_crops=0, teacher_views=2)
    images = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    photometrics = [crop.photometric for crop in views.crops]
    found = augment([images] * 4, photometrics, seed=0, draws=np.arange(20), streams=range(1, 8, 2))
    for first in range(4):
        for second in range(first):
            different = (found[first] != found[second]).flatten(1).any(dim=1)
            assert different.float().mean() > 0.8
