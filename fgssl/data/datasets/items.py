"""Images that a Python object holds: any torch Dataset of (image, label), and Hugging Face's data sets."""

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgssl.data.datasets.base import DataSet, encode
from fgssl.data.index import Index
from fgssl.errors import UserError

PARTS = ("train", "val", "test")


class Items(DataSet):
    """Any torch Datasets whose items are (image, label), for use from Python.

    Images are PIL images, or uint8 pixels [H, W, 3] or [3, H, W], without transform: the views of the ``DataModule``
    crop and augment them. Labels are whole numbers from 0; -1 or None is an image without a label. They are taken from
    ``targets`` or ``labels`` of a Dataset that has one of these, as torchvision's do, else by reading every item once.

    Args:
        train: training images; None: none.
        test: test images; None: none.
        val: validation images; None: none.
        classes: class names in label order; None: ``classes`` of a Dataset that has them, else the numbers.
        name: name of the data in tables.

    Raises:
        UserError: there is no Dataset, or a label is not a whole number.
    """

    name = "items"

    def __init__(
        self,
        train: Any = None,
        test: Any = None,
        val: Any = None,
        classes: Sequence[str] | None = None,
        name: str = "items",
    ):
        super().__init__(root=".", partial=True)  # a class may have no image
        self.parts = {part: items for part, items in zip(PARTS, (train, val, test), strict=True) if items is not None}
        if not self.parts:
            raise UserError("Items: no Dataset is given. Items(train=dataset), for example.")
        self.classes, self.name = classes, name

    def check_files(self) -> None:
        """There are no files."""

    def _read(self) -> Index:
        labels = {part: labels_of(items) for part, items in self.parts.items()}
        classes = self.classes or next((d.classes for d in self.parts.values() if hasattr(d, "classes")), None)
        return joined(self.name, self.parts, labels, classes)


def labels_of(items: Any) -> np.ndarray:
    """Labels [n] int64 of a Dataset of (image, label); -1 for no label."""
    if hasattr(items, "indices") and hasattr(items, "dataset"):  # torch.utils.data.Subset
        return labels_of(items.dataset)[np.asarray(items.indices)]
    values = next((getattr(items, n) for n in ("targets", "labels") if getattr(items, n, None) is not None), None)
    if values is None:
        values = [items[row][1] for row in range(len(items))]
    try:
        labels = np.array([-1 if value is None else _whole(value) for value in values], dtype=np.int64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{type(items).__name__}: a label is not a whole number ({error}).") from error
    if len(labels) != len(items):
        raise UserError(f"{type(items).__name__}: {len(labels)} labels for {len(items)} items.")
    return labels


def _whole(value: Any) -> int:
    number = float(value)
    if not number.is_integer():  # NaN and infinity are none either
        raise ValueError(f"{number}")
    return int(number)


def joined(name: str, parts: dict[str, Any], labels: dict[str, np.ndarray], classes: Any) -> Index:
    """Index of the Datasets of the parts, one after another."""
    fine = np.concatenate(list(labels.values()))
    names = tuple(str(c) for c in classes) if classes is not None else tuple(str(c) for c in range(fine.max() + 1))
    return Index(
        name=name,
        paths=np.array([f"{part} {row}" for part, items in parts.items() for row in range(len(items))]),
        fine=fine,
        fine_names=names if (fine >= 0).any() else (),
        split=np.repeat(list(parts), [len(items) for items in parts.values()]),
        images=Joined(list(parts.values())),
    )


class Joined:
    """Several Datasets as one sequence."""

    def __init__(self, datasets: list[Any]):
        self.datasets = datasets
        self.ends = np.cumsum([len(items) for items in datasets]).tolist()

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, row: int) -> Any:
        place = bisect.bisect_right(self.ends, row)
        return self.datasets[place][row - (self.ends[place - 1] if place else 0)]


