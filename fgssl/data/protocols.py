"""Protocols: the training, validation and test rows of an index, and their labels.

Random numbers come from a numpy Generator seeded by (seed, purpose), so that each process and machine gets the same
rows and labels.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from fgssl.data.datasets.base import DataSet, some
from fgssl.data.hierarchies import read_text
from fgssl.data.index import Index, rows_hash
from fgssl.errors import UserError, at_least, did_you_mean

# Each purpose has its own random numbers: label noise does not change the validation rows.
VALIDATION, LABEL_SHARE, NOISE = 0, 1, 2
NO_ROWS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Parts:
    """Rows and labels of each part.

    Attributes:
        train: [n] int64 row ids of ``index``, ascending.
        val: [n] int64 row ids, ascending; empty where neither the protocol nor the data set has validation rows.
        test: [n] int64 row ids, ascending.
        index: index of the data set with the labels of the protocol (label noise, SOP lists).
        flipped: [n] int64 training rows whose fine label was changed by label noise.
        protocol: the protocol.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    index: Index
    flipped: np.ndarray
    protocol: "Protocol"

    def describe(self) -> dict[str, Any]:
        """Plain values for ``results.json``: the protocol, and images, classes and row hash of each part."""
        parts = {}
        for part, rows in (("train", self.train), ("val", self.val), ("test", self.test)):
            labels = np.unique(self.index.fine[rows])
            classes = int((labels >= 0).sum())  # -1 is no class
            parts[part] = {"images": len(rows), "classes": classes, "rows_hash": rows_hash(rows)}
        noise = {"flipped": len(self.flipped), "flipped_hash": rows_hash(self.flipped)}
        return {"dataset": self.index.name, **asdict(self.protocol), **parts, **noise}


