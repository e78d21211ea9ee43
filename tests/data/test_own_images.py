"""One's own images: folders of any form, lists of paths, torch Datasets, Hugging Face's data sets; with duplicates."""

import importlib.util
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fgssl.cli.main import main
from fgssl.commands.data import main as data_main
from fgssl.data.datamodule import DataModule
from fgssl.data.datasets import Folder, HuggingFace, Items
from fgssl.data.datasets.items import column_labels
from fgssl.data.images import read_row
from fgssl.data.protocols import Protocol
from fgssl.data.views import SingleView
from fgssl.errors import UserError
from tests import trees

NAMES = ("cat", "dog", "horse")


def images(root, *files):
    for seed, file in enumerate(files):
        trees.write_image(root / file, seed)
    return root


def labels(index):
    return [index.fine_names[label] if label >= 0 else None for label in index.fine]


# ---- folders --------------------------------------------------------------------------------------------------------


def test_folder_without_parts_takes_the_first_folders_as_classes(tmp_path):
    images(tmp_path, "cat/1.jpg", "cat/old/2.png", "dog/3.jpg", ".cache/4.jpg", "dog/.5.jpg")
    index = Folder(str(tmp_path)).index()
    assert labels(index) == ["cat", "cat", "dog"]
    assert set(index.split) == {"train"}


@pytest.mark.parametrize(("files", "labels"), [(("a.jpg", "b.PNG"), True), (("2021/a.jpg", "b.jpg"), False)])
def test_folder_without_classes_has_no_labels(files, labels, tmp_path):
    dataset = Folder(str(images(tmp_path, *files)), labels=labels)
    assert dataset.index().fine.tolist() == [-1, -1]
    assert (dataset.num_fine, dataset.num_coarse) == (0, 0)


def test_flat_folder_of_parts_has_no_labels(tmp_path):
    index = Folder(str(images(tmp_path, "train/a.jpg", "train/b.jpg", "test/c.jpg"))).index()
    assert (index.fine.tolist(), index.split.tolist()) == ([-1] * 3, ["train", "train", "test"])


def test_folder_with_a_class_named_train_has_no_parts(tmp_path):
    index = Folder(str(images(tmp_path, "train/a.jpg", "plane/b.jpg"))).index()
    assert labels(index) == ["plane", "train"]


@pytest.mark.parametrize("parts", [("train", "test"), ("train", "val"), ("train",)])
def test_folders_without_images_may_stand_beside_the_parts(parts, tmp_path):
    images(tmp_path, *(f"{part}/cat/a.jpg" for part in parts))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("")
    for options in ({}, {"labels": False}):
        assert Folder(str(tmp_path), **options).index().split.tolist() == list(parts)


