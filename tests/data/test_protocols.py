"""Which rows a protocol picks, and with which labels."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fgssl.data.datasets import ALL
from fgssl.data.index import Index, rows_hash
from fgssl.data.protocols import SPLITS, Protocol, read_sop_list, stratified
from fgssl.errors import UserError


def make_index(classes: int = 20, train: int = 30, test: int = 10, name: str = "test") -> Index:
    """``classes`` classes with so many training and test images each; coarse label fine // 5."""
    fine = np.repeat(np.arange(classes), train + test)
    part = np.tile(np.repeat(["train", "test"], [train, test]), classes)
    return Index(
        name=name,
        paths=np.array([f"{row}.jpg" for row in range(len(fine))]),
        fine=fine,
        fine_names=tuple(f"class {label}" for label in range(classes)),
        split=part,
        coarse=fine // 5,
        coarse_names=tuple(f"group {label}" for label in range(-(-classes // 5))),
    )


def per_class(index, rows):
    return np.bincount(index.fine[rows], minlength=len(index.fine_names))


def disjoint(*parts):
    rows = np.concatenate(parts)
    return len(np.unique(rows)) == len(rows)


def test_official():
    index = make_index()
    parts = Protocol().apply(index)
    assert (parts.train == index.rows("train")).all()
    assert (parts.test == index.rows("test")).all()
    assert len(parts.val) == len(parts.flipped) == 0
    assert parts.train.dtype == np.int64


def test_official_validation_part_is_kept_or_goes_back_to_training():
    index = make_index()
    split = index.split.copy()
    split[index.rows("train")[::3]] = "val"
    index = replace(index, split=split)
    assert (Protocol().apply(index).val == index.rows("val")).all()
    parts = Protocol(val_fraction=0.5).apply(index)
    assert len(parts.train) == len(parts.val) == 300


@pytest.mark.parametrize(("classes", "seen"), [(20, 10), (7, 3)])
def test_zero_shot_trains_on_the_first_half_of_the_classes(classes, seen):
    index = make_index(classes)
    parts = Protocol(split="zero_shot").apply(index)
    assert set(index.fine[parts.train]) == set(range(seen))
    assert set(index.fine[parts.test]) == set(range(seen, classes))
    assert len(parts.train) + len(parts.test) == len(index)  # all images of a class, of both official parts


def test_zero_shot_keeps_official_classes_that_are_disjoint_already():
    index = make_index(9)
    index = replace(index, split=np.where(index.fine < 3, "train", "test"))  # as SOP, not half and half
    parts = Protocol(split="zero_shot").apply(index)
    assert set(index.fine[parts.train]) == {0, 1, 2}
    assert set(index.fine[parts.test]) == set(range(3, 9))


def test_validation_of_known_classes_is_stratified_by_image():
    index = make_index()
    parts = Protocol(val_fraction=0.2).apply(index)
    assert disjoint(parts.train, parts.val, parts.test)
    assert set(per_class(index, parts.train)) == {24}
    assert set(per_class(index, parts.val)) == {6}
    assert (parts.test == index.rows("test")).all()
    assert (np.diff(parts.train) > 0).all()
    assert (np.diff(parts.val) > 0).all()


def test_validation_of_zero_shot_holds_out_classes():
    index = make_index()
    parts = Protocol(split="zero_shot", val_fraction=0.2).apply(index)
    train, val, test = (set(index.fine[rows]) for rows in (parts.train, parts.val, parts.test))
    assert (len(train), len(val), len(test)) == (8, 2, 10)
    assert train | val == set(range(10))


def test_validation_of_unlabelled_images():
    index = make_index()
    index = replace(index, fine=np.full(len(index), -1), fine_names=(), split=np.full(len(index), "train"))
    parts = Protocol(val_fraction=0.1).apply(index)
    assert (len(parts.train), len(parts.val), len(parts.test)) == (720, 80, 0)
    assert parts.describe()["train"]["classes"] == 0


def test_test_images_without_a_label_say_nothing_of_the_classes_that_are_held_out():
    index = make_index()
    fine, test = index.fine.copy(), index.rows("test")
    fine[test] = -1
    parts = Protocol(val_fraction=0.2).apply(replace(index, fine=fine))
    assert set(per_class(index, parts.val)) == {6}  # images of each class, as with labels
    assert (parts.val == Protocol(val_fraction=0.2).apply(index).val).all()
    fine[test[:5]] = index.fine[test[:5]]
    parts = Protocol(val_fraction=0.2).apply(replace(index, fine=fine))
    assert set(per_class(index, parts.val)) == {6}


def test_images_without_a_label_are_no_class_to_hold_out():
    index = make_index(9)
    fine, first = index.fine.copy(), np.where(index.fine < 3, "train", "test")
    fine[::4] = -1  # in both parts
    for seed in range(4):
        parts = Protocol(val_fraction=0.34, seed=seed).apply(replace(index, fine=fine, split=first))
        assert len(set(fine[parts.val])) == 1
        assert -1 not in fine[parts.val]
    fine[index.fine < 3] = -1  # no training image has a label
    parts = Protocol(val_fraction=0.25).apply(replace(index, fine=fine, split=first))
    assert (len(parts.train), len(parts.val)) == (90, 30)


def test_label_fraction_is_stratified_and_nested():
    index = make_index(train=30)
    half, fifth = (set(Protocol(label_fraction=share).apply(index).train) for share in (0.5, 0.2))
    assert set(per_class(index, sorted(half))) == {15}
    assert set(per_class(index, sorted(fifth))) == {6}
    assert fifth < half


def test_stratified_keeps_one_of_each_class():
    labels = np.array([0, 0, 0, 1])
    rows = stratified(np.arange(4), labels, 0.1, np.random.default_rng(0).random(4))
    assert sorted(labels[rows]) == [0, 1]


def test_label_noise_is_symmetric():
    index = make_index(classes=5, train=20_000, test=10)
    parts = Protocol(label_noise=0.2).apply(index)
    noisy = parts.index.fine
    transition = np.zeros((5, 5))
    np.add.at(transition, (index.fine[parts.train], noisy[parts.train]), 1 / 20_000)
    expected = np.full((5, 5), 0.05) + 0.75 * np.eye(5)  # 0.8 to stay, 0.05 to each other class
    assert np.abs(transition - expected).max() < 0.01
    assert (parts.flipped == np.flatnonzero(noisy != index.fine)).all()
    assert set(parts.flipped) <= set(parts.train)  # evaluation stays clean
    assert parts.index.coarse is index.coarse


def test_label_noise_flips_to_training_classes_only():
    index = make_index()
    parts = Protocol(split="zero_shot", label_noise=0.4, val_fraction=0.1).apply(index)
    assert set(parts.index.fine[parts.train]) == set(index.fine[parts.train])
    assert (parts.index.fine[parts.val] == index.fine[parts.val]).all()
    assert not (parts.index.fine == index.fine).all()


def test_choices_do_not_disturb_each_other():
    """Noise changes no row, and a row's noise does not depend on which other rows train."""
    index = make_index()
    plain = Protocol(val_fraction=0.2).apply(index)
    noisy = Protocol(val_fraction=0.2, label_noise=0.3).apply(index)
    fewer = Protocol(val_fraction=0.2, label_noise=0.3, label_fraction=0.5).apply(index)
    assert (plain.train == noisy.train).all()
    assert (plain.val == fewer.val).all()
    assert (fewer.index.fine[fewer.train] == noisy.index.fine[fewer.train]).all()


def test_seed():
    index = make_index()
    first, again, other = (Protocol(val_fraction=0.2, label_noise=0.2, seed=seed).apply(index) for seed in (0, 0, 1))
    assert first.describe() == again.describe()
    assert rows_hash(first.val) != rows_hash(other.val)
    assert rows_hash(first.flipped) != rows_hash(other.flipped)


def test_same_rows_on_every_machine():
    """Hashes written down: another machine, process or version of numpy must find the same rows and labels."""
    parts = Protocol(split="official", val_fraction=0.2, label_fraction=0.5, label_noise=0.2, seed=3).apply(
        make_index()
    )
    seen = [rows_hash(rows) for rows in (parts.train, parts.val, parts.test, parts.flipped, parts.index.fine)]
    assert seen == ["becfa94f", "865e766d", "ee02941c", "753ea8b9", "ab85696c"]


def test_describe_is_plain_and_complete():
    parts = Protocol(split="zero_shot", label_noise=0.2, seed=7).apply(make_index())
    text = parts.describe()
    assert json.loads(json.dumps(text)) == text
    assert text["dataset"] == "test"
    assert (text["split"], text["seed"], text["label_noise"]) == ("zero_shot", 7, 0.2)
    assert text["train"] == {"images": 400, "classes": 10, "rows_hash": rows_hash(parts.train)}
    assert text["flipped"] == len(parts.flipped) > 0
    assert text["flipped_hash"] == rows_hash(parts.flipped)


# --- Stanford Online Products, MaskCon's lists


def sop_index() -> Index:
    """All images of the published lists, one class a product, plus one that is in no list."""
    lists = [read_sop_list(f"sop_{split}_{part}") for split in ("split1", "split2") for part in ("train", "test")]
    paths = sorted({path for products in lists for paths in products for path in paths})
    paths.append("toaster_final/1_0.JPG")
    names = [path.rsplit("_", 1)[0] for path in paths]
    fine_names = tuple(sorted(set(names)))
    label_of = {name: label for label, name in enumerate(fine_names)}
    return Index(
        name="sop",
        paths=np.array([f"/data/Stanford_Online_Products/{path}" for path in paths]),
        fine=np.array([label_of[name] for name in names]),
        fine_names=fine_names,
        split=np.full(len(paths), "train"),
    )


@pytest.mark.parametrize(
    ("split", "train", "test", "train_classes", "test_classes"),
    [("sop_split1", 25_368, 25_278, range(2517), range(2517, 5035)), ("sop_split2", 14_980, 2_996, *2 * [range(1498)])],
)
def test_sop_splits(split, train, test, train_classes, test_classes):
    index = sop_index()
    parts = Protocol(split=split).apply(index)
    assert (len(parts.train), len(parts.test)) == (train, test)
    assert disjoint(parts.train, parts.test)
    fine = parts.index.fine
    assert set(fine[parts.train]) == set(train_classes)
    assert set(fine[parts.test]) == set(test_classes)
    used = np.concatenate([parts.train, parts.test])
    assert [parts.index.fine_names[label] for label in fine[used]] == [index.fine_names[i] for i in index.fine[used]]
    assert (np.delete(fine, used) == -1).all()
    assert Protocol(split=split).num_fine(ALL["sop"]()) == len(parts.index.fine_names)


def test_sop_split_with_label_noise():
    parts = Protocol(split="sop_split2", label_noise=0.2).apply(sop_index())
    assert 0.18 < len(parts.flipped) / len(parts.train) < 0.22


def test_sop_validation_follows_the_test_part():
    split1 = Protocol(split="sop_split1", val_fraction=0.1).apply(sop_index())
    assert not set(split1.index.fine[split1.val]) & set(split1.index.fine[split1.train])
    split2 = Protocol(split="sop_split2", val_fraction=0.1).apply(sop_index())
    assert set(split2.index.fine[split2.val]) == set(split2.index.fine[split2.train])


# --- bad input


def test_sop_lists_need_sop():
    with pytest.raises(UserError, match="for the data set sop, not test"):
        Protocol(split="sop_split1").apply(make_index())


def test_sop_image_not_there():
    index = make_index(name="sop")
    with pytest.raises(UserError, match="25368 images of the published list are not in Ebay"):
        Protocol(split="sop_split1").apply(index)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"split": "zero-shot"}, "Did you mean 'zero_shot'"),
        ({"val_fraction": 1.0}, "val_fraction must be in"),
        ({"label_fraction": 0.0}, "label_fraction must be in"),
        ({"label_noise": -0.1}, "label_noise must be in"),
    ],
)
def test_bad_options(option, message):
    with pytest.raises(UserError, match=message):
        Protocol(**option)


@pytest.mark.parametrize("missing", [1, 800])
@pytest.mark.parametrize("option", [{"split": "zero_shot"}, {"label_noise": 0.1}])
def test_labels_that_do_not_exist(option, missing):
    index = make_index()
    index.fine[index.rows("train")[0] if missing == 1 else slice(None)] = -1
    rows = len(index) if "split" in option else len(index.rows("train"))
    with pytest.raises(UserError, match=rf"needs a single class label an image; {min(missing, rows)} of {rows} of "):
        Protocol(**option).apply(index)


def test_no_training_rows():
    """They can be tested. ``DataModule`` refuses to train on them."""
    index = replace(make_index(), split=np.full(800, "test"))
    for options in ({}, {"label_fraction": 0.5}, {"label_noise": 0.5}, {"val_fraction": 0.5}):
        parts = Protocol(**options).apply(index)
        assert (len(parts.train), len(parts.val), len(parts.test)) == (0, 0, 800)


def test_every_split_is_offered():
    assert set(SPLITS) == {"official", "zero_shot", "sop_split1", "sop_split2"}
