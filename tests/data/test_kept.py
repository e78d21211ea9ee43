"""Annotations that are kept on the disk: read once, the same arrays, read anew where the files change."""

import dataclasses
import mmap
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fgssl.data.datasets import ALL, imagenet, kept, objects
from fgssl.data.datasets.coco_instances import COCOInstances
from fgssl.data.datasets.object_dataset import arrays_of
from fgssl.data.datasets.objects import Objects
from fgssl.data.detection import training_target
from fgssl.errors import UserError
from tests import trees

pytestmark = pytest.mark.filterwarnings("ignore:coco_instances", "ignore:uavdt")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder of what is kept; files of any size are."""
    monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "LARGE", 1)
    return tmp_path / "cache"


def dataset(root, name: str = "coco_instances"):
    return ALL[name](str(root), partial=True)


def make(tmp_path, name: str = "coco_instances"):
    return getattr(trees, f"make_{name}")(tmp_path / "data")


def refuse(self):
    pytest.fail("the annotations are parsed again")


def kept_folders(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


@pytest.mark.parametrize("name", ["coco_instances", "uavdt"])
def test_a_second_process_maps_what_the_first_has_parsed(name, tmp_path, folder, monkeypatch):
    root, cls = make(tmp_path, name), ALL[name]
    parsed = dataset(root, name)._parse()
    first = dataset(root, name).index()
    monkeypatch.setattr(cls, "_parse", refuse)
    second = dataset(root, name).index()
    for index in (first, second):
        for field in ("paths", "fine", "split", "targets"):
            np.testing.assert_array_equal(getattr(index, field), getattr(parsed, field))
        assert (index.name, index.fine_names) == (parsed.name, parsed.fine_names)
        for field in dataclasses.fields(Objects):
            ours, theirs = getattr(index.objects, field.name), getattr(parsed.objects, field.name)
            assert (ours is None) == (theirs is None)
            if theirs is not None:
                np.testing.assert_array_equal(ours, theirs)
                assert ours.dtype == theirs.dtype
                assert isinstance(ours.base, (np.memmap, mmap.mmap))
                assert not ours.flags.writeable
    masks = name == "coco_instances"
    for row in range(len(second)):
        target = training_target(second, row, masks=masks)
        assert all(value.equal(training_target(parsed, row, masks=masks)[key]) for key, value in target.items())
    assert len(kept_folders(folder)) == 1


def test_paths_are_those_of_the_root_as_it_is_given(tmp_path, monkeypatch):
    """A relative root leads elsewhere from another working directory."""
    root = make(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert dataset("data").index().paths[0].startswith("data/")
    assert dataset(root).index().paths[0].startswith(str(root))


@pytest.mark.parametrize("change", ["content", "time", "removed"])
def test_changed_files_are_read_anew(change, tmp_path, folder):
    root = make(tmp_path)
    path = root / "annotations/instances_val2017.json"
    before = dataset(root).index()
    if change == "content":
        path.write_text(path.read_text().replace('"red"', '"pink"'))
        train = root / "annotations/instances_train2017.json"
        train.write_text(train.read_text().replace('"red"', '"pink"'))
        assert dataset(root).index().fine_names == ("pink", "blue")
        assert before.fine_names == ("red", "blue")
    elif change == "time":
        os.utime(path, ns=(1, 1))
        dataset(root).index()
    else:
        path.unlink()
        with pytest.raises(UserError, match="not found"):
            dataset(root).index()
    assert len(kept_folders(folder)) == (1 if change == "removed" else 2)


@pytest.mark.filterwarnings("ignore:imagenet")
@pytest.mark.parametrize("change", ["gone", "in its place", "image", None])
def test_boxes_of_imagenet_are_read_again_where_a_file_changed(change, tmp_path, folder, monkeypatch):
    root = trees.make_imagenet(tmp_path / "imagenet")
    read_files, of_file = [], imagenet.largest_box
    monkeypatch.setattr(imagenet, "largest_box", lambda path: read_files.append(path.name) or of_file(path))

    def boxes() -> np.ndarray:
        read_files.clear()
        return ALL["imagenet"](str(root), boxes=True, partial=True).index().boxes

    first = boxes()
    count = len(read_files)
    assert count == 6
    annotation = sorted((root / "Annotations" / "n01440764").iterdir())[0]
    if change == "gone":
        annotation.unlink()
        assert np.isnan(boxes()).sum() == np.isnan(first).sum() + 4
        count -= 1
    elif change == "in its place":
        annotation.write_text(annotation.read_text().replace("<xmin>4</xmin>", "<xmin>3</xmin>"))
        assert boxes()[0].tolist() == [3, 2, 24, 12]
    elif change == "image":
        trees.write_image(root / "train" / "n01440764" / "a_new_one.JPEG")
        assert len(boxes()) == len(first) + 1
    else:
        np.testing.assert_array_equal(boxes(), first)
        count = 0
    assert len(read_files) == count
    assert len(kept_folders(folder)) == (2 if change else 1)
    assert not list(root.glob("boxes*"))


def test_small_files_are_not_kept(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(kept, "LARGE", 2**24)
    dataset(make(tmp_path)).index()
    assert not folder.exists()


def test_what_a_killed_process_left_is_replaced(tmp_path, folder, monkeypatch):
    root = make(tmp_path)

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    index = dataset(root)._parse()
    with monkeypatch.context() as patch:
        patch.setattr(kept.Path, "rename", die)  # the last step
        with pytest.raises(Killed):
            kept.write(arrays_of(index), folder_of(root, folder))
    assert [name for name in kept_folders(folder) if name.endswith(".unfinished")]
    assert len(dataset(root).index()) == 9
    assert kept_folders(folder) == [folder_of(root, folder).name]


def folder_of(root, folder):
    folder.mkdir(exist_ok=True)
    data = dataset(root)
    code = (COCOInstances.__module__, objects.__name__)
    return folder / f"annotations-{kept.fingerprint(data.annotation_files(), code, [str(root)])[0]}"


def test_a_mistake_in_the_files_is_said_and_nothing_kept(tmp_path, folder):
    root = make(tmp_path)
    (root / "annotations/instances_val2017.json").write_text("{")
    with pytest.raises(UserError, match=r"val2017.json is not JSON"):
        dataset(root).index()
    assert kept_folders(folder) == []


def test_a_folder_that_cannot_be_written_is_said_and_the_files_are_parsed(tmp_path, monkeypatch):
    root = make(tmp_path)
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / "a file"))
    with pytest.warns(UserWarning, match="annotations cannot be kept in .*a file.*Set FGSSL_CACHE"):
        assert len(dataset(root).index()) == 9


def test_a_full_disk_leaves_nothing_half_written(tmp_path, folder, monkeypatch):
    root = make(tmp_path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept.np, "save", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        assert len(dataset(root).index()) == 9
    assert kept_folders(folder) == []


def test_readers_that_start_together_parse_the_files_once(tmp_path, monkeypatch):
    """Threads, each with a file lock of its own, as the ranks of a machine have."""
    root, parse, parsed, together = make(tmp_path), COCOInstances._parse, [], threading.Barrier(3)

    def counted(self):
        parsed.append(self)
        return parse(self)

    def read(_):
        data = dataset(root)
        together.wait(60)
        return len(data.index())

    monkeypatch.setattr(COCOInstances, "_parse", counted)
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(read, range(3))) == [9, 9, 9]
    assert len(parsed) == 1


def test_the_folder_is_the_users_unless_it_is_named(monkeypatch, tmp_path):
    assert kept.caches() == tmp_path / "cache"
    monkeypatch.delenv("FGSSL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "somewhere"))
    assert kept.caches() == tmp_path / "somewhere" / "fgssl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kept.caches() == tmp_path / ".cache" / "fgssl"
