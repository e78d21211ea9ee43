"""The label files are the published ones: counts, and for the rewritten SOP lists the published files byte for byte."""

import hashlib
import json

import numpy as np
import pytest

from fgssl.data.hierarchies import label_map, read_json, read_text
from fgssl.data.protocols import SOP_CLASSES, read_sop_list

# sha256 of MaskCon's files coarse_labels/<split>/<part>_<kind>.json at commit 3d18a4c
PUBLISHED = {
    ("sop_split1", "train", "path"): "b04a81435341c03cc9a59c57f696d5ac161ec81350544789a0873a86b1b4c7a3",
    ("sop_split1", "train", "fine_label"): "3cb91be80ba3d9d98fc3e24abec2fd2f1b284538a8a4a0f3a7491035e82fda28",
    ("sop_split1", "train", "coarse_label"): "dbf01f41ad188a6f4066c9f214d75df696cc3d81255e619fa09de23288f3bded",
    ("sop_split1", "test", "path"): "e72af664c7d137c222ff14676051fc4c503e2cc4b5efd17474f9a08092d30ad4",
    ("sop_split1", "test", "fine_label"): "a545f3ff33a80da8f3e5cdfe64d9c6ad3a4b41e133ebbd187af26a325f69f930",
    ("sop_split1", "test", "coarse_label"): "aa3cd7f016ad3aa71025a025aaf3d0704ced31338076b141c9073f2d0964d2a7",
    ("sop_split2", "train", "path"): "7aa37525aaff556050cb69f8ef5fbbd4c8fde66a190a9b4a8bfb394a57560eae",
    ("sop_split2", "train", "fine_label"): "8e840fd9b21721c48825acb4007482fb9403c882243dfa1bd663b29711c471a5",
    ("sop_split2", "train", "coarse_label"): "157b28f7409a56087fec0c31ba6c86a6e871f95db1ee6a89f326f9b5e78d844e",
    ("sop_split2", "test", "path"): "c61d44275930ef82248c7fd0a80a16009ea1078cd1f3310ce4806eae23955dab",
    ("sop_split2", "test", "fine_label"): "74b4d5201b0badd74571a9213eb1b163a0904021664348d87b30d5485aafa4dc",
    ("sop_split2", "test", "coarse_label"): "28da985eb3bbf9cf50d69fc18ff665156d7bbb812a2cc0649b74237c9f3db8cc",
}
SUPER_CLASSES = (
    "bicycle", "cabinet", "chair", "coffee_maker", "fan", "kettle",
    "lamp", "mug", "sofa", "stapler", "table", "toaster",
)  # fmt: skip


@pytest.mark.parametrize(("split", "part", "kind"), PUBLISHED, ids="-".join)
def test_sop_lists_are_the_published_files(split, part, kind):
    products = read_sop_list(f"{split}_{part}")
    column = {
        "path": [path for paths in products for path in paths],
        "fine_label": [label for label, paths in enumerate(products) for _ in paths],
        "coarse_label": [
            SUPER_CLASSES.index(path.split("/")[0].removesuffix("_final")) for paths in products for path in paths
        ],
    }[kind]
    content = json.dumps(column).encode()
    assert hashlib.sha256(content).hexdigest() == PUBLISHED[split, part, kind]


@pytest.mark.parametrize(
    ("name", "products", "images"),
    [
        ("sop_split1_train", 2517, 25_368),
        ("sop_split1_test", 2518, 25_278),
        ("sop_split2_train", 1498, 14_980),
        ("sop_split2_test", 1498, 2_996),
    ],
)
def test_sop_counts(name, products, images):
    listed = read_sop_list(name)
    assert len(listed) == products
    assert len({path for paths in listed for path in paths}) == sum(map(len, listed)) == images


def test_sop_class_counts():
    split1 = [len(read_sop_list(f"sop_split1_{part}")) for part in ("train", "test")]
    assert {"sop_split1": sum(split1), "sop_split2": len(read_sop_list("sop_split2_train"))} == SOP_CLASSES


@pytest.mark.parametrize(
    ("file", "models"),
    [
        ("cars196_fine_to_coarse.json", [18, 50, 36, 30, 29, 14, 6, 13]),
        ("cifar100_fine_to_coarse.json", [5] * 20),
        ("imagenet_fine_to_coarse.json", [61, 123, 59, 95, 60, 130, 70, 53, 105, 71, 93, 80]),
    ],
)
def test_coarse_class_sizes(file, models):
    assert np.bincount(label_map(file)).tolist() == models


def test_cars_names_match_the_map():
    names = read_json("cars196_names.json")
    assert (len(names["fine_names"]), len(names["coarse_names"])) == (196, 8)
    assert len(label_map("cars196_fine_to_coarse.json")) == 196


def test_imagenet_orders():
    wnids = read_text("imagenet_wnids.txt").split()
    assert len(wnids) == 1000
    assert wnids == sorted(wnids)
    assert sorted(label_map("imagenet32_to_fine.json")) == list(range(1000))
