"""Exact ranking by cosine similarity: the same order for any block size, number of processes and device.

Shapes: Q queries, B queries of a block, G gallery rows, N rows, D dimensions, P pairs, T thresholds of a query.

A floating-point dot product depends on the order of summation, so the order of near-equal neighbours could differ
between devices or block sizes. Here the order is defined by keys: embeddings are rounded to integers, stored as
float64, and small enough that every dot product is exact; ties are broken by row. Most keys need not be computed:
products of float32 unit vectors decide every comparison whose cosines differ by more than the error of the products
(``float32_error``), and only the remaining pairs are compared by their keys.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import numpy as np
import threadpoolctl
import torch
from scipy.linalg.blas import sgemm
from torch import Tensor

MAX_ROWS = 2**22  # a key has 53 bits: 22 for the gallery row, 31 for the similarity
BLOCK = 2**24  # scores of a block of queries: 64 MiB
CHUNK = 128  # columns of a partial product
VECTORS = 2**22  # elements of fixed-point vectors at a time: 32 MiB
FEW = 16  # thresholds of a row that take less time one by one than sorting the values
KEPT = 2**25  # largest number of elements whose fixed-point vectors are kept: 256 MiB

Result = TypeVar("Result")


def slices(rows: int, at_once: int) -> Iterator[slice]:
    """Slices of ``at_once`` rows, at least one, that cover the rows."""
    step = max(1, at_once)
    return (slice(start, start + step) for start in range(0, rows, step))


def ranges(start: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Places ``start`` to ``start + size - 1`` of each range, one range after the other.

    Returns:
        Number of the range, and place, one for each place of all ranges.
    """
    owner = torch.arange(len(start), device=start.device).repeat_interleave(size)
    return owner, torch.arange(len(owner), device=start.device) + (start - size.cumsum(0) + size)[owner]


