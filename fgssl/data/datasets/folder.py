"""A user's own images, one folder for each class."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from fgssl.data.datasets.base import DataSet, encode, some
from fgssl.data.index import Index
from fgssl.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff"}


class Folder(DataSet):
    """A user's own images in ``root/train/<class>/``, ``root/test/<class>/`` and, optionally, ``root/val/<class>/``.

    The classes are the folder names of all parts, sorted. Class counts are read from the disk.

    Args:
        root: folder that holds ``train`` and ``test``; null: ``$FGSSL_DATA/folder``.
        coarse_map: JSON file ``{"class": "coarse class", ...}`` or CSV file with the columns class and coarse class;
            null: no coarse labels.
    """

    name = "folder"
    folder = "folder"
    layout = ("train", "test")
    source = "your own images, sorted into one folder for each class"
    licence = "your own"

    def __init__(self, root: str | None = None, coarse_map: str | None = None):
        super().__init__(root)
        self.coarse_map = coarse_map

    def _read(self) -> Index:
        parts = [part for part in ("train", "val", "test") if (self.root / part).is_dir()]
        index = read_class_folders(self.name, {part: self.root / part for part in parts})
        if self.coarse_map is None:
            return index
        return add_coarse(index, read_coarse_map(Path(self.coarse_map).expanduser()), self.coarse_map)


def read_class_folders(name: str, parts: dict[str, Path]) -> Index:
    """Index ``<part>/<class>/**/<image>`` trees.

    Args:
        name: short name of the data set.
        parts: the folder of each part.

    Raises:
        UserError: a part without class folders, or a class folder without images.
    """
    files: list[tuple[str, str, str]] = []  # part, class, path
    for part, folder in parts.items():
        classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        if not classes:
            raise UserError(f"{name}: {folder} has no class folders.")
        for class_name in classes:
            images = images_under(folder / class_name)
            if not images:
                raise UserError(f"{name}: class folder {folder / class_name} holds no image.")
            files += [(part, class_name, path) for path in images]
    fine_names = tuple(sorted({class_name for _, class_name, _ in files}))
    return Index(
        name=name,
        paths=np.array([path for _, _, path in files]),
        fine=encode((class_name for _, class_name, _ in files), fine_names, name),
        fine_names=fine_names,
        split=np.array([part for part, _, _ in files]),
    )


def images_under(folder: Path) -> list[str]:
    """The image files under a folder, at any depth, sorted."""
    files = (os.path.join(parent, file) for parent, _, names in os.walk(folder) for file in names)
    return sorted(file for file in files if os.path.splitext(file)[1].lower() in SUFFIXES)


def read_coarse_map(path: Path) -> dict[str, str]:
    """Read a class -> coarse class map from a JSON object or a CSV file of two columns.

    Raises:
        UserError: the file is missing or malformed, or gives a class twice.
    """
    if not path.is_file():
        raise UserError(f"coarse map not found: {path}.")
    text = path.read_text(encoding="utf-8")
    if path.suffix.lower() == ".json":
        try:
            pairs = json.loads(text, object_pairs_hook=list)  # a dict would hide a class given twice
        except json.JSONDecodeError as error:
            raise UserError(f"coarse map {path} is not valid JSON: {error}") from error
    else:
        pairs = [row for row in csv.reader(text.splitlines()) if row]
        if pairs and [cell.strip().lower() for cell in pairs[0]] == ["class", "coarse"]:
            pairs = pairs[1:]
    if not isinstance(pairs, list) or any(len(pair) != 2 or not isinstance(pair[1], str) for pair in pairs):
        raise UserError(f"coarse map {path}: expected one coarse class name for each class.")
    mapping = {str(fine).strip(): coarse.strip() for fine, coarse in pairs}
    if len(mapping) != len(pairs):
        names = [str(fine).strip() for fine, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UserError(f"coarse map {path}: classes given twice: {some(twice)}.")
    return mapping


def add_coarse(index: Index, mapping: dict[str, str], source: str) -> Index:
    """Give each row of an index the coarse label that ``mapping`` has for its class.

    Raises:
        UserError: the map misses classes; the message names all of them.
    """
    missing = [name for name in index.fine_names if name not in mapping]
    if missing:
        raise UserError(f"coarse map {source} has no entry for {len(missing)} classes: {some(missing, 20)}.")
    coarse_names = tuple(sorted({mapping[name] for name in index.fine_names}))
    coarse_of = encode((mapping[name] for name in index.fine_names), coarse_names, source)
    return replace(index, coarse=coarse_of[index.fine], coarse_names=coarse_names)
