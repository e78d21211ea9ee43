"""The parsers on real files: run where FGSSL_DATA points to them."""

import os
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest

from fgssl.data.datasets import ALL
from fgssl.data.datasets.cars import coarse_labels, read_annotations, read_class_names
from fgssl.data.datasets.cub import family
from fgssl.data.images import read_image
from fgssl.errors import UserError

DATA = Path(os.environ.get("FGSSL_DATA", "nowhere"))


def needs(path: str):
    return pytest.mark.skipif(not (DATA / path).exists(), reason=f"no {path} under FGSSL_DATA")


@needs("CUB_200_2011")
def test_cub_photographs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a copy with fewer species is fine here
        index = ALL["cub"](partial=True).index()
    assert len(index) == len(index.rows("train")) + len(index.rows("test"))
    for row in range(0, len(index), 500):
        folder = Path(index.paths[row]).parent.name
        assert index.fine_names[index.fine[row]] == folder
        assert index.coarse_names[index.coarse[row]] == family(folder)
        assert read_image(index.paths[row]).mode == "RGB"


@pytest.mark.parametrize("name", ["voc2007", "indoor67", "flowers", "ade20k", "aircraft", "dtd", "sop", "pets"])
def test_lists_give_the_published_counts(name):
    """The photographs may be empty files."""
    if not (DATA / ALL[name].folder).exists():
        pytest.skip(f"no {ALL[name].folder} under FGSSL_DATA")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # differing counts are refused anyway, and nothing else is doubtful
        index = ALL[name]().index()
    published = ALL[name].published
    assert len(index) == sum(published.splits.values())
    assert len(index.fine_names) == published.fine


@needs("stanford_cars/devkit")
def test_cars_devkit():
    devkit = DATA / "stanford_cars/devkit"
    names = read_class_names(devkit / "cars_meta.mat")
    train = read_annotations(devkit / "cars_train_annos.mat")
    assert len(names) == 196
    assert np.bincount(coarse_labels(names)).tolist() == [18, 50, 36, 30, 29, 14, 6, 13]
    assert len(train.files) == len(train.labels) == 8144
    assert set(train.labels) == set(range(196))
    assert train.boxes.shape == (8144, 4)
    assert (train.boxes[:, 2:] > train.boxes[:, :2]).all()
    with pytest.raises(UserError, match="has no labels"):
        read_annotations(devkit / "cars_test_annos.mat")


@needs("stanford_cars/devkit")
@pytest.mark.skipif((DATA / "stanford_cars/cars_train").exists(), reason="the images are there")
def test_cars_without_images_says_what_is_missing():
    with pytest.raises(UserError, match="not found under .*: cars_train, cars_test, cars_test_annos_withlabels.mat"):
        ALL["cars"]().index()


@needs("cifar10-jpeg.tar")
def test_cifartoy_from_the_extracted_images(tmp_path):
    with tarfile.open(DATA / "cifar10-jpeg.tar") as archive:
        few = [member for member in archive if member.name.endswith(("/0000.jpg", "/0001.jpg"))]
        archive.extractall(tmp_path, members=few, filter="data")
    with pytest.warns(UserWarning, match="16 train images, published 40,000"):
        index = ALL["cifartoy"](str(tmp_path), variant="bad", partial=True).index()
    assert {index.fine_names[label] for label in index.fine[index.coarse == 0]} == {
        "airplane",
        "automobile",
        "bird",
        "cat",
    }
    assert read_image(index.paths[0]).size == (32, 32)