class Rows:
    """Embeddings prepared for ranking: float32 unit vectors, and fixed-point vectors of any rows on demand.

    The memory beside the embeddings is that of the unit vectors, and up to 256 MiB.

    Args:
        embeddings: [N, D] finite, of any norm. A row of zeros has similarity 0 to every row.
        chunk: columns of a partial product.

    Attributes:
        units: unit vectors in float32, a tensor [N, C] for each ``chunk`` columns.
        inverse_length_N: inverse norms of the fixed-point vectors, in float64.

    Raises:
        ValueError: more than 2^22 rows.
    """

    def __init__(self, embeddings: Tensor, chunk: int = CHUNK):
        if len(embeddings) > MAX_ROWS:
            raise ValueError(f"{len(embeddings)} embeddings; at most {MAX_ROWS} can be ranked")
        if embeddings.device.type == "mps":  # has no float64
            embeddings = embeddings.cpu()
        self.embeddings = embeddings.detach()
        self.chunk = chunk
        self.units = [
            embeddings.new_empty(columns.shape, dtype=torch.float32) for columns in self.embeddings.split(chunk, dim=1)
        ]
        self.inverse_length_N = embeddings.new_empty(len(embeddings), dtype=torch.float64)
        self._power_N1 = self.inverse_length_N.new_empty(len(embeddings), 1)
        self._vectors_ND = None
        if embeddings.numel() <= KEPT:
            self._vectors_ND = self.inverse_length_N.new_empty(embeddings.shape)
        for some in slices(len(embeddings), VECTORS // embeddings.shape[1]):
            # Scaling by a power of two is exact. Norms below 1.41 keep dot products below 2^53, the range of exact
            # float64 integers; the factor 0.7 keeps unit-norm rows, the usual case, away from a change of the power.
            length_n1 = self.embeddings[some].double().norm(dim=1, keepdim=True) / 0.7
            length_n1 = length_n1.clamp(min=torch.finfo(torch.float64).tiny)
            self._power_N1[some] = length_n1 / torch.frexp(length_n1).mantissa
            vectors_nD = self._round(some)
            if self._vectors_ND is not None:
                self._vectors_ND[some] = vectors_nD
            inverse_n = 1 / vectors_nD.square().sum(dim=1).clamp(min=1).sqrt()
            self.inverse_length_N[some] = inverse_n
            unit_nD = vectors_nD.mul_(inverse_n[:, None])
            for unit_NC, unit_nC in zip(self.units, unit_nD.split(chunk, dim=1), strict=True):
                unit_NC[some] = unit_nC

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def device(self) -> torch.device:
        return self.embeddings.device

    @property
    def dim(self) -> int:
        return self.embeddings.shape[1]

    def vectors(self, ids: Tensor | slice) -> Tensor:
        """Integer vectors of the same direction as the embeddings, whose dot products are exact.

        Returns:
            [..., D] for ids of shape [...]: 26-bit integers stored as float64, each vector of norm 0.7 to 1.4 times
            2^26, with the cosines of the embeddings to about 1e-8 (float32 precision).
        """
        return self._round(ids) if self._vectors_ND is None else self._vectors_ND[ids]

    def _round(self, ids: Tensor | slice) -> Tensor:
        return (self.embeddings[ids].double() / self._power_N1[ids]).mul_(2**27).round_()


def keys_of(queries: Rows, query_B: Tensor, gallery: Rows, ids_G: Tensor | None = None) -> Tensor:
    """Keys [B, G] of gallery rows, all of them by default, for queries.

    Nearer rows have higher keys; the keys of a query are unique.
    """
    row_G = torch.arange(len(gallery), device=gallery.device) if ids_G is None else ids_G
    vectors_BD = queries.vectors(query_B)
    keys_BG = vectors_BD.new_empty(len(query_B), len(row_G))
    for some in slices(len(row_G), VECTORS // gallery.dim):
        ids = some if ids_G is None else ids_G[some]  # a slice needs no copy
        dots_Bn = vectors_BD @ gallery.vectors(ids).T
        keys_BG[:, some] = _keys_from_dots(dots_Bn, gallery.inverse_length_N[ids], row_G[some])
    return keys_BG


def keys_of_pairs(queries: Rows, query_P: Tensor, gallery: Rows, id_P: Tensor) -> Tensor:
    """Keys [P] of single pairs of a query and a gallery row."""
    keys_P = torch.empty_like(id_P, dtype=torch.float64)
    for some in slices(len(id_P), VECTORS // gallery.dim):
        dots = queries.vectors(query_P[some]).mul_(gallery.vectors(id_P[some])).sum(dim=1)
        keys_P[some] = _keys_from_dots(dots, gallery.inverse_length_N[id_P[some]], id_P[some])
    return keys_P


def _keys_from_dots(dots: Tensor, inverse_length: Tensor, row: Tensor) -> Tensor:
    """Convert exact dot products to keys, in place.

    A key is the cosine, rounded to multiples of 2^-30 so that exact ties remain ties, times the norm of the query,
    minus row / 2^22, which puts the lower row first among ties.

    Args:
        dots: [..., G] dot products; overwritten.
        inverse_length: [G] inverse norms of the gallery vectors.
        row: [G] gallery rows.
    """
    return dots.mul_(inverse_length * 2**4).round_().sub_(row / MAX_ROWS)  # 2^26 (norm of the query) x 2^4 = 2^30


def cosine(keys: Tensor, inverse_length: Tensor) -> Tensor:
    """Cosine similarities from keys, to 2^-30; ``inverse_length`` holds the inverse norms of the queries."""
    return keys.ceil() / 2**4 * inverse_length


def queries_at_once(gallery: Rows) -> int:
    """Queries of a block: their scores take 64 MiB, or a quarter of the memory of a large gallery."""
    return min(256, max(64, BLOCK // len(gallery), gallery.dim // 4))


def scores_in_float32(queries: Rows, query_B: Tensor, gallery: Rows, out: Tensor | None = None) -> Tensor:
    """Cosines [B, G] in float32, with an error below ``float32_error``; written to ``out``, if given.

    Partial products of ``chunk`` columns are added one after the other, which makes the bound of the error smaller.
    """
    units = [(unit_QC[query_B], unit_GC) for unit_QC, unit_GC in zip(queries.units, gallery.units, strict=True)]
    scores_BG = units[0][0].new_empty(len(query_B), len(gallery)) if out is None else out
    if in_numpy(scores_BG):
        _products_in_blas(units, scores_BG)
        return scores_BG
    with _whole_float32(scores_BG.device):
        for number, (unit_BC, unit_GC) in enumerate(units):
            if number:
                scores_BG.add_(unit_BC @ unit_GC.T)
            else:
                torch.mm(unit_BC, unit_GC.T, out=scores_BG)
    return scores_BG


def _products_in_blas(units: list[tuple[Tensor, Tensor]], scores_BG: Tensor) -> None:
    """Write the sum of the products of unit vectors to ``scores_BG``.

    SciPy's BLAS adds a product to the sum while it is in the cache. On an AMD processor it takes two thirds of the time
    of torch's, and no setting of torch lowers its precision.
    """
    scores_GB = scores_BG.numpy().T  # BLAS has the columns one after the other; of another layout it makes a copy
    with threadpoolctl.threadpool_limits(torch.get_num_threads(), user_api="blas"):
        for number, (unit_BC, unit_GC) in enumerate(units):
            added_to = min(number, 1)
            sgemm(1.0, unit_GC.numpy().T, unit_BC.numpy().T, added_to, scores_GB, trans_a=True, overwrite_c=True)


def float32_error(dim: int, chunk: int = CHUNK) -> float:
    """Bound of the difference between ``scores_in_float32`` and ``cosine``, for any order of summation.

    With ``chunk`` equal to ``dim``, the bound of a single product of float32 unit vectors.

    A sum of n products of float32 numbers has an error below n u / (1 - n u) times the product of the norms, with unit
    roundoff u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, Sec. 3.1). A term here
    passes through the sum of its chunk and the sum over chunks. Eight more u cover the rounding of the two unit
    vectors, of the key and of a float32 threshold, which together are below four.
    """
    terms = min(dim, chunk) + -(-dim // chunk)
    return 2**-24 * (terms / (1 - terms * 2**-24) + 8)


@contextmanager
def _whole_float32(device: torch.device) -> Iterator[None]:
    """Matrix products in float32 without TF32, bfloat16 or autocast, whatever the settings are."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    autocast = torch.is_autocast_enabled(device.type)
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False) if autocast else nullcontext():
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def in_numpy(tensor: Tensor) -> bool:
    """Whether NumPy, which sorts and searches many times as fast as torch on the CPU, can do the work."""
    return tensor.device.type == "cpu"


def count_above(values_BG: Tensor, thresholds_BT: Tensor) -> Tensor:
    """Number of values of each row above each of its thresholds [B, T]."""
    if not in_numpy(values_BG):
        return values_BG.shape[1] - torch.searchsorted(values_BG.sort(dim=1).values, thresholds_BT, right=True)
    values, thresholds = values_BG.numpy(), thresholds_BT.numpy()

    def above_row(row: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
        high = row[row > thresholds.min(initial=np.inf)]  # few, where the relevant items are near
        if np.isfinite(thresholds).sum() <= FEW:
            return np.array([np.count_nonzero(high > one) if one < np.inf else 0 for one in thresholds])
        return len(high) - np.searchsorted(np.sort(high), thresholds, side="right")

    def count(rows: slice) -> np.ndarray:
        counted = (above_row(row, of_row) for row, of_row in zip(values[rows], thresholds[rows], strict=True))
        return np.array(list(counted), dtype=np.int64)

    return torch.from_numpy(np.concatenate(_in_threads(count, len(values))))


def pairs_between(scores_BG: Tensor, query_P: Tensor, low_P: Tensor, high_P: Tensor) -> tuple[Tensor, Tensor]:
    """Scores in windows: low < score <= high in the row ``query``.

    Returns:
        Numbers of windows and columns of the scores, one for each score in a window.
    """
    if in_numpy(scores_BG):
        scores, low, high = scores_BG.numpy(), low_P.numpy(), high_P.numpy()

        def columns(windows: slice) -> list[np.ndarray]:
            rows = zip(query_P[windows].tolist(), low[windows], high[windows], strict=True)
            return [np.flatnonzero((scores[query] > below) & (scores[query] <= top)) for query, below, top in rows]

        found = [ids for some in _in_threads(columns, len(low)) for ids in some]
        window_W = np.repeat(np.arange(len(found)), np.array([len(ids) for ids in found], dtype=np.int64))
        return torch.from_numpy(window_W), torch.from_numpy(np.concatenate([window_W[:0], *found]))
    parts = [(query_P[:0], query_P[:0])]
    for some in slices(len(query_P), BLOCK // scores_BG.shape[1]):
        scores_pG = scores_BG[query_P[some]]
        window, column = ((scores_pG > low_P[some, None]) & (scores_pG <= high_P[some, None])).nonzero(as_tuple=True)
        parts.append((window + some.start, column))
    return torch.cat([window for window, _ in parts]), torch.cat([column for _, column in parts])


def _in_threads(function: Callable[[slice], Result], rows: int) -> list[Result]:
    """Results of a NumPy function, which releases the GIL, for an equal share of the rows in each thread."""
    number = torch.get_num_threads()
    with ThreadPoolExecutor(number) as threads:
        return list(threads.map(function, slices(rows, -(-rows // number))))
