"""Mistakes that a user can mend: each is one clear message, and no traceback of ours."""

import io
import os
import pickle

import numpy as np
import pytest
from scipy.io import savemat

from fgssl.data.datasets import ALL
from fgssl.data.datasets.base import DataSet
from fgssl.data.index import Index
from fgssl.errors import UserError
from tests import trees


def replace_line(path, number, line):
    """Replace a line of a text file, or drop it where ``line`` is None."""
    lines = path.read_text().splitlines()
    lines[number : number + 1] = [] if line is None else [line]
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"digits", "huggingface"}))
def test_missing_root_says_what_where_and_whence(name, tmp_path):
    root = tmp_path / "nowhere"
    with pytest.raises(UserError) as error:
        ALL[name](str(root)).index()
    message = str(error.value)
    assert all(part in message for part in ALL[name].layout)
    assert str(root) in message
    assert ALL[name].source in message


def test_root_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("FGSSL_DATA", str(tmp_path))
    assert ALL["cub"]().root == tmp_path / "CUB_200_2011"


def test_cars_test_annotations_without_labels(tmp_path):
    """The devkit alone: its test annotations have no labels, and the message says which file has."""
    trees.make_cars(tmp_path)
    labelled = tmp_path / "cars_test_annos_withlabels.mat"
    labelled.rename(tmp_path / "devkit" / "cars_test_annos.mat")
    with pytest.raises(UserError, match=r"(?s)not found.*: cars_test_annos_withlabels.mat\..*has no labels"):
        ALL["cars"](str(tmp_path)).index()

    savemat(labelled, {"annotations": np.array([(1, 1, 5, 5, "1.jpg")], dtype=[(n, object) for n in CARS_FIELDS])})
    with pytest.raises(UserError, match="has no labels: get cars_test_annos_withlabels.mat"):
        ALL["cars"](str(tmp_path)).index()


CARS_FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "fname")


def test_counts_must_be_the_published_ones(tmp_path):
    with pytest.raises(UserError, match="12 train images, published 5,994.*partial"):
        ALL["cub"](str(trees.make_cub(tmp_path))).index()


def test_label_file_too_short(tmp_path):
    trees.make_cub(tmp_path)
    replace_line(tmp_path / "image_class_labels.txt", 3, None)
    with pytest.raises(UserError, match="image_class_labels.txt has 23 lines for 24 images.*id 4"):
        ALL["cub"](str(tmp_path), partial=True).index()


def test_label_file_with_a_broken_line(tmp_path):
    trees.make_cub(tmp_path)
    replace_line(tmp_path / "train_test_split.txt", 3, "4")
    with pytest.raises(UserError, match="train_test_split.txt, line 4: expected 2 columns"):
        ALL["cub"](str(tmp_path), partial=True).index()


def test_unknown_class_id(tmp_path):
    trees.make_cub(tmp_path)
    replace_line(tmp_path / "image_class_labels.txt", 0, "1 9")
    with pytest.raises(UserError, match="classes that the class list does not have: 9"):
        ALL["cub"](str(tmp_path), partial=True).index()


def test_duplicate_id(tmp_path):
    trees.make_cub(tmp_path)
    replace_line(tmp_path / "images.txt", 1, "1 001.Laysan_Albatross/other.jpg")
    with pytest.raises(UserError, match="images.txt: id 1 occurs twice"):
        ALL["cub"](str(tmp_path), partial=True).index()


def test_same_image_twice(tmp_path):
    trees.make_indoor67(tmp_path)
    replace_line(tmp_path / "TestImages.txt", 0, "bar/bar 0.jpg")
    with pytest.raises(UserError, match="listed more than once: .*bar 0.jpg"):
        ALL["indoor67"](str(tmp_path), partial=True).index()


def test_empty_class(tmp_path):
    trees.make_cub(tmp_path)
    with (tmp_path / "classes.txt").open("a") as file:
        file.write("5 005.Crested_Auklet\n")
    with pytest.raises(UserError, match="classes without an image: 005.Crested_Auklet"):
        ALL["cub"](str(tmp_path)).index()


def test_empty_class_folder(tmp_path):
    trees.make_folder(tmp_path)
    (tmp_path / "train" / "zebra").mkdir()
    with pytest.raises(UserError, match="zebra holds no image"):
        ALL["folder"](str(tmp_path)).index()


