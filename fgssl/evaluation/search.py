"""Exact nearest neighbours by cosine similarity, with FAISS or torch and identical results.

Shapes: Q queries, B queries per block, G gallery rows, D dimensions, C candidates.
"""

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fgssl.metrics.checks import check_embeddings
from fgssl.metrics.ranking import cosine, fixed_point, key_blocks, keys_from_dots

SPARE = 32  # additional candidates of FAISS, so that near-ties at rank k are resolved exactly
LONG = 128  # largest k for which FAISS with re-scoring is faster than torch
GPU_LIMIT = 2048  # largest number of neighbours of a GPU index of FAISS
BLOCK = 2**24  # elements of candidate vectors in memory at a time: 128 MiB


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

    x_QD, inverse_length_Q = fixed_point(queries)
    g_GD, inverse_length_G = fixed_point(gallery)
    exclude_Q = torch.full((len(queries),), -1) if exclude is None else exclude
    exclude_Q = exclude_Q.to(x_QD.device)
    if backend == "auto":
        faiss_serves = x_QD.device.type == "cpu" or _on_gpu(x_QD.device, k)
        backend = "faiss" if faiss_serves and k <= LONG else "torch"
    if backend == "torch":
        keys_Qk, ids_Qk = _torch_search(x_QD, g_GD, inverse_length_G, k, exclude_Q)
    else:
        keys_Qk, ids_Qk = _faiss_search(x_QD, inverse_length_Q, g_GD, inverse_length_G, k, exclude_Q)
    return cosine(keys_Qk, inverse_length_Q[:, None]).to(queries.device), ids_Qk.to(queries.device)


def _torch_search(
    x_QD: Tensor, g_GD: Tensor, inverse_length_G: Tensor, k: int, exclude_Q: Tensor
) -> tuple[Tensor, Tensor]:
    """Keys and rows [Q, k] from the full matrix of keys, computed in blocks."""
    row_G = torch.arange(len(g_GD), device=g_GD.device)
    found = []
    for rows, keys_QG in key_blocks(x_QD, g_GD, inverse_length_G, torch.arange(len(x_QD), device=x_QD.device)):
        keys_QG.masked_fill_(row_G == exclude_Q[rows, None], -torch.inf)
        found.append(keys_QG.topk(k, dim=1))
    return torch.cat([best.values for best in found]), torch.cat([best.indices for best in found])


def _faiss_search(
    x_QD: Tensor, inverse_length_Q: Tensor, g_GD: Tensor, inverse_length_G: Tensor, k: int, exclude_Q: Tensor
) -> tuple[Tensor, Tensor]:
    """Keys and rows [Q, k] of FAISS's candidates, re-scored exactly; from torch where a candidate may be missing."""
    index = _flat_index(g_GD, k)
    score, candidate = index.search(_unit_rows(x_QD), min(k + 1 + SPARE, len(g_GD)))
    score_QC, candidate_QC = torch.from_numpy(score).to(x_QD.device), torch.from_numpy(candidate).to(x_QD.device)

    keys_Qk, ids_Qk = _best_of(candidate_QC, x_QD, g_GD, inverse_length_G, k, exclude_Q)
    if candidate_QC.shape[1] == len(g_GD):
        return keys_Qk, ids_Qk
    # Rows that FAISS did not return score at most as the last candidate plus the error of a float32 dot product.
    error = (x_QD.shape[1] + 4) * 2**-24
    rest = (cosine(keys_Qk[:, -1], inverse_length_Q) <= score_QC[:, -1] + error).nonzero()[:, 0]
    if len(rest):
        keys_Qk[rest], ids_Qk[rest] = _torch_search(x_QD[rest], g_GD, inverse_length_G, k, exclude_Q[rest])
    return keys_Qk, ids_Qk


def _best_of(
    candidate_QC: Tensor, x_QD: Tensor, g_GD: Tensor, inverse_length_G: Tensor, k: int, exclude_Q: Tensor
) -> tuple[Tensor, Tensor]:
    """Keys and rows [Q, k] of the nearest candidates by exact dot products."""
    keys_Qk = x_QD.new_empty(len(x_QD), k)
    ids_Qk = candidate_QC.new_empty(len(x_QD), k)
    at_once = max(1, BLOCK // (candidate_QC.shape[1] * x_QD.shape[1]))
    for rows in torch.arange(len(x_QD), device=x_QD.device).split(at_once):
        ids_BC = candidate_QC[rows]
        dots_BC = torch.einsum("bd,bcd->bc", x_QD[rows], g_GD[ids_BC])
        keys_BC = keys_from_dots(dots_BC, inverse_length_G[ids_BC], ids_BC)
        keys_BC.masked_fill_(ids_BC == exclude_Q[rows, None], -torch.inf)
        keys_Qk[rows], place_Bk = keys_BC.topk(k, dim=1)
        ids_Qk[rows] = ids_BC.gather(1, place_Bk)
    return keys_Qk, ids_Qk


def _flat_index(g_GD: Tensor, k: int) -> faiss.Index:
    index: faiss.Index = faiss.IndexFlatIP(g_GD.shape[1])
    if _on_gpu(g_GD.device, k):
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), g_GD.device.index, index)
    index.add(_unit_rows(g_GD))
    return index


def _on_gpu(device: torch.device, k: int) -> bool:
    """Whether FAISS can search on this GPU."""
    return device.type == "cuda" and device.index < faiss.get_num_gpus() and k + 1 + SPARE <= GPU_LIMIT


def _unit_rows(vectors_ND: Tensor) -> np.ndarray:
    return F.normalize(vectors_ND).float().cpu().numpy()
