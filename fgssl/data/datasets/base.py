"""The contract of a data set: one official on-disk layout, read into an Index without opening an image.

Nothing here or in the files beside it imports torch: a missing data set must be said before torch has loaded.
"""

import os
import warnings
from dataclasses import dataclass
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

    A subclass states the class attributes and writes ``_read``. ``index()`` reads the files once, checks the published
    counts, and returns the same Index every time.

    Args:
        root: folder of the data set. Default: ``$FGSSL_DATA/<folder>``, or ``data/<folder>`` where the variable is
            unset.
        partial: accept a copy whose counts differ from the published ones (a subset), with a warning. Class counts
            then come from the files.

    Raises:
        UserError: files are missing, or the counts do not match and ``partial`` is off.
    """

    name: str = ""
    folder: str = ""  # the official top folder, under $FGSSL_DATA
    layout: tuple[str, ...] = ()  # the files and folders that must be there, relative to root
    published: Published
    source: str = ""  # where to get it, mirrors included
    licence: str = ""

    def __init__(self, root: str | None = None, partial: bool = False):
        self.root = Path(root or Path(os.environ.get("FGSSL_DATA", "data")) / self.folder).expanduser()
        self.partial = partial
        self._index: Index | None = None

    @property
    def num_fine(self) -> int:
        """Number of fine classes; from the published counts, without the disk, unless ``partial``."""
        return len(self.index().fine_names) if self.partial else self.published.fine

    @property
    def num_coarse(self) -> int:
        """Number of coarse classes (0: none); from the published counts, without the disk, unless ``partial``."""
        return len(self.index().coarse_names) if self.partial else self.published.coarse

    def check_files(self) -> None:
        """Raise one UserError that names every missing file, where it was looked for and where to get the data."""
        missing = [part for part in self.layout if not (self.root / part).exists()]
        if missing:
            where = "" if self.root.is_dir() else " (no such folder)"
            raise UserError(
                f"{self.name}: not found under {self.root}{where}: {', '.join(missing)}.\n"
                f"Expected layout: {', '.join(self.layout)}.\n"
                f"Where to get it: {self.source}\n"
                f"Then set FGSSL_DATA to the folder that holds '{self.folder}', or pass --data.dataset.root."
            )

    def index(self) -> Index:
        """Read the official files (once) and check the published counts."""
        if self._index is None:
            self.check_files()
            index = self._read()
            self._check_counts(index)
            self._index = index
        return self._index

    def _read(self) -> Index:
        raise NotImplementedError

    def _check_counts(self, index: Index) -> None:
        found = {part: int((index.split == part).sum()) for part in np.unique(index.split)}
        wanted = self.published
        faults = [
            f"{found.get(part, 0)} {part} images, published {count}"
            for part, count in wanted.splits.items()
            if found.get(part, 0) != count
        ]
        for kind, names, count in (
            ("fine", index.fine_names, wanted.fine),
            ("coarse", index.coarse_names, wanted.coarse),
        ):
            if count and len(names) != count:
                faults.append(f"{len(names)} {kind} classes, published {count}")
        if not faults:
            return
        message = f"{self.name} under {self.root} differs from the published counts: {'; '.join(faults)}."
        if not self.partial:
            raise UserError(f"{message} Get a complete copy, or pass --data.dataset.partial true to use it as it is.")
        warnings.warn(message, stacklevel=2)
