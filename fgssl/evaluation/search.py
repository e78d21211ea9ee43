"""Exact nearest neighbours by cosine similarity, with FAISS or torch and identical results.

Shapes: Q queries, B queries per block, G gallery rows, D dimensions, C candidates.
"""

import warnings

import faiss
import numpy as np
import torch
from torch import Tensor

from fgssl.metrics.checks import check_embeddings
from fgssl.metrics.ranking import (
    CHUNK,
    Rows,
    cosine,
    float32_error,
    keys_of,
    keys_of_pairs,
    queries_at_once,
    scores_in_float32,
    slices,
)

SPARE = 32  # additional candidates, so that near-ties at rank k are resolved exactly
LONG = 128  # largest k for which FAISS with re-scoring is faster than torch
GPU_LIMIT = 2048  # largest number of neighbours of a GPU index of FAISS
FEW = 128  # keys of candidates take less time than those of all rows if the gallery has this many rows a candidate
PAIRS = 2**20  # candidates that are compared by their keys at a time
AT_ONCE = 2**16  # rows that are copied to FAISS's index on a GPU at a time


def search(
    queries: Tensor, gallery: Tensor, k: int, *, exclude: Tensor | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The k nearest gallery rows of each query, nearest first; the lower row first among ties.

    The result is bit-identical for both backends, any number of queries at a time and any device.

    Args:
        queries: [Q, D] float, of any length.
        gallery: [G, D] float, on the same device.
        k: number of neighbours.
        exclude: [Q] int, gallery row that is excluded for each query, such as the query itself; None: no row.
        backend: ``"faiss"``, ``"torch"``, or ``"auto"``: torch for more than 128 neighbours or on a GPU that FAISS
            cannot use, else FAISS.

    Returns:
        Cosine similarities [Q, k], float64 in steps of 2^-30, and gallery rows [Q, k], int64, on the queries' device.

    Raises:
        ValueError: unknown backend, empty input, NaN or Inf, different dimensions, or k out of range.
    """
    check_embeddings(queries, name="queries")
    check_embeddings(gallery, name="gallery rows")
    available = len(gallery) - (exclude is not None)
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions, the gallery {gallery.shape[1]}")
    if not 1 <= k <= available:
        raise ValueError(f"k must be 1 to {available}, the number of rows to find, got {k}")
    if backend not in ("auto", "faiss", "torch"):
        raise ValueError(f"backend must be 'auto', 'faiss' or 'torch', got {backend!r}")

    count = min(k + 1 + SPARE, len(gallery))  # one candidate may be excluded
    if backend == "auto":
        served = gallery.device.type in ("cpu", "mps") or _on_gpu(gallery.device, count)
        backend = "faiss" if served and k <= LONG else "torch"
    chunk = gallery.shape[1] if backend == "faiss" else CHUNK  # FAISS needs whole rows
    rows_G = Rows(gallery, chunk)
    rows_Q = rows_G if queries is gallery else Rows(queries, chunk)
    exclude_Q = torch.full((len(queries),), -1) if exclude is None else exclude
    exclude_Q = exclude_Q.to(rows_G.device)
    if backend == "torch" and count * FEW >= len(gallery):
        keys_Qk, ids_Qk = _best_of_all(torch.arange(len(queries), device=rows_G.device), rows_Q, rows_G, k, exclude_Q)
    else:
        candidates = (_faiss_candidates if backend == "faiss" else _torch_candidates)(rows_Q, rows_G, count)
        error = float32_error(rows_G.dim, chunk)
        keys_Qk, ids_Qk = _best_candidates(*candidates, error, rows_Q, rows_G, k, exclude_Q)
    return cosine(keys_Qk, rows_Q.inverse_length_N[:, None]).to(queries.device), ids_Qk.to(queries.device)


def _best_of_all(query_N: Tensor, queries: Rows, gallery: Rows, k: int, exclude_Q: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and rows [N, k] of the nearest gallery rows by the keys of all."""
    found = []
    for query_B in query_N.split(queries_at_once(gallery)):
        keys_BG = keys_of(queries, query_B, gallery)
        has_one = exclude_Q[query_B] >= 0
        keys_BG[has_one.nonzero()[:, 0], exclude_Q[query_B][has_one]] = -torch.inf
        found.append(keys_BG.topk(k, dim=1))
    return torch.cat([best.values for best in found]), torch.cat([best.indices for best in found])


def _best_candidates(
    score_QC: Tensor,
    id_QC: Tensor,
    error: float,
    queries: Rows,
    gallery: Rows,
    k: int,
    exclude_Q: Tensor,
) -> tuple[Tensor, Tensor]:
    """Keys and rows [Q, k] of the nearest candidates by their keys; from all rows where a candidate may be missing.

    Args:
        score_QC: float32 cosines of the candidates of each query, descending.
        id_QC: gallery rows of the candidates.
        error: bound of the error of the scores.
        queries: all queries.
        gallery: the gallery.
        k: number of neighbours.
        exclude_Q: gallery row to leave out for each query, or -1.
    """
    candidates = id_QC.shape[1]
    keys_Qk = queries.inverse_length_N.new_empty(len(queries), k)
    ids_Qk = id_QC.new_empty(len(queries), k)
    sure_Q = torch.ones(len(queries), dtype=torch.bool, device=id_QC.device)
    for some in slices(len(queries), PAIRS // candidates):
        id_BC = id_QC[some]
        query_B = torch.arange(some.start, some.start + len(id_BC), device=id_BC.device)
        query_P = query_B.repeat_interleave(candidates)
        keys_BC = keys_of_pairs(queries, query_P, gallery, id_BC.flatten()).view_as(id_BC)
        cosine_BC = cosine(keys_BC, queries.inverse_length_N[some, None])
        keys_BC.masked_fill_(id_BC == exclude_Q[some, None], -torch.inf)
        keys_Qk[some], place_Bk = keys_BC.topk(k, dim=1)
        ids_Qk[some] = id_BC.gather(1, place_Bk)
        if candidates < len(gallery):
            # The other rows score at most as the last candidate; a larger error is one of a reduced precision.
            last_B = cosine(keys_Qk[some, -1], queries.inverse_length_N[some])
            sure_Q[some] = last_B > score_QC[some, -1] + error
            sure_Q[some] &= ((cosine_BC - score_QC[some]).abs() <= error).all(dim=1)
    rest = (~sure_Q).nonzero()[:, 0]
    if len(rest):
        keys_Qk[rest], ids_Qk[rest] = _best_of_all(rest, queries, gallery, k, exclude_Q)
    return keys_Qk, ids_Qk


def _torch_candidates(queries: Rows, gallery: Rows, count: int) -> tuple[Tensor, Tensor]:
    """Cosines in float32 and rows [Q, count] of the gallery rows with the highest scores, descending."""
    found = [
        scores_in_float32(queries, query_B, gallery).topk(count, dim=1)
        for query_B in torch.arange(len(queries), device=gallery.device).split(queries_at_once(gallery))
    ]
    return torch.cat([best.values for best in found]), torch.cat([best.indices for best in found])


def _faiss_candidates(queries: Rows, gallery: Rows, count: int) -> tuple[Tensor, Tensor]:
    """As ``_torch_candidates``, from FAISS: on the GPU of the rows, or on the CPU where it cannot have the memory.

    The unit vectors are in one chunk.
    """
    found = _gpu_candidates(queries, gallery, count) if _on_gpu(gallery.device, count) else None
    if found is None:
        unit_QD, unit_GD = (rows.units[0].cpu().numpy() for rows in (queries, gallery))
        found = faiss.knn(unit_QD, unit_GD, count, metric=faiss.METRIC_INNER_PRODUCT)
    score_QC, id_QC = (torch.from_numpy(array).to(gallery.device) for array in found)
    return score_QC, id_QC


def _gpu_candidates(queries: Rows, gallery: Rows, count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Scores and rows [Q, count] from an index on the GPU; None, with one warning a process, if it fails."""
    torch.cuda.empty_cache()  # FAISS cannot use memory that torch keeps for itself
    try:
        resources, device = faiss.StandardGpuResources(), gallery.device.index
        index = faiss.index_cpu_to_gpu(resources, device, faiss.IndexFlatIP(gallery.dim))
        for some in slices(len(gallery), AT_ONCE):
            index.add(gallery.units[0][some].cpu().numpy())
        parts = [index.search(queries.units[0][some].cpu().numpy(), count) for some in slices(len(queries), AT_ONCE)]
    except RuntimeError as fault:
        _warn_once(str(fault))
        return None
    return np.concatenate([score for score, _ in parts]), np.concatenate([ids for _, ids in parts])


_warned = False


def _warn_once(reason: str) -> None:
    global _warned
    if not _warned:
        warnings.warn(f"FAISS searches on the CPU: its search on the GPU failed ({reason}).", stacklevel=2)
    _warned = True


def _on_gpu(device: torch.device, count: int) -> bool:
    """Whether FAISS can search for ``count`` neighbours on this GPU."""
    return device.type == "cuda" and device.index < faiss.get_num_gpus() and count <= GPU_LIMIT
