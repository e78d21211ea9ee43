"""A user's own images: a folder in any form, or a list of paths."""

import csv
import io
import json
import os
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from fgssl.data.datasets.base import DataSet, encode, folders_in, some
from fgssl.data.datasets.files import read_utf8
from fgssl.data.index import Index
from fgssl.errors import UserError, did_you_mean

SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif", ".ppm", ".pgm", ".tif", ".tiff"}
NOT_READ = {".heic", ".heif"}  # photographs that PIL does not read
PARTS = ("train", "val", "test")
MEANT_AS_VAL = ("valid", "validation")  # names that other programs have for it
MEANT_AS_PARTS = {*PARTS, *MEANT_AS_VAL, "training", "testing"}
BOX = ("x0", "y0", "x1", "y1")
COLUMNS = ("path", "label", "coarse", "part", *BOX)


class Folder(DataSet):
    """A user's own images, with or without labels.

    ``root`` is one of these:

    - a folder that holds ``train`` and ``test``, ``val`` or both: the parts; other images and folders of images beside
      them are refused;
    - any other folder of images, nested or flat: training images, and test images by ``test_fraction``;
    - a CSV file, by commas or semicolons, with a header of the columns path and, optionally, label, coarse, part (of
      train, val, test), and the box of the labelled object in pixels, x0, y0, x1, y1, empty for an image without one;
    - a text file with one path per line.

    The classes are the names of the folders below ``root`` or below the parts, sorted; images that lie in no such
    folder have no label. Relative paths in a file start at its folder. Methods that need no labels train without them,
    and Recall@K and the like are then not computed. Class counts are read from the disk.

    Args:
        root: folder of images, or CSV or text file of paths; null: ``$FGSSL_DATA/folder``.
        labels: take folder names as classes; false: no labels, for folders that mean something else.
        coarse_map: JSON file ``{"class": "coarse class", ...}`` or CSV file with the columns class and coarse class;
            null: no coarse labels, unless a CSV file in ``root`` has them.
        test_fraction: share of the images of each class that are test images, 0 to below 1, where ``root`` has no
            parts. The choice depends on the number of images and their classes alone.
    """

    name = "folder"
    folder = "folder"
    layout = ("train/<class>/", "test/<class>/")
    other_layouts = (("<class>/",), ("images in any folders",), ("a CSV or text file of paths as root",))
    source = "your own images: a folder of any form, or a CSV or text file of paths"
    licence = "your own"

    def __init__(
        self,
        root: str | None = None,
        labels: bool = True,
        coarse_map: str | None = None,
        test_fraction: float = 0.0,
    ):
        super().__init__(root)
        if not 0 <= test_fraction < 1:
            raise UserError(f"data.dataset.test_fraction is {test_fraction}; it must be 0 or more and below 1.")
        self.labels, self.coarse_map, self.test_fraction = labels, coarse_map, test_fraction

    def check_files(self) -> None:
        """Raise a UserError if ``root`` is missing or empty."""
        if not self.root.exists() or (self.root.is_dir() and not any(self.root.iterdir())):
            raise self.not_found(["images"])

    def _read(self) -> Index:
        if self.root.is_file():
            index, has_parts = self._without_labels(read_list(self.root))
        else:
            index, has_parts = read_any_folder(self.root, self.labels)
        if self.coarse_map is not None:
            index = add_coarse(index, read_coarse_map(Path(self.coarse_map).expanduser()), self.coarse_map)
        if self.test_fraction and has_parts:
            raise UserError(f"data.dataset.test_fraction: {self.root} has parts of its own. Leave it out.")
        return hold_out(index, self.test_fraction) if self.test_fraction else index

    def _without_labels(self, read: tuple[Index, bool]) -> tuple[Index, bool]:
        index, has_parts = read
        if self.labels:
            return read
        none = np.full(len(index), -1, dtype=np.int64)
        return replace(index, fine=none, fine_names=(), coarse=None, coarse_names=()), has_parts