def test_folder_holds_out_a_share_of_each_class(tmp_path):
    images(tmp_path, *(f"{name}/{number}.jpg" for name in NAMES for number in range(5)), "rare/1.jpg")
    index = Folder(str(tmp_path), test_fraction=0.4).index()
    test = [name for name, part in zip(labels(index), index.split, strict=True) if part == "test"]
    assert sorted(test) == sorted(2 * NAMES)  # never the only image of a class
    assert np.array_equal(index.split, Folder(str(tmp_path), test_fraction=0.4).index().split)


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (("cat/a.jpg", "b.jpg"), {}, "b.jpg in no class folder, but others"),
        (("train/cat/a.jpg", "test/cat/b.jpg"), {"test_fraction": 0.5}, "has parts of its own"),
        (("train/a.jpg", "test/b.jpg", "bus/c.jpg"), {}, r"images lie in bus too, which would be left out\. Move"),
        (("train/cat/a.jpg", "test/cat/b.jpg", "old/cat/c.jpg", "bus/d.jpg"), {"labels": False}, "in bus, old too"),
        (("train/a.jpg", "test/b.jpg", "validation/c.jpg"), {}, r"left out\. Rename validation to val, the .* part\.$"),
        (("train/a.jpg", "val/b.jpg", "new/c.jpg"), {}, "the parts train, val, but images lie in new too"),
        (("train/cat/a.jpg", "valid/cat/c.jpg"), {}, "the parts train, but images lie in valid too"),
        (("train/a.jpg", "val/a.jpg", "test/b.jpg", "valid/c.jpg"), {}, "lie in valid too, .* left out. Move images"),
        (
            ("train/a.jpg", "test/b.jpg", "c.PNG", "d.jpg"),
            {},
            r"2 images lie beside them, .* left out: c\.PNG, d\.jpg\.",
        ),
        (("Train/cat/a.jpg", "Test/cat/b.jpg"), {}, "holds Test, Train, which would be taken for classes.*Rename them"),
        (("training/a.jpg", "validation/b.jpg"), {"labels": False}, "holds training, validation, which would be taken"),
        (("test/cat/a.jpg",), {}, "holds test, which would be taken for classes.*there must be a train"),
        (("mine/train/cat/a.jpg", "mine/test/cat/b.jpg"), {}, "parts test, train are in .*root/mine: name that folder"),
        (("cat/a.jpg", "cat/b.HEIC"), {}, r"holds 1 photographs in HEIC, which are not read: b\.HEIC\. Convert them"),
        (("a.txt",), {}, "holds no image"),
        (("a.jpg",), {"test_fraction": 1.0}, "must be 0 or more and below 1"),
        (("a.jpg",), {"coarse_map": "map.csv"}, "the images have no class labels"),
    ],
)
def test_folder_says_what_is_wrong(files, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "map.csv").write_text("cat,pet\n")
    (tmp_path / "root").mkdir()
    for file in files:
        if file.endswith((".txt", ".HEIC")):
            (tmp_path / "root" / file).write_text("")
        else:
            images(tmp_path / "root", file)
    with pytest.raises(UserError, match=message):
        Folder(str(tmp_path / "root"), **options).index()


@pytest.mark.parametrize("options", [{}, {"labels": False}])
def test_links_to_folders_are_followed(options, tmp_path):
    images(tmp_path, *(f"far/{name}/{number}.jpg" for name in NAMES for number in range(2)))
    for part in ("train", "test"):
        (tmp_path / "near" / part).mkdir(parents=True)
        for name in NAMES:
            (tmp_path / "near" / part / name).symlink_to(tmp_path / "far" / name)
    (tmp_path / "far" / "cat" / "again").symlink_to(tmp_path / "far" / "cat")
    (tmp_path / "far" / "cat" / "above").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "cat" / "near").symlink_to(tmp_path / "near")
    index = Folder(str(tmp_path / "near"), **options).index()
    assert index.split.tolist() == 6 * ["train"] + 6 * ["test"]
    assert labels(index) == ([None] * 12 if options else 2 * [name for name in NAMES for _ in range(2)])


def test_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    images(tmp_path, "cat/a.jpg", "dog/b.jpg")
    scandir = os.scandir

    def refuse(folder):  # as the system does, but to root
        if str(folder).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(UserError, match=r"dog cannot be read \(Permission denied\)\. Make it readable"):
        Folder(str(tmp_path)).index()


def test_name_that_is_not_utf_8_is_refused(tmp_path):
    images(tmp_path, "cat/a.jpg", "dög/猫.jpg")
    assert labels(Folder(str(tmp_path)).index()) == ["cat", "dög"]
    os.rename(tmp_path / "dög", tmp_path / os.fsdecode("dög".encode("latin-1")))
    with pytest.raises(UserError, match=r"d\ufffdg/猫.jpg: the name of a file or folder is not UTF-8. Rename it"):
        Folder(str(tmp_path)).index()


# ---- lists ----------------------------------------------------------------------------------------------------------


