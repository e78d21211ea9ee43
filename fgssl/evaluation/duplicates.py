"""Test images that are also training images, or nearly; without both parts, images that are there twice.

Exact duplicates have the same pixels. Near duplicates, such as a resized or recompressed copy, have nearly the same
thumbnail: candidates are the nearest images by the correlation of grey thumbnails.
"""

from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from fgssl.data.index import Index
from fgssl.evaluation.search import search
from fgssl.metrics.ranking import slices

CANDIDATES = 3  # nearest images of each image that are compared
CORRELATION = 0.99  # of the thumbnails of near duplicates, at least
DIFFERENCE = 6.0  # mean absolute difference of their grey values, 0 to 255, at most
AT_ONCE = 8192  # images whose candidates are searched between two steps of the progress bar


class Pair(NamedTuple):
    """An image and another that it equals or resembles.

    Attributes:
        row: row of the image in the data set: a test image, where there is a test part.
        other: row of the other: a training image, where there is a test part, else an earlier image.
        exact: whether all pixels are equal.
        correlation: correlation of the grey thumbnails, -1 to 1.
    """

    row: int
    other: int
    exact: bool
    correlation: float


def compares_parts(index: Index) -> bool:
    """Whether test images are compared with training images, and not all images with one another."""
    return {"train", "test"} <= set(index.split)


def find_duplicates(
    index: Index, digests: list[bytes], thumbnails_NT: np.ndarray, console: Console | None = None
) -> list[Pair]:
    """Pairs across the training and the test part, or among all images where one of these is missing.

    Args:
        index: the data set.
        digests: hash of the pixels of each of the N images; empty for an unreadable image.
        thumbnails_NT: [N, T] uint8 grey thumbnails.
        console: console of the progress bar; None: no bar.

    Returns:
        The exact pairs, then the near ones by correlation. Of several equal images each is paired with the first.
    """
    readable = np.array([bool(digest) for digest in digests])
    across = compares_parts(index)
    others = np.flatnonzero(readable & (index.split == "train")) if across else np.flatnonzero(readable)
    rows = np.flatnonzero(readable & (index.split == "test")) if across else others
    first_with = {digests[row]: int(row) for row in others[::-1]}
    exact = [
        Pair(int(row), first, True, 1.0)
        for row in rows
        if (first := first_with.get(digests[row])) is not None and first != row
    ]
    copies = [pair.row for pair in exact]
    return exact + _near(np.setdiff1d(rows, copies), np.setdiff1d(others, copies), thumbnails_NT, console)


def _near(rows: np.ndarray, others: np.ndarray, thumbnails_NT: np.ndarray, console: Console | None) -> list[Pair]:
    standard_NT = thumbnails_NT.astype(np.float32)
    standard_NT -= standard_NT.mean(axis=1, keepdims=True)
    varied = standard_NT.std(axis=1) > 0  # a uniform image correlates with nothing
    rows, others = rows[varied[rows]], others[varied[others]]
    itself = torch.arange(len(rows)) if np.array_equal(rows, others) else None
    count = min(CANDIDATES, len(others) - (itself is not None))
    if not len(rows) or count < 1:
        return []
    queries, gallery = (torch.from_numpy(standard_NT[each]) for each in (rows, others))
    pairs = {}  # by both rows: two images of one part may find each other
    parts = list(slices(len(rows), AT_ONCE))
    for some in track(parts, "looking for near duplicates", console=console, disable=console is None):
        exclude = None if itself is None else itself[some]
        cosine_Qk, ids_Qk = (found.numpy() for found in search(queries[some], gallery, count, exclude=exclude))
        for row, cosine_k, ids_k in zip(rows[some].tolist(), cosine_Qk, ids_Qk, strict=True):
            found_k = others[ids_k]
            difference_k = abs(thumbnails_NT[found_k].astype(int) - thumbnails_NT[row].astype(int)).mean(axis=1)
            alike = np.flatnonzero((cosine_k >= CORRELATION) & (difference_k <= DIFFERENCE))
            if len(alike):
                other, cosine = int(found_k[alike[0]]), float(cosine_k[alike[0]])
                pairs[frozenset((row, other))] = Pair(row, other, False, cosine)
    return sorted(pairs.values(), key=lambda pair: -pair.correlation)
