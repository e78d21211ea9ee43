"""Every option of data modules, protocols, views, samplers and data sets changes what its help says, and nothing else.

``TABLE`` has a row for each class and a line for each option: another value and the parts of what is seen that it
changes, or the test that shows its effect. A new option without a line fails, and so does a new class without a row.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fgssl.data.annotated import AnnotatedData
from fgssl.data.augment import IMAGENET_MEAN, IMAGENET_STD, Photometric, augment
from fgssl.data.datamodule import DataModule
from fgssl.data.datasets import ALL
from fgssl.data.datasets.base import DataSet
from fgssl.data.datasets.digits import Digits
from fgssl.data.datasets.items import Items
from fgssl.data.datasets.masks import MaskDataSet
from fgssl.data.datasets.object_dataset import ObjectDataSet
from fgssl.data.detection import DetectionData
from fgssl.data.protocols import Protocol
from fgssl.data.samplers import ClassBalanced, EvalShard, Shuffled, TrainSampler
from fgssl.data.segmentation import SegmentationData
from fgssl.data.views import ContrastiveCrop, Crop, EvalView, MultiCrop, NestedCrops, PairViews, SingleView, Views
from fgssl.methods.registry import subclasses
from tests import trees
from tests.options import Changes, Elsewhere, Row, cases, changed, check_named_test, elsewheres, options_of, plain

pytestmark = pytest.mark.filterwarnings("ignore:.*published")

PAIRS = np.array([[0, 12], [1, 7], [2, 20], [3, 5]])  # positions and draws of four samples


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The trees of the data sets that are read below."""
    root = tmp_path_factory.mktemp("trees")
    for name in (
        "cub",
        "cars",
        "aircraft",
        "imagenet",
        "flowers",
        "dtd",
        "coco_instances",
        "voc0712",
        "ade20k",
        "cityscapes",
    ):
        getattr(trees, f"make_{name}")(root / name)
    trees.make_cifar10(root / "cifartoy")
    trees.make_folder(root / "folder", parts=("",))
    kinds = {"cat": "felid", "dog": "canid", "horse": "equid"}
    (root / "kinds.json").write_text(json.dumps(kinds))
    return root


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch) -> None:
    """Each test writes its caches into a folder of its own."""
    monkeypatch.chdir(tmp_path)


# ---- what is seen ---------------------------------------------------------------------------------------------------

Seen = dict[str, Any]
ROWS = ("train", "val", "test")


def of_protocol(root: Path, dataset: str = "digits", **arguments: Any) -> Seen:
    """Rows of each part, and the labels of all."""
    index = Digits().index() if dataset == "digits" else ALL[dataset](str(root / dataset), partial=True).index()
    parts = Protocol(**arguments).apply(index)
    return {name: getattr(parts, name) for name in ROWS} | {"labels": parts.index.fine}


def of_data(root: Path, kind: type[DataModule], dataset: str, **arguments: Any) -> Seen:
    """Rows, their order in batches, four samples of training and evaluation, the loader and the files written."""
    data = kind(ALL[dataset](str(root / dataset), partial=True), **arguments)
    data.setup("fit")
    train, test = data.train_dataloader(), data.test_dataloader()
    samples = []
    for loader, draws in ((train, PAIRS[:, 1]), (test, [-1] * len(PAIRS))):
        batch = loader.dataset[np.stack([PAIRS[:, 0], draws], axis=1)]
        samples.append(plain_batch(data.on_after_batch_transfer(batch, 0)))
    orders = [[loader.dataset.rows[pairs[:, 0]] for pairs in loader.sampler] for loader in (train, test)]
    return {
        **{name: getattr(data.parts, name) for name in ROWS},
        "classes": data.parts.index.fine_names,
        "order": orders[0],
        "evaluation order": orders[1],
        "sample": samples[0],
        "evaluated sample": samples[1],
        "loader": (train.loader.num_workers, train.loader.prefetch_factor),
        "files": sorted(str(path) for path in Path.cwd().rglob("*")),
    }


def plain_batch(batch: Any) -> list:
    """Pixels, and annotations where there are any."""
    return list(batch.views) if hasattr(batch, "views") else [batch.images, batch[1]]


