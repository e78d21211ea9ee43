"""Base of the data sets: one official layout on disk, read into an Index without opening an image.

Nothing here or in the files beside it imports torch, so that a missing data set is reported before torch has loaded.
"""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fgssl.data.index import Index
from fgssl.errors import UserError


@dataclass(frozen=True)
class Published:
    """The counts that a data set's authors publish. ``splits`` maps a part to its number of images."""

    splits: dict[str, int]
    fine: int
    coarse: int = 0


class DataSet:
    """One data set in its official layout.

    A subclass sets the class attributes and implements ``_read``. ``index()`` reads the files once, checks them against
    each other and against the published counts, and returns the same Index every time.

    Args:
        root: folder of the data set; null: ``$FGSSL_DATA/<folder>``, or ``data/<folder>`` where the variable is unset.
        partial: accept a copy with other counts than the published ones, such as a subset, with a warning. Class counts
            are then read from the files.

    Raises:
        UserError: files are missing or contradict each other, or the counts differ and ``partial`` is off.
    """

    name: str = ""  # the class name in lower case, as in `fgssl data check <name>`
    folder: str = ""  # the official top folder, under $FGSSL_DATA
    layout: tuple[str, ...] = ()  # the files and folders that must be there, relative to root
    other_layouts: tuple[tuple[str, ...], ...] = ()  # re-hosted copies that are read as well
    published: Published | None = None  # None: only the disk knows (a user's own folder)
    source: str = ""  # where to get it, mirrors included
    licence: str = ""
    trainval = False  # True: index() turns the official "val" part into training rows

    def __init__(self, root: str | None = None, partial: bool = False):
        self.root = Path(root or Path(os.environ.get("FGSSL_DATA", "data")) / self.folder).expanduser()
        self.partial = partial
        self._index: Index | None = None

    @property
    def num_fine(self) -> int:
        """Number of fine classes; from the published counts, without the disk, unless ``partial``."""
        return len(self.index().fine_names) if self.partial or not self.published else self.published.fine

    @property
    def num_coarse(self) -> int:
        """Number of coarse classes (0: none); from the published counts, without the disk, unless ``partial``."""
        return len(self.index().coarse_names) if self.partial or not self.published else self.published.coarse

    def check_files(self) -> None:
        """Raise a UserError that names all missing files, the folder that was searched and a source of the data."""
        if not any(self.has(layout) for layout in (self.layout, *self.other_layouts)):
            raise self.not_found([part for part in self.layout if not (self.root / part).exists()])

    def has(self, layout: tuple[str, ...]) -> bool:
        """Whether every part of a layout is under ``root``."""
        return all((self.root / part).exists() for part in layout)

    def not_found(self, missing: list[str]) -> UserError:
        """Error for missing files: their names, the folder that was searched, the layout and a source of the data."""
        where = "" if self.root.is_dir() else " (no such folder)"
        layouts = "\n  or: ".join(", ".join(layout) for layout in (self.layout, *self.other_layouts))
        near = self._one_folder_away()
        return UserError(
            f"{self.name}: not found under {self.root}{where}: {', '.join(missing)}.\n"
            f"Expected layout: {layouts}.\n"
            + (f"The folder {near} has this layout: give it as root, if it is {self.name}.\n" if near else "")
            + f"Where to get it: {self.source}\n"
            f"Then set FGSSL_DATA to the folder that holds '{self.folder}', or pass --data.dataset.root "
            f"('fgssl data check': --root)."
        )

    def _one_folder_away(self) -> Path | None:
        """The folder above ``root``, or one in it, that has the layout; None: neither."""
        inner = [self.root / name for name in sorted(folders_in(self.root))] if self.root.is_dir() else []
        layouts = (self.layout, *self.other_layouts)
        whole = (f for f in (self.root.parent, *inner) for parts in layouts if all((f / p).exists() for p in parts))
        return next(whole, None)

    def index(self) -> Index:
        """Rows of the data set; the files are read and checked at the first call."""
        if self._index is None:
            with readable(self.name):
                self.check_files()
                index = self._read()
            check_rows(index)
            self._check_counts(index)
            if self.trainval:
                index = replace(index, split=np.where(index.split == "val", "train", index.split))
            self._index = index
        return self._index

    def _read(self) -> Index:
        """Index of the files. A subclass implements it."""
        raise UserError(f"{type(self).__name__} needs a method _read() that returns an Index of its images.")

    def _check_counts(self, index: Index) -> None:
        faults = count_faults(index, self.published) + empty_classes(index)
        if not faults:
            return
        message = f"{self.name} under {self.root}: {'; '.join(faults)}."
        if not self.partial:
            raise UserError(
                f"{message} Get a complete copy, or accept this one with --data.dataset.partial true "
                f"('fgssl data check': --partial)."
            )
        warnings.warn(message, stacklevel=3)


