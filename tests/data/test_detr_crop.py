"""DETR's random crop: image, boxes and masks stay together, sizes are those of the released code."""

import numpy as np
import pytest
import torch

from fgssl.data.datasets import ALL
from fgssl.data.detection import DetectionData
from fgssl.data.detr_crop import crop_side, detr_crop
from fgssl.errors import UserError
from tests import trees


def scene(height: int = 480, width: int = 640) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Two bright rectangles on black, one in the upper left and one in the lower right corner."""
    boxes = torch.tensor([[20.0, 10.0, 120.0, 90.0], [500.0, 400.0, 630.0, 470.0]])
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    image = (255 * masks.sum(0)).byte()[None].repeat(3, 1, 1)
    return image, {"boxes": boxes, "labels": torch.tensor([3, 7]), "masks": masks}


def test_half_of_the_images_stay_whole():
    image, target = scene()
    same, objects = detr_crop(image, target, np.array([0.5, *[0.3] * 5]))
    assert same is image
    assert objects is target


def test_crop_is_a_part_of_the_resized_image_with_the_objects_in_it():
    """Shorter side 600 (1.25 times), crop of 384 x 600 px from the lower right corner."""
    image, target = scene()
    cropped, objects = detr_crop(image, target, np.array([0.0, 0.9, 0.0, 0.999, 0.999, 0.999]))
    assert cropped.shape == (3, 384, 600)
    assert objects["labels"].tolist() == [7]
    scaled = target["boxes"][1] * 1.25  # of 600 x 800 px; the crop begins at x 200, y 216
    assert objects["boxes"].tolist() == [(scaled - torch.tensor([200, 216, 200, 216])).tolist()]
    x0, y0, x1, y1 = objects["boxes"][0].round().int().tolist()
    assert objects["masks"].shape == (1, 384, 600)
    assert objects["masks"][0].sum() == pytest.approx((x1 - x0) * (y1 - y0), rel=0.02)
    assert cropped[0, y0 + 3 : y1 - 3, x0 + 3 : x1 - 3].min() > 250
    assert cropped[0, : y0 - 3].max() == 0


def test_boxes_are_cut_at_the_border_and_an_empty_crop_is_kept():
    """Shorter side 400 (5 / 6); the whole height is seen, and columns 0 to 383 or 75 to 458 of 533."""
    image, target = scene()
    numbers = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.5])
    cropped, objects = detr_crop(image, target, numbers)
    assert cropped.shape == (3, 384, 384)
    x0, y0, x1, y1 = objects["boxes"][0].tolist()
    assert (x0, y0) == (0, pytest.approx(10 * 400 / 480))
    assert x1 == pytest.approx(120 * 533 / 640 - 75, abs=0.1)
    assert y1 == pytest.approx(90 * 400 / 480)

    alone = {name: value[:0] for name, value in target.items()}
    _, nothing = detr_crop(image, alone, numbers)
    assert nothing["boxes"].shape == (0, 4)
    assert nothing["masks"].shape == (0, 384, 384)


@pytest.mark.parametrize(("length", "sides"), [(300, {300}), (500, {384, 500}), (900, {384, 600})])
def test_sides_of_a_crop_are_384_to_600_px_and_those_of_the_image_at_most(length, sides):
    assert {crop_side(length, number) for number in (0.0, 0.9999)} == sides


@pytest.mark.filterwarnings("ignore:coco_instances")
def test_training_batches_are_cropped_and_evaluation_shows_whole_images(tmp_path):
    root = trees.make_coco_instances(tmp_path, images=4)
    data = DetectionData(ALL["coco_instances"](str(root), partial=True), crop=True, batch_size=4, num_workers=0)
    seen = {tuple(image.shape[1:]) for epoch in range(4) for image in next(iter(data.train_loader(epoch=epoch))).images}
    whole = (trees.SIZE[1], trees.SIZE[0])
    assert whole in seen
    others = seen - {whole}
    assert others
    assert all(384 <= side <= 600 for size in others for side in size)
    assert {tuple(image.shape[1:]) for image in next(iter(data.test_dataloader())).images} == {whole}


@pytest.mark.filterwarnings("ignore:coco_instances")
def test_crop_and_jitter_exclude_each_other(tmp_path):
    root = trees.make_coco_instances(tmp_path)
    with pytest.raises(UserError, match=r"data.crop and data.jitter .* take one"):
        DetectionData(ALL["coco_instances"](str(root), partial=True), crop=True, jitter=64)