def of_views(root: Path, kind: type[Views], **arguments: Any) -> Seen:
    """Number, sizes, places, pixels and normalised colours of the views of eight samples of one coloured image."""
    where = arguments.pop("object", None)
    views: Any = kind(**arguments)
    shown = views.around(where) if where else views
    noise_13HW = torch.randint(256, (1, 3, 9, 13), generator=torch.Generator().manual_seed(0)).byte()
    image_3HW = torch.nn.functional.interpolate(noise_13HW, (90, 128), mode="bicubic", antialias=True)[0]
    draws = np.arange(8)
    places, pixels = [], []
    for numbers in shown.numbers(3, draws):
        boxes = shown.boxes((128, 90), numbers)
        places.append(boxes)
        pixels.append(shown.cut(image_3HW, boxes, numbers))
    batch = [torch.stack(view) for view in zip(*pixels, strict=True)]
    streams = range(1, 2 * len(batch), 2)
    changes = [crop.photometric for crop in views.crops]
    normalised = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return {
        "count": len(views.crops),
        "sizes": {crop.size for crop in views.crops},
        "places": places,
        "pixels": batch,
        "colours": augment(batch, changes, seed=3, draws=draws, streams=streams, **normalised),
        "epochs of new boxes": [epoch for epoch in range(90) if kind is ContrastiveCrop and views.due(epoch)],
    }


def of_crop(root: Path, **arguments: Any) -> Seen:
    return of_views(root, Views, crops=[Crop(48), Crop(**({"size": 32} | arguments))])


def of_photometric(root: Path, **arguments: Any) -> Seen:
    return of_crop(root, photometric=Photometric(**arguments))


def of_sampler(root: Path, kind: type, **arguments: Any) -> Seen:
    """Positions and serial numbers of the batches, and the number of batches that is said."""
    sampler = kind(**arguments)
    batches = list(sampler)
    return {
        "positions": [batch[:, 0] for batch in batches],
        "draws": [batch[:, 1] for batch in batches],
        "length": len(sampler),
    }


def of_data_set(root: Path, kind: type, **arguments: Any) -> Seen:
    """The columns of the index."""
    arguments = {name: str(root / value) if name == "coarse_map" else value for name, value in arguments.items()}
    options = {"partial": True} if "partial" in options_of(kind) else {}
    index = plain(kind(str(root / kind.name), **options, **arguments).index())
    return {name: index[name] for name in ("paths", "fine", "fine_names", "split", "coarse", "coarse_names", "boxes")}


# ---- the table ------------------------------------------------------------------------------------------------------

SAMPLES = {"sample", "evaluated sample"}
LAYOUTS, OWN_IMAGES = "data/test_datasets_layouts.py", "data/test_own_images.py"
BOXES = "callbacks/test_object_boxes.py"
HUGGING_FACE = Elsewhere(OWN_IMAGES, "test_options_of_hugging_face_choose_splits_and_columns")

LOADING: Row = {
    "protocol": Changes(Protocol(label_fraction=0.4), {"train", "order", "sample"}),
    "batch_size": Changes(3, {"order", "evaluation order"}),
    "eval_batch_size": Changes(3, {"evaluation order"}),
    "num_workers": [Changes(1, {"loader"}), Changes("auto", {"loader"})],
    "prefetch": Changes(3, {"loader"}, {"num_workers": 1}),
    "on_error": Elsewhere("data/test_datamodule.py", "test_a_skipped_image_is_replaced_by_the_next_row_and_reported"),
    "mean": Changes((0.4, 0.5, 0.6), SAMPLES),
    "std": Changes((0.3, 0.2, 0.25), SAMPLES),
    "seed": Changes(1, {"order", "sample"}),
}
OTHER_DATA = {"train", "test", "classes", "order", "evaluation order", *SAMPLES}
SAMPLING: Row = {
    "batch_size": Changes(6, {"positions", "draws", "length"}),
    "seed": Changes(4, {"positions"}),
    "epoch": Changes(0, {"positions", "draws"}),
    "start_batch": Changes(1, {"positions", "draws"}),  # the length stays that of a whole epoch
    "rank": Changes(1, {"positions", "draws"}, {"world": 2}),
    "world": Changes(2, {"positions", "draws"}),
}
RECIPE: Row = {
    "recipe": Changes("simclr", {"places", "pixels", "colours"}),
    "size": Changes(24, {"sizes", "pixels", "colours"}),
}
CENTRE = {"object": (0.1, 0.2, 0.4, 0.6)}
PICTURES = {"pixels", "colours"}
PLACES = {"places", *PICTURES}
JITTER = {"jitter": 1.0}

