"""Each data set reads its official layout: a tiny tree of it, with labels, parts, names and boxes known."""

import subprocess
import sys

import numpy as np
import pytest

from fgssl.data.datasets import ALL
from fgssl.data.datasets.base import Published
from fgssl.data.datasets.cifartoy import GROUP_A
from fgssl.data.datasets.imagenet import read_boxes
from fgssl.data.hierarchies import label_map, read_json
from fgssl.data.images import read_image
from fgssl.errors import UserError
from tests import trees

# name: images a part, fine classes, coarse classes
COUNTS = {
    "cub": ({"train": 12, "test": 12}, 4, 3),
    "cars": ({"train": 12, "test": 12}, 4, 8),
    "aircraft": ({"train": 18, "test": 9}, 3, 2),
    "sop": ({"train": 12, "test": 12}, 8, 2),
    "imagenet": ({"train": 9, "test": 9}, 3, 12),
    "imagenet32": ({"train": 1000, "test": 1000}, 1000, 12),
    "cifar10": ({"train": 100, "test": 20}, 10, 0),
    "cifar100": ({"train": 200, "test": 100}, 100, 20),
    "cifartoy": ({"train": 80, "test": 16}, 8, 2),
    "coco": ({"train": 5}, 0, 0),
    "flowers": ({"train": 24, "test": 12}, 4, 0),
    "pets": ({"train": 9, "test": 9}, 3, 2),
    "dtd": ({"train": 12, "test": 6}, 2, 0),
    "indoor67": ({"train": 6, "test": 6}, 2, 0),
    "voc2007": ({"train": 20, "test": 20}, 20, 0),
    "voc0712": ({"train": 8, "test": 4}, 20, 0),
    "uavdt": ({"train": 4, "test": 4}, 3, 0),
    "coco_instances": ({"train": 4, "test": 5}, 2, 0),
    "ade20k": ({"train": 4, "test": 4}, 3, 0),
    "cityscapes": ({"train": 4, "test": 4}, 19, 0),
}
IMAGES_IN_MEMORY = ("imagenet32", "cifar10", "cifar100", "cifartoy")


def read(name, root, **options):
    """The index of a tiny tree; that its counts are not the published ones is warned about."""
    make = {"cifartoy": trees.make_cifar10}.get(name) or getattr(trees, f"make_{name}")
    with pytest.warns(UserWarning, match="published"):
        return ALL[name](str(make(root)), partial=True, **options).index()


@pytest.mark.parametrize("name", COUNTS)
def test_counts_parts_and_images(name, tmp_path):
    index = read(name, tmp_path)
    splits, fine, coarse = COUNTS[name]
    assert {part: len(index.rows(part)) for part in set(index.split)} == splits
    assert (len(index.fine_names), len(index.coarse_names)) == (fine, coarse)
    assert index.fine.dtype == np.int64
    assert (index.pixels is not None) == (name in IMAGES_IN_MEMORY)
    if index.pixels is None:
        size = (48, 24) if name == "cityscapes" else trees.SIZE
        assert all(read_image(path).size == size for path in index.paths)


def test_every_data_set_has_a_test():
    assert COUNTS.keys() | {"digits", "folder", "huggingface"} == ALL.keys()


@pytest.mark.parametrize("name", ALL)
def test_class_counts_are_known_without_the_disk(name, tmp_path):
    if ALL[name].published is None:
        pytest.skip("a user's own folder: only the disk knows")
    dataset = ALL[name](str(tmp_path / "nowhere"))
    assert isinstance(dataset.published, Published)
    assert (dataset.num_fine, dataset.num_coarse) == (dataset.published.fine, dataset.published.coarse)


