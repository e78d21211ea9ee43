"""Embeddings on disk: a folder of .npz shards.

``<folder>/<part>-<rank>-<number>.npz`` hold ``embedding`` [n, F] float32, ``fine``, ``coarse``, ``index`` [n] int64 and
``paths`` [n] str; ``<folder>/about.json`` names the data set and its classes.
"""

import json
import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fgssl.errors import UserError


class Stored(NamedTuple):
    """N embedded images in ascending order of their data-set rows, each row once.

    Attributes:
        embedding: [N, F] float32 features.
        fine: [N] int64 fine labels.
        coarse: [N] int64 coarse labels; -1: no label.
        index: [N] int64 data-set rows.
        paths: [N] str paths of the images.
        about: content of ``about.json``.
    """

    embedding: np.ndarray
    fine: np.ndarray
    coarse: np.ndarray
    index: np.ndarray  # type: ignore[assignment]  # hides tuple.index
    paths: np.ndarray
    about: dict[str, Any]


COLUMNS = ("embedding", "fine", "coarse", "index", "paths")


def absolute(paths: np.ndarray) -> np.ndarray:
    """Absolute paths of files, which are found from any working directory; names of images that are in none stay."""
    return np.array([os.path.abspath(path) if os.path.isfile(path) else path for path in paths.tolist()], dtype=str)


def same_image(path: str, other: str) -> bool:
    """Whether two paths end in the same folder and file: those of a data set that was moved do."""
    return Path(path).parts[-2:] == Path(other).parts[-2:]


def write_shard(folder: Path, name: str, columns: dict[str, np.ndarray]) -> None:
    """Write one shard atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{name}.partial"
    with partial.open("wb") as file:
        np.savez(file, **columns)  # type: ignore[arg-type]
    partial.replace(folder / f"{name}.npz")


def read_embeddings(folder: str | Path) -> Stored:
    """Read all shards of a folder of embeddings, or of the run folder above it.

    Raises:
        UserError: the folder has no shards, or a shard is damaged.
    """
    folder = Path(folder)
    found = folder if (folder / "about.json").is_file() else folder / "embeddings"
    shards = sorted(found.glob("*.npz"))
    if not shards or not (found / "about.json").is_file():
        raise UserError(f"{folder} contains no embeddings. Write them with fgssl embed.")
    columns = [_read(path) for path in shards]
    joined = {name: np.concatenate([shard[name] for shard in columns]) for name in COLUMNS}
    _, first = np.unique(joined["index"], return_index=True)  # ranks repeat rows to have equal numbers
    about = json.loads((found / "about.json").read_text())
    return Stored(**{name: column[first] for name, column in joined.items()}, about=about)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            return {name: file[name] for name in COLUMNS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as fault:
        raise UserError(f"{path} is damaged ({fault}). Write the embeddings again.") from None
