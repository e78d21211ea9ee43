"""ADE20K's and Cityscapes' files, views of image and mask together, and mistakes in the files."""

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
from fgssl.data.segmentation import RandomView, SegmentationData, largest_share, read_mask, scaled
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
    labels = read_mask(index.masks[0], index.classes)
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
    random_view = RandomView((40, 40), 40, (0.5, 2.0), 0.5, 1.0, False, IMAGENET_MEAN)
    for numbers in np.random.default_rng(0).random((20, RandomView.count)):
        view, labels = random_view(image, mask, numbers)
        assert view.shape == (3, 40, 40)
        assert labels.shape == (40, 40)
        shown = labels != IGNORED
        assert ((view[0].int() - 30 * labels.int())[shown].abs() <= 15).all()  # half a column's step at an edge
        assert (view[:, ~shown] == torch.tensor([[124], [116], [104]])).all()
        order = labels[0][shown[0]].int().diff().sign().sum()
        seen.add((bool(order > 0), bool((~shown).any())))
    assert seen == {(a, b) for a in (True, False) for b in (True, False)}  # flipped or not, padded or not


def test_a_view_may_be_wider_than_high_and_smaller_than_the_image():
    """Cityscapes: views of 512 x 1024 px of images whose shorter side is 1024 px at scale 1."""
    image = torch.randint(0, 256, (3, 32, 64), dtype=torch.uint8)
    view = RandomView((16, 32), 32, (1.0, 1.0), 0.0, 1.0, False, IMAGENET_MEAN)
    shown, labels = view(image, image[0] % 19, np.array([0.0, 0.5, 0.9, 0.9, *[0.0] * (RandomView.count - 4)]))
    assert shown.equal(image[:, 15:31, 16:48])  # 17 places of the upper edge, 33 of the left one
    assert labels.equal(image[0, 15:31, 16:48] % 19)


def numbers_of(*places: tuple[float, float]) -> np.ndarray:
    """Random numbers of a view at scale 1 without a flip; ``places`` (x, y) of its crops."""
    numbers = np.full(RandomView.count, 0.999)
    numbers[[0, 1, 2]] = [0.0, *places[0]]
    for number, place in enumerate(places[1:]):
        numbers[13 + 2 * number : 15 + 2 * number] = place
    return numbers


def test_another_crop_is_taken_where_one_class_fills_too_much():
    """Columns 0 to 63 are class 0, then four of class 1 and four without; a view shows eight columns."""
    mask = torch.zeros(24, 72, dtype=torch.uint8)
    mask[:, 64:68], mask[:, 68:] = 1, IGNORED
    image = torch.arange(72, dtype=torch.uint8).repeat(3, 24, 1)
    places = [(0.2, 0.0), (0.5, 0.0), (0.94, 0.0), (0.1, 0.0)]  # the third shows columns 61 to 68: 3 of 0, 4 of 1
    for limit, column in ((0.75, 61), (1.0, 13)):
        view = RandomView((24, 8), 24, (1.0, 1.0), 0.0, limit, False, IMAGENET_MEAN)
        shown, _ = view(image, mask, numbers_of(*places))
        assert shown[0, 0, 0] == column
    view = RandomView((24, 8), 24, (1.0, 1.0), 0.0, 0.5, False, IMAGENET_MEAN)  # 4 of 7 are too many as well
    shown, _ = view(image, mask, numbers_of(*places, *[(0.0, 0.0)] * 6, (0.6, 0.0)))
    assert shown[0, 0, 0] == 39  # the eleventh crop, whatever it shows


def test_largest_share_counts_labelled_pixels_alone():
    assert largest_share(torch.tensor([[0, 0, 0, 1], [IGNORED] * 4], dtype=torch.uint8)) == 0.75
    assert largest_share(torch.full((2, 2), IGNORED, dtype=torch.uint8)) == 1


def test_colours_of_the_margin_are_not_distorted(root):
    data = data_of(root, distort=True, scale=(0.5, 0.6))
    batch = next(iter(data.train_loader(epoch=0)))
    plain = next(iter(data_of(root, scale=(0.5, 0.6)).train_loader(epoch=0)))
    for view, other, labels in zip(batch.images, plain.images, batch.masks, strict=True):
        assert (view[:, -1, -1] == torch.tensor([124, 116, 104])).all()
        assert (view != other)[:, labels != IGNORED].any()


