"""Base of the data sets with several annotated objects in an image."""

from pathlib import Path

from fgssl.data.datasets.base import DataSet
from fgssl.data.datasets.kept import kept_index
from fgssl.data.datasets.objects import ObjectIndex


class ObjectDataSet(DataSet):
    """A data set whose index is an ``ObjectIndex``. A subclass implements ``_parse`` in place of ``_read``."""

    def annotation_files(self) -> list[Path]:
        """All files that ``_parse`` reads, where they are few; what is read from large ones is kept on the disk."""
        return []

    def _read(self) -> ObjectIndex:
        return kept_index(self.annotation_files(), type(self).__module__, self._parse)

    def _parse(self) -> ObjectIndex:
        raise NotImplementedError
