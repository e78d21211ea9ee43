"""Recall@K, mAP, mAP@R and R-precision from the ranks of the relevant items of each query.

Shapes: N rows, D dimensions, Q queries, G gallery rows, R relevant items of a query (padded to the largest of a block).

The rank of a relevant item is one plus the number of items with a higher similarity. All metrics follow from these
ranks, so no list of neighbours is stored.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from fgssl.metrics.checks import check_embeddings
from fgssl.metrics.ranking import fixed_point, key_blocks

ONE = 2**40  # sums are integers in units of 2^-40, so that the order of summation has no effect
COUNTED = 24  # up to this many relevant items, counting for each is faster than one sort


def retrieval_metrics(
    embeddings: Tensor,
    labels: Tensor,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
) -> dict[str, float]:
    """Retrieval metrics of a set against itself (leave-one-out) or against a gallery.

    Neighbours are ranked by cosine similarity; ties are broken by the lower row. Peak memory is about 0.5 GiB plus a
    float64 copy of the embeddings.

    Args:
        embeddings: [N, D] float; L2-normalised here.
        labels: [N] int.
        ks: values of K of Recall@K. A K above the size of the gallery stands for the whole gallery.
        gallery: [G, D] float, or None for leave-one-out over ``embeddings``.
        gallery_labels: [G] int; required with ``gallery``.

    Returns:
        Means over all queries, as fractions; queries without a relevant item count as 0:

        - ``recall@K``: whether one of the K nearest neighbours is relevant;
        - ``map@1000``, ``map_c``: average precision of the first 1000 neighbours, or as many as the largest class has
          images, divided by the size of the query's class including the query (Roth et al., Revisiting Training
          Strategies and Generalization Performance in Deep Metric Learning, ICML 2020).

        Means over the queries with a relevant item, 0 if there is none (Musgrave et al., A Metric Learning Reality
        Check, ECCV 2020):

        - ``map``: average precision of the full list;
        - ``map@r``, ``r_precision``: average precision and precision of the first R neighbours;
        - ``precision@1``.

        ``queries_without_match``: number of queries without a relevant item.

    Raises:
        ValueError: empty input, NaN or Inf, different lengths or dimensions, K below 1, or only one of ``gallery`` and
            ``gallery_labels``.
    """
    if (gallery is None) != (gallery_labels is None):
        raise ValueError("gallery and gallery_labels must be given together")
    if gallery is not None and gallery_labels is not None:
        return finish(retrieval_statistics(embeddings, labels, gallery, gallery_labels, ks=ks))
    own_row = torch.arange(len(embeddings))
    return finish(retrieval_statistics(embeddings, labels, embeddings, labels, exclude=own_row, ks=ks))


def retrieval_statistics(
    queries: Tensor,
    query_labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    *,
    exclude: Tensor | None = None,
    ks: Sequence[int] = (1, 2, 4, 8),
) -> dict[str, Tensor]:
    """Sums of the metrics over queries, input of :func:`finish`. Sums over shards of the queries can be added.

    Args:
        queries: [Q, D] float.
        query_labels: [Q] int.
        gallery: [G, D] float; the whole gallery for every shard of the queries.
        gallery_labels: [G] int.
        exclude: [Q] int gallery row to leave out for each query (the query itself), or None.
        ks: values of K of Recall@K.

    Returns:
        int64 scalars on the device of the queries, in units of 2^-40: number of queries, number of queries without a
        match, and the sum of each metric.

    Raises:
        ValueError: as ``retrieval_metrics``.
    """
    _check(queries, query_labels, gallery, gallery_labels, exclude, ks)
    g_GD, inverse_length_G = fixed_point(gallery)
    x_QD = g_GD if queries is gallery else fixed_point(queries)[0]
    labels_Q, labels_G = (labels.to(x_QD.device).contiguous() for labels in (query_labels, gallery_labels))
    exclude_Q = None if exclude is None else exclude.to(x_QD.device)

    # by_label lists the gallery rows by class; a class begins at start and has size rows.
    sorted_labels_G, by_label_G = labels_G.sort(stable=True)
    start_Q = torch.searchsorted(sorted_labels_G, labels_Q)
    size_Q = torch.searchsorted(sorted_labels_G, labels_Q, right=True) - start_Q
    largest = int(labels_G.unique(return_counts=True)[1].max())

    total: dict[str, Tensor] = {}
    by_size_Q = size_Q.argsort()  # queries of a block then have a similar R
    for rows, keys_QG in key_blocks(x_QD, g_GD, inverse_length_G, by_size_Q):
        if exclude_Q is not None:
            keys_QG.scatter_(1, exclude_Q[rows, None], -torch.inf)
        ranks_QR = _ranks(keys_QG, _relevant_keys(keys_QG, by_label_G, start_Q[rows], size_Q[rows]))
        for name, values_Q in _per_query(ranks_QR, size_Q[rows], largest, ks).items():
            total[name] = total.get(name, 0) + (values_Q.double() * ONE).round().long().sum()
    return total


def finish(statistics: dict[str, Tensor]) -> dict[str, float]:
    """Metrics of :func:`retrieval_metrics` from the sums of :func:`retrieval_statistics`."""
    value = {name: int(total) / ONE for name, total in statistics.items()}
    queries, without_match = value.pop("queries"), value.pop("queries_without_match")
    matched = max(queries - without_match, 1)
    over_matched = ("map", "map@r", "r_precision", "precision@1")
    result = {name: v / (matched if name in over_matched else queries) for name, v in value.items()}
    return result | {"queries_without_match": without_match}


def _check(queries, query_labels, gallery, gallery_labels, exclude, ks) -> None:
    check_embeddings(queries, query_labels, "queries")
    check_embeddings(gallery, gallery_labels, "gallery rows")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions, the gallery has {gallery.shape[1]}")
    if exclude is not None and exclude.shape != (len(queries),):
        raise ValueError(f"{len(queries)} queries but exclude of shape {tuple(exclude.shape)}")
    if exclude is not None and not ((exclude >= 0) & (exclude < len(gallery))).all():
        raise ValueError(f"exclude has rows outside the gallery of {len(gallery)} rows")
    if any(k < 1 for k in ks):
        raise ValueError(f"each K of Recall@K must be at least 1, got {tuple(ks)}")


def _relevant_keys(keys_QG: Tensor, by_label_G: Tensor, start_Q: Tensor, size_Q: Tensor) -> Tensor:
    """Keys of the relevant items of each query [Q, R], descending, padded with -inf."""
    slot_R = torch.arange(int(size_Q.max()), device=keys_QG.device)
    place_QR = (start_Q[:, None] + slot_R).clamp(max=len(by_label_G) - 1)
    relevant_QR = keys_QG.gather(1, by_label_G[place_QR]).masked_fill_(slot_R >= size_Q[:, None], -torch.inf)
    relevant_QR = relevant_QR.sort(dim=1, descending=True).values
    most = int(relevant_QR.isfinite().sum(dim=1).max())  # excluded rows have -inf
    return relevant_QR[:, :most].contiguous()


def _ranks(keys_QG: Tensor, relevant_QR: Tensor) -> Tensor:
    """Ranks of the relevant items [Q, R], starting at 1; inf for padding. May sort ``keys_QG`` in place on the CPU."""
    if keys_QG.device.type == "cpu":
        # On the CPU, NumPy compares twice and sorts eight times as fast as torch, and releases the GIL.
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            above = threads.map(_count_above, keys_QG.numpy(), relevant_QR.numpy())
            above_QR = torch.from_numpy(np.stack(list(above)))
    else:
        above_QR = keys_QG.shape[1] - torch.searchsorted(keys_QG.sort(dim=1).values, relevant_QR, right=True)
    return (above_QR + 1).double().masked_fill_(relevant_QR == -torch.inf, torch.inf)


def _count_above(keys_G: np.ndarray, relevant_R: np.ndarray) -> np.ndarray:
    """Number of keys of one query above each of its relevant items [R]."""
    if len(relevant_R) <= COUNTED:
        return np.array([np.count_nonzero(keys_G > key) for key in relevant_R], dtype=np.int64)
    keys_G.sort()
    return len(keys_G) - np.searchsorted(keys_G, relevant_R, side="right")


def _per_query(ranks_QR: Tensor, size_Q: Tensor, largest: int, ks: Sequence[int]) -> dict[str, Tensor]:
    """Values of each metric per query [Q]; 0 for queries without a match."""
    hits_R = torch.arange(1, ranks_QR.shape[1] + 1, device=ranks_QR.device)
    # Precision at each relevant item, in units of 2^-40; 0 for padding, whose rank is inf.
    precision_QR = (hits_R / ranks_QR * ONE).round().long()
    matches_Q = ranks_QR.isfinite().sum(dim=1)
    found_QR = ranks_QR <= matches_Q[:, None]  # among the first R
    r_Q = matches_Q.clamp(min=1).double()
    class_size_Q = size_Q.clamp(min=1).double()
    return {
        "queries": torch.ones_like(matches_Q),
        "queries_without_match": matches_Q == 0,
        **{f"recall@{k}": (ranks_QR <= k).any(dim=1) for k in ks},
        "map": precision_QR.sum(dim=1) / r_Q / ONE,
        "map@r": (precision_QR * found_QR).sum(dim=1) / r_Q / ONE,
        "r_precision": found_QR.sum(dim=1) / r_Q,
        "precision@1": (ranks_QR == 1).any(dim=1),
        "map@1000": (precision_QR * (ranks_QR <= 1000)).sum(dim=1) / class_size_Q / ONE,
        "map_c": (precision_QR * (ranks_QR <= largest)).sum(dim=1) / class_size_Q / ONE,
    }