# ---- Cityscapes -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:cityscapes")
def test_cityscapes_has_the_19_classes_in_both_formats(tmp_path):
    """Road, car and bicycle are the classes 0, 13 and 18; the ground has none."""
    plain = ALL["cityscapes"](str(trees.make_cityscapes(tmp_path / "ids")), partial=True).index()
    made = ALL["cityscapes"](str(trees.make_cityscapes(tmp_path / "made", train_ids=True)), partial=True).index()
    assert plain.fine_names[0] == "road"
    assert plain.fine_names[13] == "car"
    assert plain.fine_names[18] == "bicycle"
    assert plain.masks[0].endswith("gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png")
    assert made.masks[0].endswith("aachen_000000_000019_gtFine_labelTrainIds.png")
    for image, ours, theirs in zip(plain.paths, plain.masks, made.masks, strict=True):
        assert image.rsplit("/", 1)[1].split("_left")[0] == ours.rsplit("/", 1)[1].split("_gtFine")[0]
        labels = read_mask(ours, plain.classes)
        assert labels.equal(read_mask(theirs, made.classes))
        assert set(labels.unique().tolist()) <= {0, 13, 18, IGNORED}
    assert plain.values.tolist() == [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert made.values.tolist() == list(range(19))
    assert np.isin([0, 1, 6, 10, 18, 29, 30, 255], np.flatnonzero(plain.classes == IGNORED)).all()


@pytest.mark.filterwarnings("ignore:cityscapes")
def test_cityscapes_takes_train_ids_only_where_all_images_have_them(tmp_path):
    root = trees.make_cityscapes(tmp_path, train_ids=True)
    (root / "gtFine/val/munster/munster_000001_000019_gtFine_labelTrainIds.png").unlink()
    index = ALL["cityscapes"](str(root), partial=True).index()
    assert all(path.endswith("labelIds.png") for path in index.masks)
    (root / "gtFine/val/munster/munster_000001_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(UserError, match=r"without a mask .* in gtFine/val: .*munster_000001_000019_leftImg8bit.png"):
        ALL["cityscapes"](str(root), partial=True).index()


@pytest.mark.filterwarnings("ignore:cityscapes")
def test_a_label_that_cityscapes_does_not_have_is_named(tmp_path):
    root = trees.make_cityscapes(tmp_path)
    path = root / "gtFine/train/zurich/zurich_000001_000019_gtFine_labelIds.png"
    Image.fromarray(np.full((24, 48), 34, np.uint8)).save(path)
    index = ALL["cityscapes"](str(root), partial=True).index()
    with pytest.raises(UserError, match="zurich_000001_000019_gtFine_labelIds.png: a pixel has label 34.* 0 to 33"):
        read_mask(str(path), index.classes)


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"largest_class": 1.5}, "data.largest_class"),
        ({"size": (32, 1)}, "^size is 1"),
        ({"short_side": 1}, "^short_side is 1"),
    ],
)
def test_sizes_and_shares_out_of_range_are_named(options, said, root):
    with pytest.raises(UserError, match=said):
        data_of(root, **options)


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


@pytest.mark.parametrize("scale", [(2.0, 1.0), (0.0, 1.0)])
def test_a_scale_has_a_smallest_and_a_largest(scale, root):
    with pytest.raises(UserError, match="data.scale"):
        data_of(root, scale=scale)


def test_counts_are_the_published_ones(root):
    with pytest.raises(UserError, match=r"4 train images, published 20,210.*3 fine classes, published 150.*partial"):
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
        (np.full((32, 40), 4, np.uint8), "label 4; labels are 0 to 3"),
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


@pytest.mark.filterwarnings("ignore:ade20k")
@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.zeros((30, 40), np.uint8), "has 40 x 30 px and its image 40 x 32"),
        (np.zeros((32, 40, 3), np.uint8), "no mask: one channel of 8 bits is expected, the image has mode RGB"),
        (np.full((32, 40), 4, np.uint8), "label 4; labels are 0 to 3"),
        (np.zeros((32, 40), bool), "no mask: one channel of 8 bits is expected, the image has mode 1"),
    ],
)
def test_a_mask_of_the_test_part_that_does_not_fit_is_named_before_training(mask, said, root):
    path = "annotations/validation/ADE_val_00000002.png"
    Image.fromarray(mask).save(root / path)
    with pytest.raises(UserError, match=f"{path}.*{said}"):
        data_of(root).setup("fit")