def read_any_folder(root: Path, labels: bool) -> tuple[Index, bool]:
    """Index of a folder of images, and whether it has parts.

    Args:
        root: the folder.
        labels: take folder names as classes.

    Raises:
        UserError: there is no image, some images lie in class folders and others beside them, or beside the parts; or
            the parts have other names, or are one folder deeper.
    """
    inner = folders_in(root)
    has_parts = holds_parts(root, inner)
    if has_parts:
        _refuse_others(root, inner)
    else:
        _refuse_hidden_parts(root, inner)
    parts = {part: root / part for part in PARTS if part in inner} if has_parts else {"train": root}
    files = {part: images_under(folder) for part, folder in parts.items()}
    for part, paths in files.items():
        if not paths:
            raise UserError(f"folder: {parts[part]} holds no image ({', '.join(sorted(SUFFIXES))}).")
    flat = {part: [path for path in paths if Path(path).parent == parts[part]] for part, paths in files.items()}
    if not labels or all(len(flat[part]) == len(files[part]) for part in files):
        paths, split = [path for paths in files.values() for path in paths], list(files)
        sizes = [len(paths) for paths in files.values()]
        none = np.full(len(paths), -1, dtype=np.int64)
        return Index("folder", np.array(paths), none, (), np.repeat(split, sizes)), has_parts
    for part in files:
        if flat[part]:
            raise UserError(
                f"folder: {some(flat[part], 2)} in no class folder, but others of the data set are. Move them, or "
                "give --data.dataset.labels false ('fgssl data check': --no-labels, Python: labels=False) "
                "to take all images without labels."
            )
    return read_class_folders("folder", parts), has_parts


def holds_parts(root: Path, inner: set[str]) -> bool:
    """Whether the folders ``inner`` of ``root`` are parts, not classes: train and another part, or no other images."""
    others = inner - {"train"}
    if "train" not in inner or others & {*PARTS, *MEANT_AS_VAL}:
        return "train" in inner
    return not any(images_under(root / name) for name in others)


def _refuse_hidden_parts(root: Path, inner: set[str]) -> None:
    """Refuse parts that would be taken for classes, and their test images for training images.

    Raises:
        UserError: names the folders.
    """
    if inner and {name.lower() for name in inner} <= MEANT_AS_PARTS:
        raise UserError(
            f"folder: {root} holds {', '.join(sorted(inner))}, which would be taken for classes. Parts are named "
            "train, val and test, and there must be a train. Rename them, or name one of them as root."
        )
    if (
        len(inner) == 1
        and "train" in (deeper := folders_in(root / min(inner)))
        and deeper & (MEANT_AS_PARTS - {"train"})
    ):
        raise UserError(
            f"folder: the parts {', '.join(sorted(deeper & MEANT_AS_PARTS))} are in {root / min(inner)}: name that "
            "folder as root."
        )


def _refuse_others(root: Path, inner: set[str]) -> None:
    """Refuse images beside the parts, which would be left out.

    Raises:
        UserError: names the images or their folders.
    """
    if loose := sorted(entry.name for entry in root.iterdir() if is_image(entry.name) and entry.is_file()):
        raise UserError(
            f"folder: {root} has the parts {', '.join(part for part in PARTS if part in inner)}, and {len(loose)} "
            f"images lie beside them, which would be left out: {some(loose)}. Move images that belong to a part into "
            f"it, and others out of {root}."
        )
    others = sorted(name for name in inner - set(PARTS) if images_under(root / name))
    if not others:
        return
    val = next((name for name in others if name in MEANT_AS_VAL and "val" not in inner), None)
    renamed = f"Rename {val} to val, the validation part. " if val else ""
    rest = "" if others == [val] else f"Move images that belong to a part into it, and others out of {root}."
    raise UserError(
        f"folder: {root} has the parts {', '.join(part for part in PARTS if part in inner)}, but images lie in "
        f"{some(others)} too, which would be left out. {renamed}{rest}".rstrip()
    )