def test_csv_file_gives_labels_coarse_labels_and_parts(tmp_path):
    images(tmp_path / "photos", "1.jpg", "2.jpg", "3.jpg")
    (tmp_path / "list.csv").write_text(
        "path, Label,coarse,part\nphotos/1.jpg, cat,pet,train\n"
        f'"{tmp_path}/photos/2.jpg",horse,farm,test\nphotos/3.jpg,,,\n'
    )
    index = Folder(str(tmp_path / "list.csv")).index()
    assert labels(index) == ["cat", "horse", None]
    assert index.coarse_names == ("farm", "pet")
    assert index.coarse.tolist() == [1, 0, -1]
    assert index.split.tolist() == ["train", "test", "train"]
    assert read_row(index, 0).size == trees.SIZE
    unlabelled = Folder(str(tmp_path / "list.csv"), labels=False).index()
    assert (unlabelled.fine.tolist(), unlabelled.coarse) == ([-1] * 3, None)


def test_csv_files_by_semicolons(tmp_path):
    """As Excel writes them where the decimal mark is a comma."""
    images(tmp_path, "1,5.jpg", "2.jpg")
    (tmp_path / "list.csv").write_text("path;label;part\r\n1,5.jpg;cat;train\r\n2.jpg;dog;test\r\n")
    (tmp_path / "map.csv").write_text("class;coarse\r\ncat;pet\r\ndog;pet\r\n")
    index = Folder(str(tmp_path / "list.csv"), coarse_map=str(tmp_path / "map.csv")).index()
    assert (labels(index), index.split.tolist(), index.coarse_names) == (["cat", "dog"], ["train", "test"], ("pet",))


def test_csv_file_gives_boxes_and_images_without(tmp_path):
    images(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "list.csv").write_text("path,x0,y0,x1,y1\n1.jpg,1,2.5,30,40\n2.jpg,,,,\n")
    boxes = Folder(str(tmp_path / "list.csv")).index().boxes
    assert boxes[0].tolist() == [1, 2.5, 30, 40]
    assert np.isnan(boxes[1]).all()
    (tmp_path / "list.csv").write_text("path,x0,y0,x1,y1\n1.jpg,,,,\n2.jpg,,,,\n")
    assert Folder(str(tmp_path / "list.csv")).index().boxes is None


def test_text_file_gives_paths(tmp_path):
    images(tmp_path, "a b.jpg", "c.jpg")
    (tmp_path / "list.txt").write_text("a b.jpg\n\nc.jpg\n")
    index = Folder(str(tmp_path / "list.txt"), test_fraction=0.5).index()
    assert index.paths.tolist() == [str(tmp_path / "a b.jpg"), str(tmp_path / "c.jpg")]
    assert sorted(index.split.tolist()) == ["test", "train"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.csv", "paht,label\na.jpg,cat\n", "Did you mean 'path'"),
        ("list.csv", "a.jpg,cat\n", "the first line must name the columns"),
        ("list.csv", "path,part\na.jpg,tset\n", "line 2: part 'tset' is not train, val, test"),
        ("list.csv", "path,label\n,cat\n", "line 2: no path"),
        ("list.csv", "path\n", "names no image"),
        ("list.csv", "path,label,label\na.jpg,cat,dog\n", "name the columns, each once.*found: path, label, label"),
        ("list.csv", "path,label\na.jpg,cat,dog\n", "line 2: more cells than the 2 columns of the first line"),
        ("list.csv", 'path,label\na.jpg,"cat\nb.jpg,dog\n', "after line 1: .* a quotation mark that is not closed"),
        ("list.csv", "path,x0,y0,x1,y1\na.jpg,1,2,3\n", "a.jpg: the box must be four numbers"),
        ("list.csv", "path,x0,y0,x1,y1\na.jpg,1,2,x,4\n", "a.jpg: the box must be four numbers"),
        ("list.csv", "path,x0,y0,x1,y1\na.jpg,1,2,nan,4\n", "a.jpg: the box must be four numbers"),
        ("list.csv", "path,x0,y0,x1,y1\na.jpg,5,2,1,4\n", "a.jpg: the box must be four numbers, x0 < x1"),
        ("list.txt", "a.jpg\nb.jpg\n", "1 of 2 images are not there: .*b.jpg"),
        ("list.txt", "a.jpg\na.jpg\n", "listed more than once"),
    ],
)
def test_list_names_the_line_that_is_wrong(name, text, message, tmp_path):
    images(tmp_path, "a.jpg")
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        Folder(str(tmp_path / name)).index()