class HuggingFace(DataSet):
    """A data set of Hugging Face with a column of images; needs ``fgssl[huggingface]``.

    Args:
        path: name on the hub (``ethz/food101``), folder of ``save_to_disk``, or any folder that ``load_dataset`` reads.
        subset: configuration of the data set; null: its default.
        train: split with the training images.
        test: split with the test images; null: ``test`` if there is one, else ``validation`` unless it is ``val``, else
            none.
        val: split with validation images; null: none.
        image: column of the images; null: the first one of images.
        label: column of the classes, by name or whole number, -1 and null for none; null: the first column of the type
            ClassLabel, if any. Columns of plain texts and numbers have to be named.
    """

    name = "huggingface"
    folder = "huggingface"
    layout = ("the name of a data set as path",)
    source = "https://huggingface.co/datasets, or a local copy; pip install 'fgssl[huggingface]'"
    licence = "of each data set"

    def __init__(
        self,
        path: str | None = None,
        subset: str | None = None,
        train: str = "train",
        test: str | None = None,
        val: str | None = None,
        image: str | None = None,
        label: str | None = None,
    ):
        super().__init__(root=path, partial=True)
        self.name = Path(path).name if path else type(self).name
        self.path, self.subset, self.image, self.label = path, subset, image, label
        self.splits = {"train": train, "val": val, "test": test}

    def check_files(self) -> None:
        """Raise a UserError if no data set is named or the package ``datasets`` is not installed."""
        if not self.path:
            raise UserError("huggingface: no data set is named. Give --data.dataset.path NAME (or a folder).")
        try:
            import datasets  # noqa: F401
        except ImportError as error:
            raise UserError("huggingface: pip install 'fgssl[huggingface]', for the package datasets.") from error

    def _read(self) -> Index:
        splits = self._load()
        wanted = dict(self.splits)
        free = (name for name in ("test", "validation") if name in splits and name != wanted["val"])
        wanted["test"] = wanted["test"] or next(free, None)
        absent = [name for name in wanted.values() if name is not None and name not in splits]
        if absent:
            raise UserError(f"huggingface: {self.path} has no split '{absent[0]}' (it has: {', '.join(splits)}).")
        parts = {part: splits[name] for part, name in wanted.items() if name is not None}
        if not parts:
            raise UserError("huggingface: no split is named. Give --data.dataset.train NAME.")
        features = next(iter(parts.values())).features
        image = self._column(features, self.image, "Image", "image")
        label = self._column(features, self.label, "ClassLabel", "label")
        if image is None:
            raise UserError(f"huggingface: {self.path} has no column of images (it has: {', '.join(features)}).")
        images = {part: _Column(rows, image) for part, rows in parts.items()}
        if label is None:
            return joined(self.name, images, {part: np.full(len(rows), -1) for part, rows in parts.items()}, ())
        try:
            return joined(self.name, images, *column_labels(parts, label))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"huggingface: column '{label}' of {self.path} holds neither names nor whole numbers ({error}). Give "
                "--data.dataset.label COLUMN."
            ) from error

    def _load(self) -> dict[str, Any]:
        """The splits of the data set by name."""
        import datasets

        folder = Path(self.path or "").expanduser()
        try:
            if (folder / "dataset_dict.json").is_file():
                return dict(datasets.load_from_disk(str(folder)))
            if (folder / "state.json").is_file():
                return {self.splits["train"] or "train": datasets.load_from_disk(str(folder))}
            return dict(datasets.load_dataset(str(folder) if folder.is_dir() else self.path, self.subset))
        except Exception as fault:  # the hub, the network and each format fail in their own way
            raise UserError(f"huggingface: '{self.path}' could not be loaded ({fault}).") from fault

    def _column(self, features: Any, given: str | None, kind: str, what: str) -> str | None:
        """Name of a column: the given one, or the first of a kind."""
        if given is not None and given not in features:
            raise UserError(
                f"huggingface: {self.path} has no column '{given}' for {what} (it has: {', '.join(features)})."
            )
        return given or next((name for name, feature in features.items() if type(feature).__name__ == kind), None)


def column_labels(parts: dict[str, Any], column: str) -> tuple[dict[str, np.ndarray], list[str] | None]:
    """Labels [n] int64 of the splits of Hugging Face, -1 for none, and the class names; None: there are numbers alone.

    Raises:
        UserError: a split has classes that the first one does not name.
        TypeError, ValueError: the column holds neither names nor whole numbers.
    """
    values = {part: column_values(rows, column) for part, rows in parts.items()}
    strings = {value for found in values.values() for value in found if isinstance(value, str)}
    names = getattr(next(iter(parts.values())).features[column], "names", None) or sorted(strings) or None
    labels = {}
    for part, found in values.items():
        labels[part] = np.full(len(found), -1, dtype=np.int64)
        rows = [row for row, value in enumerate(found) if value is not None]
        known = [found[row] for row in rows]
        labels[part][rows] = encode(known, names, f"huggingface, {part}") if names else [_whole(v) for v in known]
    return labels, names


def column_values(rows: Any, column: str) -> list[Any]:
    """Class names or whole numbers of a split, None for no label.

    Numbers become names where the split has them: two splits may number their classes in other orders.
    """
    if column not in rows.features:
        return [None] * len(rows)
    names = getattr(rows.features[column], "names", None)
    values = [None if value == "" or value == -1 else value for value in rows[column]]
    return [None if value is None else names[value] for value in values] if names else values


class _Column:
    """(image,) items of a split of Hugging Face."""

    def __init__(self, rows: Any, column: str):
        self.rows, self.column = rows, column

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[Any]:
        return (self.rows[row][self.column],)
