"""Readers of the small file formats that data sets are published in: text tables, .mat files, pickles."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgssl.errors import UserError


def read_utf8(path: Path) -> str:
    """Content of a text file in UTF-8, without the byte order mark that Excel and Notepad begin it with.

    Raises:
        UserError: the file is in another encoding, or no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 ({error}). Save it as UTF-8, in Excel as CSV UTF-8.") from error


def read_table(path: Path, columns: int, header: int = 0) -> list[list[str]]:
    """Read a text table with one row per line and columns separated by white space.

    The last column is the rest of its line and may contain blanks. Empty lines are skipped.

    Args:
        path: the file.
        columns: number of columns of each line.
        header: number of leading lines to skip.

    Raises:
        UserError: a line has fewer columns, and the message names it; or the file is not text in UTF-8.
    """
    rows = []
    for number, line in enumerate(read_utf8(path).splitlines(), start=1):
        if number <= header or not line.strip():
            continue
        row = line.strip().split(maxsplit=columns - 1)
        if len(row) != columns:
            raise UserError(f"{path}, line {number}: expected {columns} columns, found '{line.strip()}'.")
        rows.append(row)
    return rows


def read_by_id(path: Path) -> dict[str, str]:
    """Read a table of ``<id> <value>`` lines.

    Raises:
        UserError: an id occurs twice in the file.
    """
    values: dict[str, str] = {}
    for key, value in read_table(path, columns=2):
        if key in values:
            raise UserError(f"{path}: id {key} occurs twice.")
        values[key] = value
    return values


def read_column(path: Path, ids: Sequence[str]) -> list[str]:
    """Values of a table of ``<id> <value>`` lines, in the order of ``ids``.

    Raises:
        UserError: the table lacks one of the ids, or has others.
    """
    values = read_by_id(path)
    odd = sorted(values.keys() ^ set(ids))
    if odd:
        raise UserError(
            f"{path} has {len(values)} lines for {len(ids)} images; without counterpart: id {', '.join(odd[:5])}"
            f"{' ...' if len(odd) > 5 else ''}."
        )
    return [values[key] for key in ids]


def read_mat(path: Path) -> dict[str, Any]:
    """Read a MATLAB file with its singleton dimensions dropped.

    Raises:
        UserError: the file is not a readable .mat file.
    """
    from scipy.io import loadmat

    with path.open("rb") as file:  # here, for the error of the system: SciPy's says nothing of permissions
        try:
            return loadmat(file, squeeze_me=True)
        except Exception as error:  # damaged files: IndexError, zlib.error, MatReadError and others of SciPy
            raise UserError(f"{path} is not a readable .mat file: {error}. Get it again.") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Loads plain values and numpy arrays only: an unrestricted pickle can run any code."""

    # both names of numpy's package: the CIFAR files were written long before numpy 2 renamed it
    allowed = {
        (module, name)
        for package in ("numpy.core", "numpy._core")
        for module, name in ((f"{package}.multiarray", "_reconstruct"), (f"{package}.numeric", "_frombuffer"))
    } | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}, which is no plain value or array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a pickled dict of plain values and numpy arrays (the CIFAR and ImageNet32 batches).

    Raises:
        UserError: the file is damaged, or holds anything else.
    """
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except Exception as error:  # damaged pickles raise nearly anything
        raise UserError(f"{path} is not a readable batch: {error}. Get it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a readable batch: it holds a {type(content).__name__}, not a dict.")
    return content


def read_batches(
    parts: dict[str, list[Path]], keys: tuple[str, ...]
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """Read pickled batches of 32 x 32 px images in the CIFAR format and join them.

    Args:
        parts: the batch files of each part, in order.
        keys: the label lists to read.

    Returns:
        pixels [N, 32, 32, 3] uint8, the labels [N] int64 by key, and the part [N] str of each image.

    Raises:
        UserError: a key is absent, the images have another size, or a label list is shorter or longer than the images,
            or holds anything but numbers.
    """
    pixels, split = [], []
    labels: dict[str, list[np.ndarray]] = {key: [] for key in keys}
    for part, path in [(part, path) for part, paths in parts.items() for path in paths]:
        batch = read_pickle(path)
        absent = [key for key in ("data", *keys) if key not in batch]
        if absent:
            raise UserError(f"{path}: no '{absent[0]}' in this batch; it has {', '.join(map(str, batch))}.")
        data = np.asarray(batch["data"])
        if data.dtype != np.uint8 or data.shape[1:] != (3 * 32 * 32,):
            raise UserError(
                f"{path}: 'data' is {data.dtype} of shape {data.shape}, not uint8 of {3 * 32 * 32} columns, images of "
                "32 x 32 px."
            )
        images = data.reshape(-1, 3, 32, 32)  # each row holds the red plane, then the green, then the blue
        pixels.append(images.transpose(0, 2, 3, 1))
        split.append(np.full(len(images), part))
        for key in keys:
            if len(batch[key]) != len(images):
                raise UserError(f"{path}: {len(batch[key])} {key} for {len(images)} images.")
            try:
                labels[key].append(np.asarray(batch[key], dtype=np.int64))
            except (TypeError, ValueError) as error:
                raise UserError(f"{path}: '{key}' must be whole numbers ({error}).") from error
    return np.concatenate(pixels), {key: np.concatenate(labels[key]) for key in keys}, np.concatenate(split)