@pytest.mark.parametrize("name", ["a.jpg", "photos.zip", "photos.tar.gz"])
def test_image_or_archive_is_no_list(name, tmp_path):
    images(tmp_path / "photos", "a.jpg")
    images(tmp_path, "a.jpg")
    shutil.make_archive(str(tmp_path / "photos"), "zip", tmp_path / "photos")
    shutil.make_archive(str(tmp_path / "photos"), "gztar", tmp_path / "photos")
    with pytest.raises(UserError, match=f"{name} is no folder or list of images"):
        Folder(str(tmp_path / name)).index()


@pytest.mark.parametrize("name", ["list.csv", "list.txt"])
def test_lists_are_utf_8_with_or_without_a_mark(name, tmp_path):
    images(tmp_path, "Dohle ä.jpg", "b.jpg")
    lines = {"list.csv": "path,label\nDohle ä.jpg,Häher\nb.jpg,Häher\n", "list.txt": "Dohle ä.jpg\nb.jpg\n"}[name]
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / name).write_text(lines, encoding=encoding, newline="\r\n")
        index = Folder(str(tmp_path / name)).index()
        assert index.paths.tolist() == [str(tmp_path / "Dohle ä.jpg"), str(tmp_path / "b.jpg")]
        assert index.fine_names == (("Häher",) if name == "list.csv" else ())
    for encoding in ("cp1252", "utf-16"):
        (tmp_path / name).write_text(lines, encoding=encoding)
        with pytest.raises(UserError, match=f"{tmp_path / name} is not text in UTF-8 .* Excel as CSV UTF-8"):
            Folder(str(tmp_path / name)).index()


@pytest.mark.parametrize(("name", "text"), [("map.csv", "Häher,Krähe\n"), ("map.json", '{"Häher": "Krähe"}')])
def test_a_coarse_map_is_utf_8_with_or_without_a_mark(name, text, tmp_path):
    images(tmp_path / "root", "Häher/1.jpg")
    dataset = Folder(str(tmp_path / "root"), coarse_map=str(tmp_path / name))
    (tmp_path / name).write_text(text, encoding="cp1252")
    with pytest.raises(UserError, match=f"{tmp_path / name} is not text in UTF-8"):
        dataset.index()
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert dataset.index().coarse_names == ("Krähe",)


# ---- Python objects -------------------------------------------------------------------------------------------------


class Pairs(torch.utils.data.Dataset):
    """PIL images of different sizes, with labels."""

    def __init__(self, count, start=0):
        self.seeds = range(start, start + count)

    def __len__(self):
        return len(self.seeds)

    def __getitem__(self, row):
        pixels = np.random.default_rng(self.seeds[row]).integers(0, 256, (20 + row, 30, 3), np.uint8)
        return Image.fromarray(pixels), row % 2


@pytest.mark.parametrize("workers", [0, 2])
def test_any_torch_dataset_is_trained_on_and_evaluated(workers):
    data = DataModule(
        Items(Pairs(6), test=Pairs(4, start=50), classes=("even", "odd")),
        views=SingleView(16), batch_size=2, num_workers=workers, eval_size=8,
    )  # fmt: skip
    assert (data.num_fine, data.dataset.index().fine_names) == (2, ("even", "odd"))
    (batch,) = list(data.train_dataloader())[:1]
    assert batch.views[0].shape == (2, 3, 16, 16)
    rows = torch.cat([batch.index for batch in data.test_dataloader()])
    assert rows.tolist() == [6, 7, 8, 9]
    from fgssl.data.preprocessing import Preprocessing

    first = next(iter(data.test_dataloader()))
    seen = data.on_after_batch_transfer(first, 0).views[0][0]
    assert torch.equal(seen, Preprocessing(8)(Pairs(4, start=50)[0][0]))


