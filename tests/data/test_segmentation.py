"""ADE20K's files, views of image and mask together, and mistakes in the files."""

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from fgssl.data.augment import IMAGENET_MEAN
from fgssl.data.check import check
from fgssl.data.datasets import ALL
from fgssl.data.segmentation import SegmentationData, random_view, read_mask, scaled
from fgssl.errors import UserError
from fgssl.metrics.segmentation import IGNORED
from tests import trees

MASK = "annotations/training/ADE_train_00000002.png"


@pytest.fixture
def root(tmp_path):
    return trees.make_ade20k(tmp_path)


def index_of(root, **options):
    return ALL["ade20k"](str(root), **({"partial": True} | options)).index()


def data_of(root, **options) -> SegmentationData:
    settings = {"size": 32, "batch_size": 4, "num_workers": 0} | options
    return SegmentationData(ALL["ade20k"](str(root), partial=True), **settings)


@pytest.mark.filterwarnings("ignore:ade20k")
def test_images_masks_and_class_names_go_together(root):
    index = index_of(root)
    assert index.fine_names == ("red, hue", "blue, hue", "green, hue")
    for image, mask in zip(index.paths, index.masks, strict=True):
        assert image.rsplit("/", 1)[1][:-4] == mask.rsplit("/", 1)[1][:-4]
    labels = read_mask(index.masks[0], 3)
    assert set(labels.unique().tolist()) == {0, 1, 2, IGNORED}
    pixels = np.array(Image.open(index.paths[0])).astype(int)
    red = np.abs(pixels - trees.COLOURS["red"]).sum(-1) < 60
    assert (red == (labels == 0).numpy()).mean() > 0.97


def test_image_and_mask_are_scaled_cut_and_flipped_together():
    """Each colour of an image of eight columns stays with its class, wherever the view takes it from."""
    columns = torch.arange(8).repeat_interleave(8)  # 64 px wide
    mask = columns.repeat(48, 1).byte()
    image = (mask * 30)[None].repeat(3, 1, 1)
    seen = set()
    for numbers in np.random.default_rng(0).random((20, 4)):
        view, labels = random_view(image, mask, numbers, 40, (0.5, 2.0), 0.5, IMAGENET_MEAN)
        assert view.shape == (3, 40, 40)
        assert labels.shape == (40, 40)
        shown = labels != IGNORED
        assert ((view[0].int() - 30 * labels.int())[shown].abs() <= 15).all()  # half a column's step at an edge
        assert (view[:, ~shown] == torch.tensor([[124], [116], [104]])).all()
        order = labels[0][shown[0]].int().diff().sign().sum()
        seen.add((bool(order > 0), bool((~shown).any())))
    assert seen == {(a, b) for a in (True, False) for b in (True, False)}  # flipped or not, padded or not


def test_the_longer_side_is_four_times_the_target_at_most():
    assert scaled((100, 200), 50) == (50, 100)
    assert scaled((100, 1000), 50) == (20, 200)


@pytest.mark.filterwarnings("ignore:ade20k")
def test_batches_depend_on_seed_and_draw_alone_and_evaluation_shows_whole_images(root):
    first, again = (next(iter(data_of(root).train_loader(epoch=1))) for _ in range(2))
    other = next(iter(data_of(root, seed=1).train_loader(epoch=1)))
    assert all(map(torch.equal, first.images + first.masks, again.images + again.masks))
    assert not all(map(torch.equal, first.images, other.images))
    assert {tuple(image.shape) for image in first.images} == {(3, 32, 32)}

    batch = next(iter(data_of(root, size=64).test_dataloader()))
    assert {tuple(image.shape) for image in batch.images} == {(3, 64, 80)}
    assert {tuple(mask.shape) for mask in batch.masks} == {(32, 40)}  # of the file
    normal = data_of(root).on_after_batch_transfer(batch, 0).images[0]
    assert normal.is_floating_point()
    assert normal.abs().max() < 3


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [(2.0, 1.0), (0.0, 1.0)])
def test_a_scale_has_a_smallest_and_a_largest(scale, root):
    with pytest.raises(UserError, match="data.scale"):
        data_of(root, scale=scale)


def test_counts_are_the_published_ones(root):
    with pytest.raises(UserError, match=r"4 train images, published 20210.*3 fine classes, published 150.*partial"):
        index_of(root, partial=False)


def test_a_missing_mask_or_image_is_named(root):
    (root / "images/validation/ADE_val_00000003.jpg").unlink()
    with pytest.raises(UserError, match=r"masks without an image .*ADE_val_00000003.png"):
        index_of(root)
    (root / MASK).unlink()
    with pytest.raises(UserError, match=r"images without a mask .*annotations/training: .*ADE_train_00000002.jpg"):
        index_of(root)


@pytest.mark.parametrize(
    ("number", "line", "said"),
    [
        (0, "Index\tName", "must name the columns Idx and Name"),
        (2, "5\t.1\t4\t4\t1\tblue", "line 3: class 2 is expected"),
    ],
)
def test_a_table_of_classes_of_another_form_is_named(number, line, said, root):
    lines = (root / "objectInfo150.txt").read_text().splitlines()
    lines[number] = line
    trees.write_lines(root / "objectInfo150.txt", lines)
    with pytest.raises(UserError, match=f"objectInfo150.txt.*{said}"):
        index_of(root)


@pytest.mark.filterwarnings("ignore:ade20k")
@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.zeros((30, 40), np.uint8), "has 40 x 30 px and its image 40 x 32"),
        (np.full((32, 40), 4, np.uint8), r"label 4; labels are 0 \(no class\) to 3"),
        (np.zeros((32, 40, 3), np.uint8), "no mask: one channel of 8 bits is expected, the image has mode RGB"),
        (None, "unreadable image"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(mask, said, root):
    if mask is None:
        (root / MASK).write_bytes(b"no image")
    else:
        Image.fromarray(mask).save(root / MASK)
    with pytest.raises(UserError, match=f"{MASK}.*{said}|{said}: .*{MASK}"):
        list(data_of(root).train_loader(epoch=0))
    console = Console(record=True, width=400, file=io.StringIO())
    assert check(ALL["ade20k"](str(root), partial=True), console).faults  # `fgssl data check`, before any training
    printed = console.export_text()
    assert "1 of 8 images missing or unreadable" in printed
    assert re.search(f"fault: .*{said}", printed)
