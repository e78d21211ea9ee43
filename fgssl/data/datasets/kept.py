"""What was read from large annotation files, kept on the disk in arrays that all processes of a machine map.

The first process parses the files and writes the arrays into a folder below ``$FGSSL_CACHE``, by default
``~/.cache/fgssl``; the others wait for it, map the arrays, and share their memory. The folder's name holds a hash of
the files' paths, sizes and times, so that changed files are read again. It is written under another name and renamed
when it is complete: an incomplete one is never opened.
"""

import hashlib
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from fgssl.data.datasets import objects as reader
from fgssl.data.datasets.objects import ObjectIndex, Objects

LARGE = 2**24  # bytes of annotation files; fewer are parsed within a second


def kept_index(files: list[Path], module: str, parse: Callable[[], ObjectIndex]) -> ObjectIndex:
    """The index that ``parse`` reads from annotation files: kept on the disk where they are large.

    Where the disk cannot be written, the files are parsed, with a warning.

    Args:
        files: all that ``parse`` reads.
        module: name of the module whose code reads them.
        parse: reads the files.
    """
    if sum(file.stat().st_size for file in files if file.exists()) < LARGE:
        return parse()
    folder = caches() / f"annotations-{fingerprint(files, module)}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                write(parse(), folder)
        return opened(folder)
    except OSError as fault:
        warnings.warn(
            f"annotations cannot be kept in {folder.parent} ({fault}): each process reads them anew. Set FGSSL_CACHE "
            "to a folder that can be written.",
            stacklevel=2,
        )
        return parse()


def caches() -> Path:
    """Folder of what is kept: ``$FGSSL_CACHE``, or ``fgssl`` below the user's cache folder."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "fgssl"
    return Path(os.environ.get("FGSSL_CACHE") or usual).expanduser()


def fingerprint(files: list[Path], module: str) -> str:
    """Hash of the files' paths, sizes and times, and of the code that reads them; sixteen characters."""
    digest = hashlib.sha256()
    for file in files:
        status = file.stat() if file.exists() else None
        digest.update(f"{file.absolute()}\0{status and (status.st_size, status.st_mtime_ns)}\n".encode())
    for code in (sys.modules[module], reader):
        digest.update(Path(str(code.__file__)).read_bytes())
    return digest.hexdigest()[:16]


def write(index: ObjectIndex, folder: Path) -> None:
    """Write an index under another name, and rename it when it is complete."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir()
    try:
        arrays = {"paths": index.paths, "fine": index.fine, "split": index.split, "targets": index.targets}
        arrays |= {f"objects.{field.name}": getattr(index.objects, field.name) for field in fields(Objects)}
        for name, array in arrays.items():
            if array is not None:
                with (unfinished / f"{name}.npy").open("wb") as file:
                    np.save(file, array, allow_pickle=False)
                    file.flush()
                    os.fsync(file.fileno())  # the content must be on disk before the folder is renamed
        (unfinished / "names.json").write_text(json.dumps({"name": index.name, "fine_names": index.fine_names}))
        unfinished.rename(folder)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def opened(folder: Path) -> ObjectIndex:
    """The index in a folder; its arrays are mapped, and cannot be written."""
    names: dict[str, Any] = json.loads((folder / "names.json").read_text())
    arrays = {file.stem: mapped(file) for file in folder.glob("*.npy")}
    objects = Objects(**{field.name: arrays.pop(f"objects.{field.name}", None) for field in fields(Objects)})  # type: ignore[arg-type]
    return ObjectIndex(name=names["name"], fine_names=tuple(names["fine_names"]), objects=objects, **arrays)  # type: ignore[arg-type]


def mapped(file: Path) -> np.ndarray:
    """An array of a file, which the processes that map it share."""
    return np.asarray(np.load(file, mmap_mode="r"))