def test_items_take_labels_from_targets_subsets_and_tensors():
    class Known(Pairs):
        targets = torch.tensor([3, 1, 2])
        classes = ("a", "b", "c", "d")

        def __getitem__(self, row):
            return torch.full((3, 8, 10), row, dtype=torch.uint8), -1  # opened by no one: targets are known

    subset = torch.utils.data.Subset(Known(3), [2, 0])
    index = Items(Known(3), test=subset).index()
    assert index.fine.tolist() == [3, 1, 2, 2, 3]
    assert index.fine_names == ("a", "b", "c", "d")
    assert read_row(index, 3).size == (10, 8)
    assert np.asarray(read_row(index, 3)).max() == 2
    assert len(pickle.dumps(Items(Pairs(2)).index())) > 0


def test_items_say_what_is_wrong():
    class Transformed(Pairs):
        def __getitem__(self, row):
            return torch.zeros(3, 4, 4), 0

    with pytest.raises(UserError, match="no Dataset is given"):
        Items()
    with pytest.raises(UserError, match="float32 of shape .* leave out its transform"):
        read_row(Items(Transformed(2)).index(), 0)
    with pytest.raises(UserError, match=r"train 0: float32 of shape \(4, 6\) is no image"):
        read_row(Items([(Image.new("F", (6, 4)), 0)]).index(), 0)
    with pytest.raises(UserError, match="a label is not a whole number"):
        Items([(None, "cat")]).index()
    for label in (0.7, float("nan"), float("inf"), torch.tensor(1.2)):
        with pytest.raises(UserError, match="list: a label is not a whole number"):
            Items([(None, 1), (None, label)]).index()
    assert Items([(None, 1.0), (None, np.float32(0)), (None, None)]).index().fine.tolist() == [1, 0, -1]


def test_opened_images_of_items_stay_as_they_are(tmp_path):
    trees.write_image(tmp_path / "large.jpg", size=(96, 96))
    mine = Image.open(tmp_path / "large.jpg")  # not decoded yet; a view of 8 px needs an eighth of it
    data = DataModule(Items([(mine, 0)]), views=SingleView(8, scale=(0.9, 1.0)), batch_size=1, num_workers=0)
    assert len(list(data.train_dataloader())) == 1
    assert np.array_equal(mine, Image.open(tmp_path / "large.jpg"))


def test_a_truncated_opened_image_of_items_is_named_or_skipped(tmp_path):
    trees.write_image(tmp_path / "a.jpg", size=(64, 64))
    trees.write_image(tmp_path / "b.jpg", size=(64, 64))
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:-200])

    def batches(on_error):
        items = Items([(Image.open(tmp_path / name), 0) for name in ("a.jpg", "b.jpg")])
        data = DataModule(items, views=SingleView(8), batch_size=2, num_workers=0, on_error=on_error)
        return [batch.index.tolist() for batch in data.train_dataloader()]

    with pytest.raises(UserError, match="unreadable image: train 1 .*truncated"):
        batches("error")
    assert batches("skip") == [[0, 0]]


needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="the optional extra 'huggingface' (datasets) is not installed"
)


@needs_datasets
def test_hugging_face_data_set_of_a_local_folder(tmp_path):
    import datasets

    def split(count, start):
        columns = {"picture": [Pairs(count, start)[row][0] for row in range(count)], "kind": [0, 1, 0, 1][:count]}
        features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["x", "y"])})
        return datasets.Dataset.from_dict(columns, features=features)

    datasets.DatasetDict({"train": split(4, 0), "validation": split(2, 70)}).save_to_disk(str(tmp_path / "saved"))
    dataset = HuggingFace(str(tmp_path / "saved"))
    index = dataset.index()
    assert (index.name, index.fine_names, index.fine.tolist()) == ("saved", ("x", "y"), [0, 1, 0, 1, 0, 1])
    assert index.split.tolist() == ["train"] * 4 + ["test"] * 2
    assert np.array_equal(read_row(index, 5), Pairs(2, 70)[1][0])
    for options, message in (
        ({"test": "tset"}, "no split 'tset' .it has: train, validation"),
        ({"image": "img"}, "no column 'img' for image .it has: picture, kind"),
    ):
        with pytest.raises(UserError, match=message):
            HuggingFace(str(tmp_path / "saved"), **options).index()
    data = DataModule(dataset, Protocol(), SingleView(8), batch_size=2, num_workers=2)
    assert [len(batch.index) for batch in data.test_dataloader()] == [2]


