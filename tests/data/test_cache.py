"""The cache of decoded images: same pixels, never half-built, and it notices a changed data set."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fgssl.data import cache as module
from fgssl.data.cache import open_cache
from fgssl.data.images import read_image
from fgssl.data.index import Index
from fgssl.errors import UserError
from tests.trees import write_image

SIZES = [(40, 32), (32, 50), (20, 20), (64, 48)]


@pytest.fixture
def index(tmp_path) -> Index:
    paths = [tmp_path / "images" / f"{row}.png" for row in range(len(SIZES))]
    for seed, (path, size) in enumerate(zip(paths, SIZES, strict=True)):
        write_image(path, seed, size)
    fine = np.arange(len(paths))
    return Index("tiny", np.array([str(p) for p in paths]), fine, tuple("abcd"), np.full(len(paths), "train"))


def complete(root) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir())


@pytest.mark.parametrize("workers", [0, 2])
def test_images_are_shrunk_to_the_shorter_side(index, tmp_path, workers):
    cache = open_cache(index, tmp_path / "cache", side=24, workers=workers)
    for row, (width, height) in enumerate([(30, 24), (24, 38), (20, 20), (32, 24)]):
        wanted = np.asarray(read_image(index.paths[row]).resize((width, height), Image.Resampling.BILINEAR))
        assert np.array_equal(cache.image(row).permute(1, 2, 0).numpy(), wanted)


def test_cache_is_built_once_and_mapped(index, tmp_path, monkeypatch):
    open_cache(index, tmp_path / "cache", workers=0)
    monkeypatch.setattr(module, "_build", lambda *_: pytest.fail("built again"))
    cache = open_cache(index, tmp_path / "cache", workers=0)
    copy = pickle.loads(pickle.dumps(cache))
    assert torch.equal(copy.image(3), cache.image(3))
    assert len(pickle.dumps(cache)) < 500  # a path, not the pixels


@pytest.mark.parametrize("change", ["time", "size", "path", "side", "removed"])
def test_a_changed_data_set_gets_another_cache(index, tmp_path, change):
    root = tmp_path / "cache"
    open_cache(index, root, workers=0)
    side = module.SIDE
    if change == "time":
        os.utime(index.paths[1], ns=(1, 1))
    elif change == "size":
        write_image(Path(index.paths[1]), 9, (44, 44))
    elif change == "path":
        index = replace(index, paths=index.paths[::-1].copy())
    elif change == "side":
        side = 16
    else:
        os.remove(index.paths[1])
    cache = open_cache(index, root, side=side, workers=0)
    assert len(complete(root)) == 2
    if change == "size":
        assert cache.image(1).shape == (3, 44, 44)


def test_an_interrupted_build_is_discarded(index, tmp_path, monkeypatch):
    root = tmp_path / "cache"
    read, seen = module._Shrunk.__getitem__, []

    def interrupted(self, row):
        seen.append(row)
        if row == 2:
            raise KeyboardInterrupt
        return read(self, row)

    monkeypatch.setattr(module._Shrunk, "__getitem__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_cache(index, root, workers=0)
    assert seen == [0, 1, 2]
    assert [name.endswith(".unfinished") for name in complete(root)] == [True]

    monkeypatch.setattr(module._Shrunk, "__getitem__", read)
    cache = open_cache(index, root, workers=0)
    assert [name.endswith(".unfinished") for name in complete(root)] == [False]
    assert [cache.image(row).shape[2:0:-1] for row in range(4)] == SIZES


def test_an_unreadable_image_has_no_pixels(index, tmp_path):
    with open(index.paths[1], "r+b") as file:
        file.truncate(60)
    cache = open_cache(index, tmp_path / "cache", workers=0)
    assert cache.image(1) is None
    assert np.array_equal(cache.image(2).permute(1, 2, 0), np.asarray(read_image(index.paths[2])))


def test_a_folder_that_cannot_be_written_is_named(index, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache: .*/file cannot be used .*Name another folder"):
        open_cache(index, tmp_path / "file", workers=0)