def folders_in(folder: Path) -> set[str]:
    """Names of the folders in a folder; none of hidden ones."""
    with os.scandir(folder) as entries:  # which knows the kind of an entry without asking the disk again
        return {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")}


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Report what the operating system refuses, such as files without permission.

    Raises:
        UserError: names the file and the reason.
    """
    try:
        yield
    except OSError as fault:
        raise UserError(
            f"{name}: {fault.filename or 'a file'} cannot be read ({fault.strerror or fault}). Make it readable, or "
            "get it again."
        ) from fault


def check_rows(index: Index) -> None:
    """Check an index: one label for each row, labels in range, known parts, no image listed twice.

    Raises:
        UserError: a check fails; the message names the column, the label or the image.
    """
    for column in ("fine", "split", "coarse", "boxes", "pixels", "targets"):
        values = getattr(index, column)
        if values is not None and len(values) != len(index.paths):
            raise UserError(f"{index.name}: {len(index.paths)} images but {len(values)} rows of '{column}'.")
    if len(index) == 0:
        raise UserError(f"{index.name}: the file list names no image.")
    for column in ("paths", "fine", "split", "coarse"):
        values = getattr(index, column)
        if values is not None and not (isinstance(values, np.ndarray) and values.ndim == 1):
            raise UserError(f"{index.name}: '{column}' is no NumPy array of one dimension, [N].")
        if column in ("fine", "coarse") and values is not None and values.dtype.kind not in "iu":
            raise UserError(f"{index.name}: '{column}' holds {values.dtype}; labels are whole numbers, int64.")
    unknown = sorted(set(index.split.tolist()) - {"train", "val", "test"})
    if unknown:
        raise UserError(f"{index.name}: 'split' holds {some(unknown)}; the parts are train, val and test.")
    for kind, labels, names in (("fine", index.fine, index.fine_names), ("coarse", index.coarse, index.coarse_names)):
        if labels is not None and (labels.min() < -1 or labels.max() >= len(names)):
            raise UserError(
                f"{index.name}: {kind} labels run from {labels.min()} to {labels.max()}, "
                f"but there are {len(names)} {kind} class names."
            )
    if len(set(index.paths.tolist())) < len(index.paths):
        paths, counts = np.unique(index.paths, return_counts=True)
        raise UserError(f"{index.name}: listed more than once: {some(paths[counts > 1])}.")


def count_faults(index: Index, published: Published | None) -> list[str]:
    """Differences between the counts of an index and the published ones, one line each."""
    if published is None:
        return []
    found = {part: int((index.split == part).sum()) for part in published.splits}
    faults = [
        f"{found[part]:,} {part} images, published {count:,}"
        for part, count in published.splits.items()
        if found[part] != count
    ]
    for kind, names, count in (
        ("fine", index.fine_names, published.fine),
        ("coarse", index.coarse_names, published.coarse),
    ):
        if len(names) != count:
            faults.append(f"{len(names):,} {kind} classes, published {count:,}")
    return faults


def empty_classes(index: Index) -> list[str]:
    """Fine classes without an image; an empty list where images have no single class (ADE20K)."""
    if index.targets is None and (index.fine == -1).all():
        return []
    if index.targets is not None:
        counts = (index.targets == 1).sum(axis=0)
    else:
        counts = np.bincount(index.fine[index.fine >= 0], minlength=len(index.fine_names))
    empty = np.array(index.fine_names)[counts == 0]
    return [f"classes without an image: {some(empty)}"] if len(empty) else []


def encode(values: Iterable[str], names: Sequence[str], where: Path | str) -> np.ndarray:
    """Labels [N] int64 of class names: the position of each value in ``names``.

    Args:
        values: class name or class id of each image.
        names: all class names, in label order.
        where: file that the values come from, for the error message.

    Raises:
        UserError: values that are not in ``names``.
    """
    values = list(values)
    label_of = {name: label for label, name in enumerate(names)}
    unknown = sorted(set(values) - label_of.keys())
    if unknown:
        raise UserError(f"{where}: classes that the class list does not have: {some(unknown)}.")
    return np.array([label_of[value] for value in values], dtype=np.int64)


def some(items: Sequence | np.ndarray, limit: int = 5) -> str:
    """The first items as text: ``a, b, c and 7 more``."""
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
