"""What was read from many or large annotation files, kept on the disk in arrays that all processes of a machine map.

The first process reads the files and writes the arrays into a folder below ``$FGSSL_CACHE``, by default
``~/.cache/fgssl``; the others wait for it, map the arrays, and share their memory. The folder's name holds a hash of
the files' paths, sizes and times, so that changed files are read again. It is written under another name and renamed
when it is complete: an incomplete one is never opened.
"""

import hashlib
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

LARGE = 2**24  # bytes of annotation files; fewer are read within a few seconds

Arrays = dict[str, np.ndarray]


def kept_arrays(
    files: Iterable[Path | os.DirEntry], read: Callable[[], Arrays], code: Sequence[str], names: Sequence[str] = ()
) -> Arrays:
    """The arrays that ``read`` makes of annotation files: kept on the disk where the files are large together.

    Where the disk cannot be written, or a file is missing, the files are read.

    Args:
        files: all that ``read`` reads, in the same order each time.
        read: reads the files.
        code: names of the modules whose code reads them.
        names: what else the arrays depend on, such as the images that they describe.
    """
    try:
        state, size = fingerprint(files, code, names)
    except FileNotFoundError:
        return read()  # which says what is missing
    if size < LARGE:
        return read()
    folder = caches() / f"annotations-{state}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                write(read(), folder)
        return opened(folder)
    except OSError as fault:
        warnings.warn(
            f"annotations cannot be kept in {folder.parent} ({fault}): each process reads them anew. Set FGSSL_CACHE "
            "to a folder that can be written.",
            stacklevel=2,
        )
        return read()


def caches() -> Path:
    """Folder of what is kept: ``$FGSSL_CACHE``, or ``fgssl`` below the user's cache folder."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "fgssl"
    return Path(os.environ.get("FGSSL_CACHE") or usual).expanduser()


def fingerprint(files: Iterable[Path | os.DirEntry], code: Sequence[str], names: Sequence[str] = ()) -> tuple[str, int]:
    """Hash of the files' paths, sizes and times, of the code and of the names, sixteen characters; bytes of the files.

    Raises:
        FileNotFoundError: a file is missing.
    """
    digest, size = hashlib.sha256(), 0
    for file in files:
        status = file.stat()
        size += status.st_size
        digest.update(f"{os.path.abspath(file)}\0{status.st_size} {status.st_mtime_ns}\n".encode())
    for module in code:
        digest.update(Path(str(sys.modules[module].__file__)).read_bytes())
    for name in names:
        digest.update(f"{name}\n".encode())
    return digest.hexdigest()[:16], size


def write(arrays: Mapping[str, np.ndarray], folder: Path) -> None:
    """Write arrays under another name, and rename the folder when it is complete."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir()
    try:
        for name, array in arrays.items():
            with (unfinished / f"{name}.npy").open("wb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())  # the content must be on disk before the folder is renamed
        unfinished.rename(folder)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def opened(folder: Path) -> Arrays:
    """The arrays in a folder; they are mapped, shared by the processes that map them, and cannot be written."""
    return {file.stem: np.asarray(np.load(file, mmap_mode="r")) for file in folder.glob("*.npy")}
