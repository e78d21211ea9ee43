"""Optional cache of decoded and shrunk images in a memory-mapped file.

The folder of a data set holds ``images.u8``, the pixels of all images in a row, and ``shapes.npy``, [N, 2] heights and
widths. Its name contains a hash of all paths, file sizes and modification times, so that a changed data set gets a new
cache. It is built under another name and renamed when complete: an incomplete cache is never opened.
"""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fgssl.data.images import open_image, to_rgb
from fgssl.data.index import Index
from fgssl.data.workers import cores
from fgssl.errors import UserError

SIDE = 256  # px, shorter side; enough for views of 224 px


class Cache:
    """The decoded images of one index, read-only.

    Args:
        folder: folder of a complete cache.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.shapes = np.load(folder / "shapes.npy")
        self.ends = np.cumsum(self.shapes.prod(axis=1) * 3)
        # "c" (copy on write): torch asks for writable memory; the file is never changed
        self.pixels = np.memmap(folder / "images.u8", dtype=np.uint8, mode="c")

    def __reduce__(self):
        return Cache, (self.folder,)  # worker processes map the file again instead of copying its content

    def image(self, row: int) -> Tensor | None:
        """[3, H, W] uint8 pixels, or None where the file could not be read when the cache was built."""
        height, width = self.shapes[row]
        if height == 0:
            return None
        end = self.ends[row]
        flat = torch.from_numpy(self.pixels[end - 3 * height * width : end])
        return flat.view(height, width, 3).permute(2, 0, 1)


def open_cache(index: Index, root: str | Path, side: int = SIDE, workers: int | None = None) -> Cache:
    """Open the cache of an index under ``root``; build it first where there is none.

    Processes that open the same cache at the same time wait for the first one to build it.

    Args:
        index: index of the images.
        root: folder of all caches.
        side: shorter side of the cached images, px; smaller images are kept as they are.
        workers: number of decoding processes; None: number of CPU cores that this job may use.

    Raises:
        UserError: the folder cannot be written.
    """
    root = Path(root).expanduser()
    folder = root / f"{index.name}-{side}-{fingerprint(index)}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                _build(index, folder, side, cores() if workers is None else workers)
        return Cache(folder)
    except OSError as fault:  # no permission, a full disk
        raise UserError(f"data.cache: {root} cannot be used ({fault}). Name another folder.") from fault


def fingerprint(index: Index) -> str:
    """Hash of all paths, file sizes and modification times, sixteen characters."""
    digest = hashlib.sha256()
    for path in index.paths.tolist():
        try:
            status = os.stat(path)
            state = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:
            state = "missing"
        digest.update(f"{path}\0{state}\n".encode())
    return digest.hexdigest()[:16]


def _build(index: Index, folder: Path, side: int, workers: int) -> None:
    """Write the cache under another name, and rename it when it is complete."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a build that was interrupted
    unfinished.mkdir()
    # A DataLoader reads a bounded number of images ahead: all decoded images would not fit into memory.
    loader = DataLoader(_Shrunk(index.paths, side), batch_size=None, num_workers=workers)
    shapes = np.zeros((len(index), 2), dtype=np.int64)
    with open(unfinished / "images.u8", "wb") as file:
        text = f"Decoding {len(index)} images of {index.name} into {folder}"
        for row, image_HW3 in enumerate(track(loader, text, total=len(index), console=Console(stderr=True))):
            shapes[row] = image_HW3.shape[:2]
            file.write(image_HW3.numpy().data)
        file.flush()
        os.fsync(file.fileno())
    np.save(unfinished / "shapes.npy", shapes)
    unfinished.rename(folder)


class _Shrunk(Dataset):
    """[H, W, 3] uint8 images whose shorter side is at most ``side``; [0, 0, 3] for a file that cannot be read."""

    def __init__(self, paths: np.ndarray, side: int):
        self.paths, self.side = paths, side

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> np.ndarray:
        try:
            with open_image(self.paths[row]) as file:
                width, height = file.size
                scale = min(1.0, self.side / min(width, height))
                size = (max(1, round(width * scale)), max(1, round(height * scale)))
                file.draft(None, size)
                image = to_rgb(file)
        except UserError:
            return np.zeros((0, 0, 3), dtype=np.uint8)
        return np.array(image if image.size == size else image.resize(size, Image.Resampling.BILINEAR))