@needs_datasets
@pytest.mark.parametrize(
    ("options", "parts", "labels", "grey"),
    [
        ({}, ["train", "train", "test"], [0, 1, 2], 10),
        ({"subset": "small"}, ["train", "test"], [1, 2], 11),
        ({"train": "more"}, ["train", "test"], [3, 2], 13),
        ({"test": "more"}, ["train", "train", "test"], [0, 1, 3], 10),
        ({"val": "more"}, ["train", "train", "val", "test"], [0, 1, 3, 2], 10),
        ({"val": "validation"}, ["train", "train", "val"], [0, 1, 2], 10),  # no test images, not the same once more
        ({"image": "other"}, ["train", "train", "test"], [0, 1, 2], 110),
        ({"label": "group"}, ["train", "train", "test"], [3, 2, 1], 10),
    ],
    ids=["none", "subset", "train", "test", "val", "val that is validation", "image", "label"],
)
@pytest.mark.filterwarnings("ignore:.*classes without an image")
def test_options_of_hugging_face_choose_splits_and_columns(options, parts, labels, grey, monkeypatch):
    import datasets

    def split(*kinds):
        columns = {"picture": [10 + k for k in kinds], "other": [110 + k for k in kinds]}
        columns = {name: [Image.new("L", (4, 3), value) for value in greys] for name, greys in columns.items()}
        names = datasets.ClassLabel(num_classes=4)
        types = {"picture": datasets.Image(), "other": datasets.Image(), "kind": names, "group": names}
        columns |= {"kind": list(kinds), "group": [3 - kind for kind in kinds]}
        return datasets.Dataset.from_dict(columns, features=datasets.Features(types))

    whole = {"train": split(0, 1), "validation": split(2), "more": split(3)}
    subsets = {None: whole, "small": whole | {"train": split(1)}}
    monkeypatch.setattr(datasets, "load_dataset", lambda path, subset: subsets[subset])
    index = HuggingFace("some/name", **options).index()
    assert (index.split.tolist(), index.fine.tolist()) == (parts, labels)
    assert read_row(index, 0).getpixel((0, 0)) == (grey, grey, grey)


class Split(list):
    """The label column of a split of Hugging Face; ``names`` makes it one of class labels, () leaves it out."""

    def __init__(self, *values, names=None):
        super().__init__({"kind": value} for value in values)
        self.features = {} if names == () else {"kind": SimpleNamespace(names=names)}

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


@pytest.mark.parametrize(
    ("train", "test", "labels", "names"),
    [
        (Split(1, 0, names=["x", "y"]), Split(0, 1, names=["x", "y"]), ([1, 0], [0, 1]), ["x", "y"]),
        (Split(1, 0, names=["x", "y"]), Split(0, 1, names=["y", "x"]), ([1, 0], [1, 0]), ["x", "y"]),
        (Split(1, None, names=["x", "y"]), Split(-1, names=["x", "y"]), ([1, -1], [-1]), ["x", "y"]),
        (Split("dog", "cat", ""), Split("dog"), ([1, 0, -1], [1]), ["cat", "dog"]),
        (Split(2, 0.0, None), Split(-1), ([2, 0, -1], [-1]), None),
        (Split(1, 0, names=["x", "y"]), Split(7, 8, names=()), ([1, 0], [-1, -1]), ["x", "y"]),
    ],
    ids=["as they are", "another order", "none", "texts", "numbers", "left out"],
)
def test_labels_of_hugging_face(train, test, labels, names):
    found, classes = column_labels({"train": train, "test": test}, "kind")
    assert ((found["train"].tolist(), found["test"].tolist()), classes) == (labels, names)