def read_list(file: Path) -> tuple[Index, bool]:
    """Index of a CSV file of paths and labels or of a text file of paths, and whether it names parts.

    Raises:
        UserError: a column, part or path is wrong, and the message names it and its line; or the file is not text in
            UTF-8.
    """
    if is_image(file.name) or zipfile.is_zipfile(file) or tarfile.is_tarfile(file):
        raise UserError(f"{file} is no folder or list of images. Give the folder of the image, or unpack the archive.")
    rows = _read_csv(file) if file.suffix.lower() == ".csv" else _read_lines(file)
    if not rows:
        raise UserError(f"{file} names no image.")
    paths = [os.path.abspath(file.parent / Path(row["path"]).expanduser()) for row in rows]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise UserError(f"{file}: {len(missing)} of {len(paths)} images are not there: {some(missing, 3)}.")
    fine, fine_names = _labels([row.get("label", "") for row in rows])
    coarse, coarse_names = _labels([row.get("coarse", "") for row in rows])
    index = Index(
        name="folder",
        paths=np.array(paths),
        fine=fine,
        fine_names=fine_names,
        split=np.array([row.get("part") or "train" for row in rows]),
        coarse=coarse if coarse_names else None,
        coarse_names=coarse_names,
        boxes=_boxes(file, rows),
    )
    return index, any(row.get("part") for row in rows)


def _boxes(file: Path, rows: list[dict[str, str]]) -> np.ndarray | None:
    """Boxes [N, 4] float32, NaN for an image without one; None if no image has one.

    Raises:
        UserError: a box is incomplete, no number, or has no area; the message names its image.
    """
    boxes = np.full((len(rows), 4), np.nan, dtype=np.float32)
    for number, row in enumerate(rows):
        sides = [row[name] for name in BOX if name in row]
        if not sides:
            continue
        try:
            boxes[number] = x0, y0, x1, y1 = [float(side) for side in sides]
        except ValueError:
            x0 = y0 = x1 = y1 = 0.0
        if not (x0 < x1 and y0 < y1 and np.isfinite(boxes[number]).all()):
            raise UserError(f"{file}: {row['path']}: the box must be four numbers, x0 < x1 and y0 < y1: {sides}.")
    return None if np.isnan(boxes).all() else boxes


def _read_csv(file: Path) -> list[dict[str, str]]:
    """Rows of a CSV file by column, without blanks."""
    text = read_utf8(file)
    reader = csv.DictReader(io.StringIO(text), delimiter=separator(text), strict=True)
    try:
        return _rows(file, reader)
    except csv.Error as fault:  # a quotation mark that is not closed swallows the lines behind it
        raise UserError(
            f"{file}, after line {reader.line_num}: {fault}. Look for a quotation mark that is not closed."
        ) from fault


def _rows(file: Path, reader: csv.DictReader) -> list[dict[str, str]]:
    names = [(name or "").strip().lower() for name in reader.fieldnames or ()]
    reader.fieldnames = names
    unknown = [name for name in names if name not in COLUMNS]
    if "path" not in names or unknown or len(set(names)) < len(names):
        hint = did_you_mean(unknown[0], COLUMNS) if unknown else ""
        raise UserError(
            f"{file}: the first line must name the columns, each once: path and, optionally, label, coarse, part, "
            f"{', '.join(BOX)}; found: {', '.join(names) or 'nothing'}.{hint}"
        )
    rows = []
    for row in reader:
        if any(row.pop(None, ())):  # where DictReader keeps what is beyond the last column
            raise UserError(
                f"{file}, line {reader.line_num}: more cells than the {len(names)} columns of the first line. Put a "
                "cell with a comma into quotation marks."
            )
        values = {name: value.strip() for name, value in row.items() if name and value}
        if "path" not in values:
            raise UserError(f"{file}, line {reader.line_num}: no path.")
        if values.get("part", "train") not in PARTS:
            raise UserError(f"{file}, line {reader.line_num}: part '{values['part']}' is not {', '.join(PARTS)}.")
        rows.append(values)
    return rows


def separator(text: str) -> str:
    """What separates the cells of a CSV file: a comma, or the semicolon of Excel in many countries."""
    first = text.partition("\n")[0]
    return ";" if ";" in first and "," not in first else ","


def _read_lines(file: Path) -> list[dict[str, str]]:
    """Paths of a text file."""
    return [{"path": line.strip()} for line in read_utf8(file).splitlines() if line.strip()]


