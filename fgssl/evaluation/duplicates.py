"""Test images that are also training images, or nearly.

Exact duplicates have the same pixels. Near duplicates, such as a resized or recompressed copy, have nearly the same
thumbnail: candidates are the nearest training images by the correlation of grey thumbnails.
"""

from typing import NamedTuple

import numpy as np
import torch

from fgssl.data.index import Index
from fgssl.evaluation.search import search

CANDIDATES = 3  # nearest training images of each test image that are compared
CORRELATION = 0.99  # of the thumbnails of near duplicates, at least
DIFFERENCE = 6.0  # mean absolute difference of their grey values, 0 to 255, at most


class Pair(NamedTuple):
    """A test image and the training image that it equals or resembles.

    Attributes:
        test: row of the test image in the data set.
        train: row of the training image.
        exact: whether all pixels are equal.
        correlation: correlation of the grey thumbnails, -1 to 1.
    """

    test: int
    train: int
    exact: bool
    correlation: float


def find_duplicates(index: Index, digests: list[bytes], thumbnails_NT: np.ndarray) -> list[Pair]:
    """Pairs across the training and the test part: exact ones first, then by correlation.

    Args:
        index: the data set.
        digests: hash of the pixels of each of the N images; empty for an unreadable image.
        thumbnails_NT: [N, T] uint8 grey thumbnails.
    """
    readable = np.array([bool(digest) for digest in digests])
    train, test = (np.flatnonzero((index.split == part) & readable) for part in ("train", "test"))
    if not len(train) or not len(test):
        return []
    first_with = {digests[row]: int(row) for row in train[::-1]}
    exact = [Pair(int(row), first_with[digests[row]], True, 1.0) for row in test if digests[row] in first_with]
    rest = np.setdiff1d(test, [pair.test for pair in exact])
    return exact + _near(rest, train, thumbnails_NT)


def _near(test: np.ndarray, train: np.ndarray, thumbnails_NT: np.ndarray) -> list[Pair]:
    standard_NT = thumbnails_NT.astype(np.float32)
    standard_NT -= standard_NT.mean(axis=1, keepdims=True)
    varied = standard_NT.std(axis=1) > 0  # a uniform image correlates with nothing
    test, train = test[varied[test]], train[varied[train]]
    if not len(test) or not len(train):
        return []
    queries, gallery = (torch.from_numpy(standard_NT[rows]) for rows in (test, train))
    cosine_Qk, ids_Qk = (found.numpy() for found in search(queries, gallery, min(CANDIDATES, len(train))))
    pairs = []
    for row, cosine_k, ids_k in zip(test.tolist(), cosine_Qk, ids_Qk, strict=True):
        others_kT = thumbnails_NT[train[ids_k]].astype(int)
        difference_k = abs(others_kT - thumbnails_NT[row].astype(int)).mean(axis=1)
        alike = np.flatnonzero((cosine_k >= CORRELATION) & (difference_k <= DIFFERENCE))
        if len(alike):
            pairs.append(Pair(row, int(train[ids_k[alike[0]]]), False, float(cosine_k[alike[0]])))
    return sorted(pairs, key=lambda pair: -pair.correlation)