@pytest.mark.parametrize("value", [0.5, [0, 1], Image.new("L", (1, 1))])
def test_column_without_classes_of_hugging_face_is_named(value, monkeypatch):
    split = Split(value)
    split.features |= {"picture": type("Image", (), {})()}
    monkeypatch.setattr(HuggingFace, "check_files", lambda self: None)
    monkeypatch.setattr(HuggingFace, "_load", lambda self: {"train": split})
    with pytest.raises(
        UserError, match=r"column 'kind' of some/name holds neither names nor whole numbers \(.*Give --data"
    ):
        HuggingFace("some/name", label="kind").index()
    with pytest.raises(UserError, match="no split is named. Give --data.dataset.train"):
        HuggingFace("some/name", train=None).index()


def test_hugging_face_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'fgssl\[huggingface\]'"):
        HuggingFace("some/name").check_files()
    with pytest.raises(UserError, match="no data set is named"):
        HuggingFace().check_files()


# ---- training and embedding without labels ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    root = tmp_path_factory.mktemp("unlabelled")
    return images(root, *(f"{number % 3}/{number}.jpg" for number in range(24)))


SMALL = [
    "--model.backbone.options", "{layers: [1, 1, 1, 1], channels: [4, 4, 8, 8]}", "--data.batch_size", "8",
    "--data.dataset", "Folder", "--data.dataset.labels", "false", "--data.views.size", "32", "--data.num_workers", "0",
    "--retrieval.grid", "0", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false",
    "--trainer.enable_model_summary", "false", "--trainer.accelerator", "cpu",
]  # fmt: skip


@pytest.mark.slow
def test_images_without_labels_are_trained_on_and_embedded(unlabelled, tmp_path, caplog):
    place = ["--data.dataset.root", str(unlabelled), "--run.root", str(tmp_path), "--run.name", "a"]
    flags = ["--model.memory", "16", "--data.dataset.test_fraction", "0.25", *SMALL, *place]
    assert main(["fit", "--model", "MLS", *flags]) == 0
    assert "No retrieval metrics: none of the 6 test images has a single class label" in caplog.text
    quiet = ["--trainer.enable_progress_bar", "false", "--retrieval.grid", "0", "--run.root", str(tmp_path)]
    every = ["--part", "all", "--run.name", "all", "--run.experiment", "e"]
    assert main(["embed", "--ckpt_path", str(tmp_path / "fgssl" / "a"), *every, *quiet]) == 0
    from fgssl.evaluation.store import read_embeddings

    assert read_embeddings(tmp_path / "e" / "all").index.tolist() == list(range(24))


