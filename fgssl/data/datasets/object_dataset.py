"""Base of the data sets with several annotated objects in an image."""

from dataclasses import fields
from pathlib import Path

import numpy as np

from fgssl.data.datasets import objects as reader
from fgssl.data.datasets.base import DataSet
from fgssl.data.datasets.kept import Arrays, kept_arrays
from fgssl.data.datasets.objects import ObjectIndex, Objects

COLUMNS = ("paths", "fine", "split", "targets")  # of an ObjectIndex
PREFIX = "objects."  # of the arrays of its objects


class ObjectDataSet(DataSet):
    """A data set whose index is an ``ObjectIndex``. A subclass implements ``_parse`` in place of ``_read``."""

    def annotation_files(self) -> list[Path]:
        """All files that ``_parse`` reads, where they are few; what is read from large ones is kept on the disk."""
        return []

    def _read(self) -> ObjectIndex:
        code = (type(self).__module__, reader.__name__)
        root = [str(self.root)]  # a relative one leads elsewhere from another working directory
        return index_of(kept_arrays(self.annotation_files(), lambda: arrays_of(self._parse()), code, root))

    def _parse(self) -> ObjectIndex:
        raise NotImplementedError


def arrays_of(index: ObjectIndex) -> Arrays:
    """An index as arrays by name."""
    arrays = {"name": np.array(index.name), "fine_names": np.array(index.fine_names)}
    arrays |= {name: getattr(index, name) for name in COLUMNS}
    arrays |= {f"{PREFIX}{field.name}": getattr(index.objects, field.name) for field in fields(Objects)}
    return {name: array for name, array in arrays.items() if array is not None}


def index_of(arrays: Arrays) -> ObjectIndex:
    """The index of ``arrays_of``."""
    objects = Objects(**{field.name: arrays.get(f"{PREFIX}{field.name}") for field in fields(Objects)})  # type: ignore[arg-type]
    columns = {name: arrays.get(name) for name in COLUMNS}
    names = {"name": str(arrays["name"]), "fine_names": tuple(arrays["fine_names"].tolist())}
    return ObjectIndex(**names, objects=objects, **columns)  # type: ignore[arg-type]