def test_no_class_folders(tmp_path):
    trees.make_folder(tmp_path, parts=("train",))
    (tmp_path / "test").mkdir()
    with pytest.raises(UserError, match="test holds no image"):
        ALL["folder"](str(tmp_path)).index()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("map.json", '{"cat": "pet"}', "no entry for 2 classes: dog, horse"),
        ("map.csv", "cat,pet\nhorse,farm\n", "no entry for 1 classes: dog"),
        ("map.csv", "cat,pet\ndog\nhorse,farm\n", "expected one coarse class name for each class"),
        ("map.csv", "cat,pet\ncat,farm\ndog,pet\nhorse,farm\n", "given twice: cat"),
        ("map.json", '{"cat": "pet", "cat": "farm"}', "given twice: cat"),
        ("map.csv", "cat,pet\ndog,\nhorse, \n", "no coarse class is given for dog, horse"),
        ("map.json", '["cat"]', "expected one coarse class name"),
        ("map.json", '{"cat": ', "not valid JSON"),
    ],
)
def test_coarse_map(file, text, message, tmp_path):
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=message):
        ALL["folder"](str(trees.make_folder(tmp_path / "root")), coarse_map=str(tmp_path / file)).index()


def test_coarse_map_not_there(tmp_path):
    with pytest.raises(UserError, match="coarse map not found: .*no.json"):
        ALL["folder"](str(trees.make_folder(tmp_path)), coarse_map=str(tmp_path / "no.json")).index()


def test_flowers_label_list_too_short(tmp_path):
    trees.make_flowers(tmp_path)
    savemat(tmp_path / "imagelabels.mat", {"labels": np.arange(1, 31)})
    with pytest.raises(UserError, match="lists 36 images.*30 labels"):
        ALL["flowers"](str(tmp_path), partial=True).index()


def test_broken_mat_file(tmp_path):
    trees.make_flowers(tmp_path)
    (tmp_path / "setid.mat").write_bytes(b"not a mat file, " * 20)
    with pytest.raises(UserError, match="setid.mat is not a readable .mat file"):
        ALL["flowers"](str(tmp_path), partial=True).index()


def test_batch_with_too_few_labels(tmp_path):
    trees.make_cifar10(tmp_path)
    batch = pickle.loads((tmp_path / "data_batch_2").read_bytes())
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps(batch | {"labels": [1, 2]}))
    with pytest.raises(UserError, match="data_batch_2: 2 labels for 20 images"):
        ALL["cifar10"](str(tmp_path), partial=True).index()


def test_batch_of_another_data_set(tmp_path):
    trees.make_cifar100(tmp_path)
    trees.write_batch(tmp_path / "train", seed=0, labels=[1, 2])
    with pytest.raises(UserError, match="no 'fine_labels' in this batch"):
        ALL["cifar100"](str(tmp_path), partial=True).index()


def test_truncated_batch(tmp_path):
    trees.make_cifar10(tmp_path)
    whole = (tmp_path / "test_batch").read_bytes()
    (tmp_path / "test_batch").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="test_batch is not a readable batch"):
        ALL["cifar10"](str(tmp_path), partial=True).index()


FILES = (
    ("cub", "classes.txt"),
    ("cars", "devkit/cars_meta.mat"),
    ("flowers", "setid.mat"),
    ("sop", "Ebay_test.txt"),
    ("aircraft", "data/images_family_val.txt"),
    ("cifar10", "test_batch"),
    ("cifar100", "meta"),
    ("coco_instances", "annotations/instances_val2017.json"),
    ("voc0712", "VOC2007/Annotations/000000.xml"),
    ("uavdt", "UAV-benchmark-MOTD_v1.0/GT/M0203_gt_whole.txt"),
    ("ade20k", "objectInfo150.txt"),
)


@pytest.mark.parametrize("content", [None, b"<html>\n<body>Not found</body>\n</html>\n", b"\0\1\2\x80\xff"])
@pytest.mark.parametrize(("name", "file"), FILES)
def test_a_file_of_another_kind_is_named(name, file, content, tmp_path):
    getattr(trees, f"make_{name}")(tmp_path)
    (tmp_path / file).unlink()
    (tmp_path / file).write_bytes(content) if content else (tmp_path / file).mkdir()  # which no user may read as a file
    with pytest.raises(UserError, match=os.path.basename(file)):
        ALL[name](str(tmp_path), partial=True).index()


@pytest.mark.parametrize("file", ["imagelabels.mat", "setid.mat"])
def test_empty_mat_file(file, tmp_path):
    trees.make_flowers(tmp_path)
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(UserError, match=rf"{file} is not a readable .mat file: .*Get it again"):
        ALL["flowers"](str(tmp_path), partial=True).index()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "test_batch is not a readable batch: it holds a list"),
        ({"data": np.zeros((2, 12288), np.uint8), "labels": [0, 1]}, r"shape \(2, 12288\), not uint8 of 3072 columns"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, None]}, "test_batch: 'labels' must be whole numbers"),
    ],
)
def test_batch_of_another_form(content, message, tmp_path):
    trees.make_cifar10(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=message):
        ALL["cifar10"](str(tmp_path), partial=True).index()