def test_nothing_slow_is_imported():
    """A missing data set must be said before torch has loaded."""
    code = (
        "import sys, fgssl.data.datasets, fgssl.data.protocols, fgssl.commands.data; "
        "print([m for m in ('torch', 'torchvision', 'lightning', 'sklearn', 'scipy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_cub_coarse_is_the_last_word_and_boxes_become_corners(tmp_path):
    index = read("cub", tmp_path)
    assert index.coarse_names == ("Albatross", "Bobolink", "Sparrow")
    assert [index.coarse_names[index.coarse[index.fine == label][0]] for label in range(4)] == [
        "Albatross",
        "Albatross",
        "Bobolink",
        "Sparrow",
    ]
    assert index.boxes[0].tolist() == [4, 2, 24, 12]  # published as x 4, y 2, width 20, height 10


def test_cub_without_the_box_file(tmp_path):
    trees.make_cub(tmp_path)
    (tmp_path / "bounding_boxes.txt").unlink()
    with pytest.warns(UserWarning, match="published"):
        assert ALL["cub"](str(tmp_path), partial=True).index().boxes is None


@pytest.mark.parametrize("layout", ["original", "nested", "combined"])
def test_cars_layouts_agree(layout, tmp_path):
    trees.make_cars(tmp_path, layout)
    with pytest.warns(UserWarning, match="published"):
        index = ALL["cars"](str(tmp_path), partial=True).index()
    assert index.fine_names == trees.CARS
    assert [index.coarse_names[label] for label in index.coarse[index.split == "test"][:: trees.PER_CLASS]] == [
        "SUV",
        "Sedan",
        "Sedan",
        "Coupe",
    ]
    assert index.boxes[0].tolist() == [4, 2, 24, 12]
    assert all(read_image(path) for path in index.paths)


def test_aircraft_levels_and_parts(tmp_path):
    index = read("aircraft", tmp_path, coarse="manufacturer", trainval=False)
    assert index.coarse_names == ("Boeing",)
    assert {part: len(index.rows(part)) for part in ("train", "val", "test")} == {"train": 9, "val": 9, "test": 9}
    assert index.fine_names == ("707-320", "727-200", "737-200 F/X")  # a name may hold a blank
    assert ALL["aircraft"](coarse="manufacturer").num_coarse == 30


def test_imagenet_coarse_follows_the_wnid_and_the_largest_box_is_read(tmp_path):
    index = read("imagenet", tmp_path, boxes=True)
    coarse = [index.coarse_names[index.coarse[index.fine == label][0]] for label in range(3)]
    assert coarse == ["reptile or aquatic vertebrate", "bird", "domestic animal"]
    assert index.boxes[0].tolist() == [4, 2, 24, 12]  # the larger of two
    assert np.isnan(index.boxes[1]).all()  # no annotation
    assert index.boxes[index.rows("test")[0]].tolist() == [4, 2, 24, 12]
    with pytest.raises(UserError, match="Annotations"):
        read_boxes(tmp_path / "no" / "Annotations", index.paths)


def test_imagenet32_labels_are_put_into_wnid_order(tmp_path):
    index = read("imagenet32", tmp_path)
    # label 1 of the batches is n02119789 (kit fox), as in the challenge's own order
    assert index.fine_names[index.fine[0]] == "n02119789"
    assert (np.bincount(index.fine, minlength=1000) == 2).all()


def test_cifar10_pixels_are_red_green_blue(tmp_path):
    index = read("cifar10", tmp_path)
    rows = np.random.default_rng(1).integers(0, 256, (20, 3 * 32 * 32), dtype=np.uint8)  # as the first batch
    assert index.pixels[0, 0, 0].tolist() == rows[0, [0, 1024, 2048]].tolist()
    assert index.pixels.shape[1:] == (32, 32, 3)


def test_cifar10_from_folders(tmp_path):
    trees.make_cifar10_folders(tmp_path)
    with pytest.warns(UserWarning, match="published"):
        index = ALL["cifar10"](str(tmp_path), partial=True).index()
    assert index.fine_names[0] == "airplane"
    assert len(index.rows("train")) == 10 * trees.PER_CLASS


@pytest.mark.parametrize(
    ("variant", "published"), [("good", "good"), ("bad_code", "bad")], ids=["good", "bad as the code has it"]
)
def test_cifartoy_groups_are_the_published_ones(variant, published, tmp_path):
    names = read("cifar10", tmp_path / "all").fine_names
    groups = read_json("cifartoy_splits.json")[published]
    assert sorted(GROUP_A[variant]) == sorted(names[label] for label in groups["coarse0_cifar10_ids"])

    index = read("cifartoy", tmp_path / "toy", variant=variant)
    group_a = {index.fine_names[label] for label in index.fine[index.coarse == 0]}
    assert group_a == set(GROUP_A[variant])
    assert len(group_a) == 4
    assert not {"deer", "frog"} & set(index.fine_names)


def test_cifartoy_bad_is_the_papers_text():
    assert GROUP_A["bad"] == ("airplane", "automobile", "bird", "cat")


def test_cifar100_coarse_labels(tmp_path):
    index = read("cifar100", tmp_path)
    assert index.coarse[:100].tolist() == label_map("cifar100_fine_to_coarse.json")
    assert index.fine_names[3] == "fine 3"


def test_sop_products(tmp_path):
    index = read("sop", tmp_path)
    assert index.fine_names[:3] == ("bicycle 111001", "bicycle 111002", "kettle 111003")
    assert index.coarse_names == ("bicycle", "kettle")
    assert not set(index.fine[index.split == "train"]) & set(index.fine[index.split == "test"])


def test_flowers_labels_follow_the_image_number(tmp_path):
    index = read("flowers", tmp_path, trainval=False)
    numbers = np.array([int(path[-9:-4]) for path in index.paths])
    assert (index.fine == (numbers - 1) % 4).all()
    assert len(index.rows("val")) == 12


def test_pets_sorted_by_class_number(tmp_path):
    index = read("pets", tmp_path)
    assert index.fine_names == ("Abyssinian", "american_bulldog", "Birman")
    assert index.coarse[index.rows("train")[:: trees.PER_CLASS]].tolist() == [0, 1, 0]  # cat, dog, cat


def test_dtd_partition(tmp_path):
    index = read("dtd", tmp_path, partition=2, trainval=False)
    assert index.fine_names == ("banded", "zigzagged")
    with pytest.raises(UserError, match="train3.txt"):
        ALL["dtd"](str(tmp_path), partition=3).index()


def test_voc_targets_mark_difficult_objects(tmp_path):
    index = read("voc2007", tmp_path)
    assert index.targets.dtype == np.uint8
    assert index.targets[0, :3].tolist() == [1, 255, 0]  # shows an aeroplane and, difficult, a bicycle
    assert (index.fine == -1).all()


def test_digits():
    index = ALL["digits"]().index()
    assert index.pixels.shape == (1797, 32, 32, 3)
    assert index.pixels.dtype == np.uint8
    groups = {name: set(index.fine[index.coarse == label]) for label, name in enumerate(index.coarse_names)}
    assert groups == {"loop": {0, 6, 8, 9}, "straight": {1, 4, 7}, "curve": {2, 3, 5}}
    share = np.bincount(index.fine[index.rows("test")]) / np.bincount(index.fine)
    assert np.allclose(share, 0.25, atol=0.005)


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_folder_with_a_coarse_map(suffix, tmp_path):
    trees.make_folder(tmp_path, parts=("train", "val", "test"))
    coarse_map = tmp_path / f"map.{suffix}"
    if suffix == "json":
        coarse_map.write_text('{"cat": "pet", "dog": "pet", "horse": "farm"}')
    else:
        coarse_map.write_text("class,coarse\ncat,pet\ndog,pet\nhorse,farm\n")
    dataset = ALL["folder"](str(tmp_path), coarse_map=str(coarse_map))
    index = dataset.index()
    assert index.coarse_names == ("farm", "pet")
    assert index.coarse[:: trees.PER_CLASS].tolist() == [1, 1, 0] * 3
    assert {part: len(index.rows(part)) for part in ("train", "val", "test")} == {"train": 9, "val": 9, "test": 9}
    assert (dataset.num_fine, dataset.num_coarse) == (3, 2)