def _labels(values: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels [N] int64, -1 for an empty value, and their names."""
    names = tuple(sorted(set(values) - {""}))
    label_of = {name: label for label, name in enumerate(names)}
    return np.array([label_of.get(value, -1) for value in values], dtype=np.int64), names


def hold_out(index: Index, fraction: float) -> Index:
    """Mark a share of the images of each class as test images, at least one of a class of two or more."""
    draw, split = np.random.default_rng(0).random(len(index)), index.split.copy()
    for label in np.unique(index.fine):
        rows = np.flatnonzero(index.fine == label)
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        split[rows[np.argsort(draw[rows])][:count]] = "test"
    return replace(index, split=split)


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
        classes = sorted(folders_in(folder))
        if not classes:
            raise UserError(f"{name}: {folder} has no class folders. Sort its images into {folder}/<class>/.")
        for class_name in classes:
            images = images_under(folder / class_name)
            if not images:
                raise UserError(f"{name}: class folder {folder / class_name} holds no image. Fill it, or remove it.")
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
    """The image files under a folder, at any depth, sorted; hidden files and folders are passed over.

    Links to folders are followed, but not to folders above; a folder that is reached twice is read once.

    Raises:
        UserError: a folder cannot be read, a photograph is in a format that PIL does not read, or a name is not UTF-8.
    """
    found, unread = [], []
    above = (*folder.absolute().parents, *folder.resolve().parents)  # which hold images of other classes
    seen = {_identity(parent) for parent in above}
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_refuse_unreadable):
        if _identity(parent) in seen:  # a link to a folder that holds it would never end
            folders.clear()
            continue
        seen.add(_identity(parent))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.join(parent, name) for name in names if is_image(name)]
        unread += [name for name in names if os.path.splitext(name)[1].lower() in NOT_READ and name[0] != "."]
    if unread:
        raise UserError(
            f"{folder} holds {len(unread)} photographs in HEIC, which are not read: {some(sorted(unread))}. Convert "
            "them to JPEG, or move them elsewhere."
        )
    try:
        "".join(found).encode()
    except UnicodeEncodeError as error:  # pictures, tables and JSON files cannot hold such a name
        path = next(path for path in found if error.object[error.start] in path)
        shown = os.fsencode(path).decode(errors="replace")
        raise UserError(f"{shown}: the name of a file or folder is not UTF-8. Rename it and others like it.") from error
    return sorted(found)


def _identity(folder: str | Path) -> tuple[int, int]:
    """What a folder and the links to it have in common: device and number."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def is_image(name: str) -> bool:
    """Whether a file name is that of an image, and not hidden."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}). Make it readable, or move it elsewhere.")


def read_coarse_map(path: Path) -> dict[str, str]:
    """Read a class -> coarse class map from a JSON object or a CSV file of two columns.

    Raises:
        UserError: the file is missing, malformed or not in UTF-8, or gives a class twice.
    """
    if not path.is_file():
        raise UserError(f"coarse map not found: {path}.")
    text = read_utf8(path)
    if path.suffix.lower() == ".json":
        try:
            pairs = json.loads(text, object_pairs_hook=list)  # a dict would hide a class given twice
        except json.JSONDecodeError as error:
            raise UserError(f"coarse map {path} is not valid JSON: {error}") from error
    else:
        pairs = [row for row in csv.reader(text.splitlines(), delimiter=separator(text)) if row]
        if pairs and [cell.strip().lower() for cell in pairs[0]] == ["class", "coarse"]:
            pairs = pairs[1:]
    if not isinstance(pairs, list) or any(len(pair) != 2 or not isinstance(pair[1], str) for pair in pairs):
        raise UserError(f"coarse map {path}: expected one coarse class name for each class.")
    mapping = {str(fine).strip(): coarse.strip() for fine, coarse in pairs}
    if empty := [name for name, coarse in mapping.items() if not coarse]:
        raise UserError(f"coarse map {path}: no coarse class is given for {some(empty)}.")
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
    if not index.fine_names:
        raise UserError(f"coarse map {source}: the images have no class labels.")
    missing = [name for name in index.fine_names if name not in mapping]
    if missing:
        raise UserError(f"coarse map {source} has no entry for {len(missing)} classes: {some(missing, 20)}.")
    coarse_names = tuple(sorted({mapping[name] for name in index.fine_names}))
    coarse_of = encode((mapping[name] for name in index.fine_names), coarse_names, source)
    coarse = np.where(index.fine >= 0, coarse_of[index.fine], -1)
    return replace(index, coarse=coarse, coarse_names=coarse_names)