def test_mat_file_without_permission(tmp_path, monkeypatch):
    path, opened = trees.make_flowers(tmp_path) / "setid.mat", io.open

    def refuse(file, *args, **options):  # as the system does, but to root
        if str(file) == str(path):
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, *args, **options)

    monkeypatch.setattr("io.open", refuse)
    with pytest.raises(
        UserError, match=r"flowers: .*setid.mat cannot be read \(Permission denied\)\. Make it readable"
    ):
        ALL["flowers"](str(tmp_path), partial=True).index()


def test_file_that_a_level_of_aircraft_lacks(tmp_path):
    (trees.make_aircraft(tmp_path) / "data" / "images_family_val.txt").unlink()
    with pytest.raises(UserError, match=r"images_family_val.txt cannot be read \(No such file or directory\)"):
        ALL["aircraft"](str(tmp_path), partial=True).index()


@pytest.mark.parametrize("line", ["1 1 1 bicycle_final\\1_0.JPG", "1 1 1 bicycle_final"])
def test_sop_path_of_another_form(line, tmp_path):
    replace_line(trees.make_sop(tmp_path) / "Ebay_train.txt", 1, line)
    with pytest.raises(UserError, match=r"lists 'bicycle_final.*<super-class>_final/<image> is expected"):
        ALL["sop"](str(tmp_path), partial=True).index()


@pytest.mark.parametrize(("made", "asked"), [("dtd/dtd", "dtd"), ("dtd", "dtd/labels"), ("dtd", "dtd/dtd")])
def test_root_one_folder_too_high_or_too_low(made, asked, tmp_path):
    trees.make_dtd(tmp_path / made)
    with pytest.raises(
        UserError, match=rf"not found under .*{asked}.*\n.*\nThe folder {tmp_path / made} has this layout: give"
    ):
        ALL["dtd"](str(tmp_path / asked)).index()


def test_imagenet_with_flat_test_images(tmp_path):
    for folder in (trees.make_imagenet(tmp_path) / "val").iterdir():
        for image in folder.iterdir():
            image.rename(tmp_path / "val" / image.name)
        folder.rmdir()
    with pytest.raises(UserError, match=r"val has no class folders\. Sort its images into .*val/<class>/"):
        ALL["imagenet"](str(tmp_path), partial=True).index()


class _Exploit:
    def __reduce__(self):
        return os.mkdir, ("exploited",)


def test_batch_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trees.make_cifar10(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": _Exploit(), "labels": []}))
    with pytest.raises(UserError, match="test_batch is not a readable batch: it holds a posix.mkdir|nt.mkdir"):
        ALL["cifar10"](str(tmp_path), partial=True).index()
    assert not (tmp_path / "exploited").exists()


def test_imagenet_class_that_is_none(tmp_path):
    trees.make_imagenet(tmp_path)
    trees.write_image(tmp_path / "train" / "n00000000" / "1.JPEG")
    with pytest.raises(UserError, match="classes that the class list does not have: n00000000"):
        ALL["imagenet"](str(tmp_path), partial=True).index()


@pytest.mark.parametrize("name", ["cifar10", "cifartoy"])
def test_cifar_class_folder_of_another_name(name, tmp_path):
    (trees.make_cifar10_folders(tmp_path) / "train" / "automobile").rename(tmp_path / "train" / "car")
    with pytest.raises(UserError, match="classes that the class list does not have: car"):
        ALL[name](str(tmp_path), partial=True).index()


@pytest.mark.parametrize(
    ("name", "option"), [("cifartoy", {"variant": "goood"}), ("aircraft", {"coarse": "famly"})], ids=str
)
def test_misspelt_option(name, option):
    with pytest.raises(UserError, match="Did you mean '(good|family)'"):
        ALL[name](**option)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"paths": ["a.png", "b.png"]}, "'paths' is no NumPy array"),
        ({"fine": [0, 1]}, "'fine' is no NumPy array"),
        ({"fine": np.zeros((2, 1), int)}, "'fine' is no NumPy array of one dimension"),
        ({"fine": np.array([0.0, 1.0])}, "'fine' holds float64"),
        ({"split": np.array(["train", "testing"])}, "'split' holds testing; the parts are train, val and test"),
    ],
)
def test_columns_of_a_data_set_of_ones_own_are_checked(columns, message):
    class Own(DataSet):
        name = "own"

        def _read(self):
            rows = {"paths": np.array(["a.png", "b.png"]), "fine": np.array([0, 1]), "split": np.array(["train"] * 2)}
            return Index("own", fine_names=("x", "y"), **(rows | columns))

    with pytest.raises(UserError, match=message):
        Own().index()


def test_data_set_without_a_reader_is_told_what_it_needs():
    class Own(DataSet):
        pass

    with pytest.raises(UserError, match=r"Own needs a method _read\(\)"):
        Own().index()