@pytest.mark.slow
def test_validation_images_without_labels_choose_no_checkpoint(unlabelled, tmp_path, caplog):
    place = ["--data.dataset.root", str(unlabelled), "--run.root", str(tmp_path), "--run.name", "a"]
    flags = ["--model.memory", "16", "--data.dataset.test_fraction", "0.25", "--data.protocol.val_fraction", "0.25"]
    assert main(["fit", "--model", "MLS", *flags, *SMALL, *place]) == 0
    assert "No best.ckpt is chosen: no validation image has a label" in caplog.text
    assert [path.name for path in (tmp_path / "fgssl" / "a" / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "message"),
    [
        (["MaskCon"], "needs coarse labels; the data set has none"),
        (
            ["OBDSD", "--data.views", "SingleView", "--data.views.size", "32"],
            "needs a fine label of each training image",
        ),
        (["Finetune"], "needs labels, but the data set has none"),
    ],
)
def test_method_that_needs_labels_refuses_images_without(method, message, unlabelled, tmp_path, capsys):
    place = ["--data.dataset.root", str(unlabelled), "--run.root", str(tmp_path)]
    assert main(["fit", "--model", *method, *SMALL, *place]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_images_with_some_coarse_labels_are_refused_by_maskcon(unlabelled, tmp_path, capsys):
    rows = [f"{path},{'a' if number else ''}" for number, path in enumerate(sorted(unlabelled.rglob("*.jpg")))]
    (tmp_path / "list.csv").write_text("\n".join(["path,coarse", *rows]) + "\n")
    flags = [*SMALL, "--data.dataset.labels", "true", "--data.dataset.root", str(tmp_path / "list.csv")]
    assert main(["fit", "--model", "MaskCon", "--model.memory", "16", *flags, "--run.root", str(tmp_path)]) == 2
    assert (
        "MaskCon needs a coarse label of each training image, but 1 of 24 of folder have none"
        in capsys.readouterr().err
    )


# ---- duplicates -----------------------------------------------------------------------------------------------------


def test_data_check_finds_test_images_that_are_training_images(tmp_path, capsys, monkeypatch):
    """An exact copy in another format, and a smaller, recompressed one; other images are not taken for copies."""
    monkeypatch.setenv("COLUMNS", "250")
    root = tmp_path / "root"
    for part, start in (("train", 0), ("test", 100)):
        for number in range(12):
            trees.write_image(root / part / "bird" / f"{number:02d}.png", start + number, size=(200, 150))
    first, second = Image.open(root / "train/bird/03.png"), Image.open(root / "train/bird/07.png")
    first.save(root / "test/bird/copy.bmp")
    second.resize((128, 96)).save(root / "test/bird/small.jpg", quality=50)
    sheet = tmp_path / "pairs.png"
    assert data_main(["check", "folder", "--root", str(root), "--duplicate_sheet", str(sheet)]) == 0
    said = capsys.readouterr().out
    assert "test images that are also training images: 1 exact, 1 near" in said
    lines = [line for line in said.splitlines() if "copy.bmp" in line or "small.jpg" in line]
    assert [("03.png" in line, "07.png" in line, "exact" in line) for line in lines] == [
        (True, False, True),
        (False, True, False),
    ]
    assert Image.open(sheet).size[0] > 400
    assert data_main(["check", "folder", "--root", str(root), "--no-duplicates"]) == 0
    assert "training images:" not in capsys.readouterr().out


def test_data_check_says_that_there_are_no_duplicates(capsys):
    assert data_main(["check", "digits"]) == 0
    assert "no test image is also a training image" in capsys.readouterr().out


def test_data_check_finds_equal_images_without_a_test_part(tmp_path, capsys, monkeypatch):
    """Two copies of one image, and a smaller one of another; each pair is named once, also where it is found twice."""
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setattr("fgssl.evaluation.duplicates.AT_ONCE", 5)  # several steps of the progress bar
    root, sheet = tmp_path / "root", tmp_path / "pairs.png"
    for number in range(12):
        trees.write_image(root / "bird" / f"{number:02d}.png", number, size=(200, 150))
    command = ["check", "folder", "--root", str(root), "--duplicate_sheet", str(sheet)]
    assert data_main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "no image is there twice (by pixels and by thumbnail)" in said
    assert f"{sheet} is not written: there are no pairs to show" in said
    assert not sheet.exists()
    first, second = Image.open(root / "bird/03.png"), Image.open(root / "bird/07.png")
    first.save(root / "bird/copy.bmp")
    first.save(root / "bird/more.bmp")
    second.resize((128, 96)).save(root / "bird/small.jpg", quality=50)
    assert data_main(command) == 0
    said = capsys.readouterr().out
    assert "looking for near duplicates" in said
    assert "pairs of equal images: 2 exact, 1 near" in said
    rows = [line.split() for line in said.splitlines() if "root/bird" in line and "%" not in line]
    pairs = [{Path(word).name for word in row if "bird/" in word} for row in rows]
    assert pairs == [{"copy.bmp", "03.png"}, {"more.bmp", "03.png"}, {"small.jpg", "07.png"}]
    assert Image.open(sheet).size[0] > 400


def test_data_check_of_one_image_has_no_duplicates(tmp_path, capsys):
    assert data_main(["check", "folder", "--root", str(images(tmp_path, "a.jpg"))]) == 0
    assert "no image is there twice" in capsys.readouterr().out


def test_data_check_refuses_a_sheet_of_duplicates_that_it_does_not_look_for():
    with pytest.raises(UserError, match="--no-duplicates does not look for"):
        data_main(["check", "digits", "--no-duplicates", "--duplicate_sheet", "pairs.png"])