# class -> what looks at it, arguments of the base, lines
TABLE: dict[type, tuple[Any, dict[str, Any], Row]] = {
    Protocol: (
        of_protocol, {},
        {
            "split": [
                Changes("zero_shot", {"train", "test"}),
                Elsewhere("data/test_protocols.py", "test_sop_splits"),
            ],
            "val_fraction": Changes(0.3, {"train", "val"}),
            "label_fraction": Changes(0.5, {"train"}),
            "label_noise": Changes(0.2, {"labels"}),
            "seed": [
                Changes(1, {"train", "val"}, {"val_fraction": 0.3}),
                Changes(1, {"train", "val"}, {"val_fraction": 0.3, "split": "zero_shot"}),
                Changes(1, {"train"}, {"label_fraction": 0.5}),
                Changes(1, {"labels"}, {"label_noise": 0.2}),
            ],
        },
    ),
    DataModule: (
        of_data,
        {"kind": DataModule, "dataset": "cub", "views": PairViews("cars", 24), "batch_size": 4, "num_workers": 0},
        LOADING | {
            "dataset": Changes("digits", OTHER_DATA),
            "views": [
                Changes(PairViews("byol", 24), {"sample"}),
                Changes(SingleView(20), {"sample", "evaluated sample"}),  # eval_size is that of the first view
            ],
            "eval_size": Changes(20, {"evaluated sample"}),
            "eval_resize": Changes(28, {"evaluated sample"}),
            "eval_resample": Changes("bicubic", {"evaluated sample"}),
            "images_per_class": Changes(2, {"order"}),
            "replacement": Changes(True, {"order"}, {"images_per_class": 2}),
            "cache": Changes("kept", {"files"}),
            "cache_side": Changes(24, {"files", "sample"}, {"cache": "kept"}),
        },
    ),
    DetectionData: (
        of_data, {"kind": DetectionData, "dataset": "coco_instances", "batch_size": 2, "num_workers": 0},
        LOADING | {
            "dataset": Changes("voc0712", OTHER_DATA),
            "flip": Changes(1.0, {"sample"}),
            "jitter": Changes(64, {"sample"}),
            "jitter_scale": Changes((1.0, 1.5), {"sample"}, {"jitter": 64}),
            "crop": Changes(True, {"sample"}),
        },
    ),
    SegmentationData: (
        of_data, {"kind": SegmentationData, "dataset": "ade20k", "size": 32, "batch_size": 2, "num_workers": 0},
        LOADING | {
            "dataset": Changes("cityscapes", {"classes", *SAMPLES}),  # as many images
            "flip": Changes(1.0, {"sample"}),
            "size": Changes((24, 40), SAMPLES),  # short_side is the shorter of both
            "short_side": Changes(40, SAMPLES),
            "scale": Changes((1.0, 1.2), {"sample"}),
            "largest_class": Changes(0.4, {"sample"}),
            "distort": Changes(True, {"sample"}),
        },
    ),
    Views: (of_views, {"kind": Views, "crops": [Crop(32)]}, {"crops": Changes([Crop(32)] * 2, {"count", *PLACES})}),
    PairViews: (of_views, {"kind": PairViews, "size": 32}, RECIPE),
    ContrastiveCrop: (
        of_views, {"kind": ContrastiveCrop, "size": 32, **CENTRE},
        RECIPE | {
            "alpha": Changes(1.0, PLACES),
            "threshold": Elsewhere(BOXES, "test_threshold_of_the_views_is_that_of_the_boxes"),
            "warmup": Changes(5, {"epochs of new boxes"}),
            "every": Changes(5, {"epochs of new boxes"}),
        },
    ),
    SingleView: (
        of_views, {"kind": SingleView, "size": 32},
        {
            "size": Changes(24, {"sizes", *PICTURES}),
            "scale": Changes((0.5, 1.0), PLACES),
            "resample": Changes("bicubic", PICTURES),
        },
    ),
    EvalView: (
        of_views, {"kind": EvalView, "size": 32},
        {
            "size": Changes(24, {"sizes", *PICTURES}),
            "resize": Changes(40, PLACES),
            "resample": Changes("bicubic", PICTURES),
        },
    ),
    MultiCrop: (
        of_views, {"kind": MultiCrop, "size": 32, "local_size": 16, "local_crops": 2},
        {
            "size": Changes(24, {"sizes", *PICTURES}),
            "scale": Changes((0.7, 1.0), PLACES),
            "local_size": Changes(12, {"sizes", *PICTURES}),
            "local_scale": Changes((0.2, 0.3), PLACES),
            "local_crops": Changes(3, {"count", *PLACES}),
            "colours": Changes("swav", PICTURES),
        },
    ),
    NestedCrops: (
        of_views, {"kind": NestedCrops, "size": 32, "local_size": 16},
        {
            "size": Changes(24, {"sizes", *PLACES}),
            "teacher_scale": Changes((0.3, 0.5), PLACES),
            "student_scale": Changes((0.3, 0.4), PLACES),
            "local_size": Changes(12, {"sizes", *PICTURES}),
            "local_scale": Changes((0.2, 0.3), PLACES),
            "local_crops": Changes(1, {"count", *PLACES}),
            "teacher_views": Changes(2, {"count", *PLACES}),
            "recipe": Changes("code", {"colours"}),
        },
    ),
    Crop: (
        of_crop, {},
        {
            "size": Changes(24, {"sizes", *PICTURES}),
            "scale": Changes((0.7, 1.0), PLACES),
            "flip": Changes(1.0, PICTURES),
            "inside": Changes(0, PLACES),
            "resample": Changes("bicubic", PICTURES),
            "auto_augment": Changes(True, PICTURES),
            "photometric": Changes(Photometric(grey=1.0), {"colours"}),
        },
    ),
    Photometric: (
        of_photometric, {},
        {name: Changes(1.0, {"colours"}) for name in ("perspective", "jitter", "grey", "blur", "solarise")}
        | {name: Changes(0.9, {"colours"}, JITTER) for name in ("brightness", "contrast", "saturation")}
        | {"hue": Changes(0.4, {"colours"}, JITTER), "other_half": Changes((1.0, 0.0), {"colours"})},
    ),
    Shuffled: (
        of_sampler, {"kind": Shuffled, "images": 24, "batch_size": 4, "seed": 3, "epoch": 2},
        SAMPLING | {"images": Changes(30, {"positions", "draws", "length"})},
    ),
    ClassBalanced: (
        of_sampler,
        {"kind": ClassBalanced, "labels": np.arange(24) % 8, "batch_size": 4, "seed": 3, "epoch": 2},
        SAMPLING | {
            "labels": Changes(np.arange(24) // 3, {"positions"}),
            "images_per_class": Changes(1, {"positions"}),
            "replacement": Changes(True, {"positions"}),
        },
    ),
    EvalShard: (
        of_sampler, {"kind": EvalShard, "images": 24, "batch_size": 4},
        {
            "images": Changes(21, {"positions", "draws"}),
            "batch_size": Changes(6, {"positions", "draws", "length"}),
            "rank": Changes(1, {"positions"}, {"world": 2}),
            "world": Changes(2, {"positions", "draws", "length"}),
        },
    ),
}  # fmt: skip

# data sets with options of their own
DATA_SETS: dict[str, Row] = {
    "aircraft": {
        "coarse": Changes("manufacturer", {"coarse", "coarse_names"}), "trainval": Changes(False, {"split"}),
    },
    "imagenet": {"boxes": Changes(True, {"boxes"})},
    "cifartoy": {"variant": Elsewhere(LAYOUTS, "test_cifartoy_groups_are_the_published_ones")},
    "flowers": {"trainval": Changes(False, {"split"})},
    "dtd": {
        "partition": Elsewhere(LAYOUTS, "test_dtd_partition"), "trainval": Changes(False, {"split"}),
    },
    "folder": {
        "labels": Changes(False, {"fine", "fine_names"}),
        "coarse_map": Changes("kinds.json", {"coarse", "coarse_names"}),
        "test_fraction": Changes(0.4, {"split"}),
    },
    "huggingface": dict.fromkeys(("path", "subset", "train", "test", "val", "image", "label"), HUGGING_FACE),
}  # fmt: skip

WHERE: Row = {
    "root": Elsewhere("data/test_datasets_bad_input.py", "test_missing_root_says_what_where_and_whence"),
    "partial": Elsewhere("data/test_datasets_bad_input.py", "test_counts_must_be_the_published_ones"),
}


def row_of(kind: type) -> Row:
    if kind in TABLE:
        return TABLE[kind][2]
    return {option: line for option, line in WHERE.items() if option in options_of(kind)} | DATA_SETS.get(kind.name, {})


def seen(root: Path, kind: type, **arguments: Any) -> Seen:
    if kind not in TABLE:
        return of_data_set(root, kind, **arguments)
    look, base, _ = TABLE[kind]
    return look(root, **(base | arguments))


KINDS = [*TABLE, *ALL.values()]
ROWS_OF = {kind: row_of(kind) for kind in KINDS}


def ours(*bases: type) -> set[type]:
    return {cls for base in bases for cls in (base, *subclasses(base)) if cls.__module__.startswith("fgssl.")}


def test_every_class_has_a_row():
    base_classes = {AnnotatedData, TrainSampler}
    assert ours(DataModule, Views, TrainSampler) - base_classes < set(TABLE)
    assert ours(DataSet) - {DataSet, MaskDataSet, ObjectDataSet, Items} == set(ALL.values())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_option_has_a_line(kind):
    assert options_of(kind) == set(ROWS_OF[kind])


@pytest.mark.parametrize(("kind", "option", "line"), cases(ROWS_OF))
def test_another_value_changes_what_its_help_says(kind, option, line, root):
    key = (kind, repr(line.beside))
    if key not in BASES:
        BASES[key] = seen(root, kind, **line.beside)
    assert changed(seen(root, kind, **{**line.beside, option: line.value}), BASES[key]) == line.parts


BASES: dict[tuple, Any] = {}


@pytest.mark.parametrize(("option", "line"), elsewheres(ROWS_OF))
def test_the_test_named_elsewhere_is_of_the_option(option, line):
    check_named_test(option, line)