@dataclass(frozen=True)
class Protocol:
    """Training, validation and test rows of a run, and their labels.

    The options act in this order: split, val_fraction, label_fraction, label_noise.

    Args:
        split: ``official``: published training and test parts. ``zero_shot``: first half of the classes for training,
            the others for testing (data sets with disjoint official classes, such as SOP, keep their parts).
            ``sop_split1``, ``sop_split2``: MaskCon's lists of Stanford Online Products (appendix A.2).
        val_fraction: share of the training rows that is held out for validation, 0 to 1: images of each class, or whole
            classes where training and test classes differ. 0 keeps an official validation part; other values add it to
            the training rows first.
        label_fraction: share of the training rows of each class that is kept, 0 to 1; smaller shares are subsets of
            larger ones. CMD's Table V keeps 0.5 and 0.2 for the linear classifier only.
        label_noise: probability that the fine label of a training row is replaced by another training class, uniformly
            (symmetric noise, OBD-SD Table 9). Coarse labels, validation and test rows are not changed.
        seed: seed of the held-out rows, the kept rows and the label noise, 0 or more.
    """

    split: Literal["official", "zero_shot", "sop_split1", "sop_split2"] = "official"
    val_fraction: float = 0.0
    label_fraction: float = 1.0
    label_noise: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if self.split not in SPLITS:
            raise UserError(
                f"protocol.split: no '{self.split}' ({', '.join(SPLITS)}).{did_you_mean(self.split, SPLITS)}"
            )
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"protocol.val_fraction must be in [0, 1), not {self.val_fraction}.")
        if not 0 < self.label_fraction <= 1:
            raise UserError(f"protocol.label_fraction must be in (0, 1], not {self.label_fraction}.")
        if not 0 <= self.label_noise < 1:
            raise UserError(f"protocol.label_noise must be in [0, 1), not {self.label_noise}.")
        at_least(0, seed=self.seed)  # numpy's generators take no other

    def apply(self, index: Index) -> Parts:
        """Rows of ``index`` under this protocol.

        Raises:
            UserError: the split does not fit this data set.
        """
        index, train, val, test = SPLITS[self.split](index)
        if self.val_fraction:
            train = np.sort(np.concatenate([train, val]))
            train, val = self._hold_out(index, train, test)
        if self.label_fraction < 1:
            draw = self._draw(LABEL_SHARE, len(index))
            train = stratified(train, index.fine, self.label_fraction, draw)
        index, flipped = self._flip_labels(index, train)
        return Parts(train=train, val=val, test=test, index=index, flipped=flipped, protocol=self)

    def num_fine(self, dataset: DataSet) -> int:
        """Number of fine classes under this protocol, without the disk where the data set knows it without."""
        return SOP_CLASSES.get(self.split) or dataset.num_fine

    def _draw(self, purpose: int, size: int) -> np.ndarray:
        """[size] float64 in [0, 1), the same on every machine."""
        return np.random.default_rng([self.seed, purpose]).random(size)

    def _hold_out(self, index: Index, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Training and validation rows: by images where test classes are trained on, else by whole classes."""
        labels, shown = (np.unique(index.fine[rows]) for rows in (train, test))
        labels, shown = labels[labels >= 0], shown[shown >= 0]  # -1 is no class
        if np.isin(shown, labels).any() or min(len(labels), len(shown)) == 0:  # test shows known classes: so does val
            kept = stratified(train, index.fine, 1 - self.val_fraction, self._draw(VALIDATION, len(index)))
        else:
            count = min(max(1, round(self.val_fraction * len(labels))), len(labels) - 1)
            held_out = labels[np.argsort(self._draw(VALIDATION, len(labels)))[:count]]
            kept = train[~np.isin(index.fine[train], held_out)]
        return kept, np.setdiff1d(train, kept)

    def _flip_labels(self, index: Index, train: np.ndarray) -> tuple[Index, np.ndarray]:
        """Index with flipped fine labels of training rows, and the rows whose label changed."""
        if self.label_noise == 0:
            return index, NO_ROWS
        _need_labels(index, train, "label_noise")
        classes = np.unique(index.fine[train])
        # two numbers for EVERY row of the index: what happens to a row does not depend on which others train
        flips, targets = self._draw(NOISE, 2 * len(index)).reshape(2, -1)
        flipped = train[flips[train] < self.label_noise]
        old = np.searchsorted(classes, index.fine[flipped])
        step = 1 + (targets[flipped] * (len(classes) - 1)).astype(np.int64)  # 1 to C - 1: any class but the old one
        fine = index.fine.copy()
        fine[flipped] = classes[(old + step) % len(classes)]
        return replace(index, fine=fine), flipped


def stratified(rows: np.ndarray, labels: np.ndarray, fraction: float, draw: np.ndarray) -> np.ndarray:
    """A share of the rows of each class, at least one.

    Args:
        rows: [n] int64 row ids.
        labels: [N] int64 labels of all rows of the index.
        fraction: share of each class to keep, rounded to whole images.
        draw: [N] random numbers; rows with the smallest are kept, so that a smaller share is a subset of a larger one.

    Returns:
        [m] int64 kept row ids, ascending.
    """
    order = rows[np.lexsort((draw[rows], labels[rows]))]  # by class, then by draw
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, counts)
    keep = np.repeat(np.maximum(1, np.round(fraction * counts)), counts)
    return np.sort(order[rank < keep])


Split = tuple[Index, np.ndarray, np.ndarray, np.ndarray]  # index, train, val, test


def _official(index: Index) -> Split:
    return index, index.rows("train"), index.rows("val"), index.rows("test")


def _zero_shot(index: Index) -> Split:
    """First half of the classes to train (Song et al., 2016)."""
    _need_labels(index, np.arange(len(index)), "zero_shot")
    train, test = index.rows("train"), index.rows("test")
    if len(train) and len(test) and not np.isin(index.fine[test], index.fine[train]).any():
        return index, np.sort(np.concatenate([train, index.rows("val")])), NO_ROWS, test
    seen = index.fine < len(index.fine_names) // 2
    return index, np.flatnonzero(seen), NO_ROWS, np.flatnonzero(~seen)


def _need_labels(index: Index, rows: np.ndarray, what: str) -> None:
    if missing := int((index.fine[rows] < 0).sum()):
        raise UserError(
            f"protocol '{what}' needs a single class label an image; {missing} of {len(rows)} of {index.name} "
            "have none."
        )


# Number of fine classes: split1 has 2,517 to train and 2,518 others to test, split2 the same 1,498 on both sides.
SOP_CLASSES = {"sop_split1": 5035, "sop_split2": 1498}


def _sop_split1(index: Index) -> Split:
    """Other products in test than in train: the published test labels start at 0 again and are set off here."""
    return _sop_split(index, "sop_split1", same_products=False)


def _sop_split2(index: Index) -> Split:
    """Ten images of each product to train, two to test."""
    return _sop_split(index, "sop_split2", same_products=True)


def _sop_split(index: Index, name: str, same_products: bool) -> Split:
    """Rows and labels of the published lists; all other rows get label -1."""
    if index.name != "sop":
        raise UserError(f"protocol.split {name} is for the data set sop, not {index.name}.")
    train, test = read_sop_list(f"{name}_train"), read_sop_list(f"{name}_test")
    train_rows, train_labels = _look_up(index, train)
    test_rows, test_labels = _look_up(index, test)
    if not same_products:
        test_labels += len(train)
    fine = np.full(len(index), -1, dtype=np.int64)
    fine[train_rows], fine[test_rows] = train_labels, test_labels
    used = fine >= 0
    names = {new: index.fine_names[old] for new, old in zip(fine[used], index.fine[used], strict=True)}
    index = replace(index, fine=fine, fine_names=tuple(names[label] for label in range(len(names))))
    return index, np.sort(train_rows), NO_ROWS, np.sort(test_rows)


def _look_up(index: Index, products: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows [n] and labels [n] of the listed images; a label is the position of the product in the list."""
    row_of = {"/".join(path.split(os.sep)[-2:]): row for row, path in enumerate(index.paths.tolist())}
    missing = [path for paths in products for path in paths if path not in row_of]
    if missing:
        raise UserError(f"sop: {len(missing)} images of the published list are not in Ebay_*.txt: {some(missing)}.")
    rows = np.array([row_of[path] for paths in products for path in paths], dtype=np.int64)
    return rows, np.repeat(np.arange(len(products)), [len(paths) for paths in products])


def read_sop_list(name: str) -> list[list[str]]:
    """One of MaskCon's published lists of Stanford Online Products: the image paths of each product, in label order.

    Stored as one line a product: its super-class, its number, and the numbers of its images.
    """
    products = []
    for line in read_text(f"{name}.txt").splitlines():
        super_class, product, *images = line.split()
        products.append([f"{super_class}_final/{product}_{image}.JPG" for image in images])
    return products


SPLITS: dict[str, Callable[[Index], Split]] = {
    "official": _official,
    "zero_shot": _zero_shot,
    "sop_split1": _sop_split1,
    "sop_split2": _sop_split2,
}
