"""Recall@K, mAP, mAP@R and R-precision from the ranks of the relevant items of each query.

Shapes: N rows, D dimensions, Q queries, B queries of a block, C classes of the block and U gallery rows of them, I
relevant items of the block, G gallery rows, R relevant items of a query (padded to the most of the block).

The rank of a relevant item is one plus the number of items with a higher similarity. All metrics follow from these
ranks, so no list of neighbours is stored.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fgssl.metrics.checks import check_embeddings
from fgssl.metrics.ranking import (
    Rows,
    cosine,
    count_above,
    float32_error,
    keys_of,
    keys_of_pairs,
    pairs_between,
    queries_at_once,
    ranges,
    scores_in_float32,
)

ONE = 2**40  # sums are integers in units of 2^-40, so that the order of summation has no effect
# The keys of single pairs take about 128 times as long as those of all pairs of a block, and finding the scores in one
# window as long as the keys of 1/64 of the gallery.
PAIR, WINDOW = 128, 64
TRIES = 4  # blocks that scores did not help with, before the rest is done without them


def retrieval_metrics(
    embeddings: Tensor,
    labels: Tensor,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
) -> dict[str, float]:
    """Retrieval metrics of a set against itself (leave-one-out) or against a gallery.

    Neighbours are ranked by cosine similarity; ties are broken by the lower row. Peak memory beside the embeddings:
    one float32 copy, and at most 1 GiB or, for a large gallery, one more copy.

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
    ks: Sequence[int],
    exclude: Tensor | None = None,
    keys: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Sums of the metrics over queries, input of :func:`finish`. Sums over shards of the queries can be added.

    Args:
        queries: [Q, D] float.
        query_labels: [Q] int.
        gallery: [G, D] float; the whole gallery for every shard of the queries.
        gallery_labels: [G] int.
        exclude: [Q] int gallery row to leave out for each query (the query itself), or None.
        ks: values of K of Recall@K.
        keys: function that returns another order, as float64 keys [B, G] of the gallery rows for queries [B], the
            highest first and none twice; None: by cosine similarity.

    Returns:
        int64 scalars on the device of the queries, in units of 2^-40: number of queries, number of queries without a
        match, and the sum of each metric.

    Raises:
        ValueError: as ``retrieval_metrics``.
    """
    _check(queries, query_labels, gallery, gallery_labels, exclude, ks)
    gallery_rows = Rows(gallery)
    query_rows = gallery_rows if queries is gallery else Rows(queries)
    labels_Q, labels_G = (labels.to(gallery_rows.device).contiguous() for labels in (query_labels, gallery_labels))
    exclude_Q = None if exclude is None else exclude.to(gallery_rows.device)

    # by_label_G lists the gallery rows by class.
    sorted_labels_G, by_label_G = labels_G.sort(stable=True)
    largest = int(labels_G.unique(return_counts=True)[1].max())

    total: dict[str, Tensor] = {}
    at_once = queries_at_once(gallery_rows)
    tries = TRIES if keys is None else 0
    rows = min(at_once, len(labels_Q)) if tries else 0
    scores_BG = gallery_rows.units[0].new_empty(rows, len(gallery_rows))  # of each block in turn
    for query_B in labels_Q.argsort().split(at_once):  # queries of a block share their classes
        labels_C = labels_Q[query_B].unique()
        start_C = torch.searchsorted(sorted_labels_G, labels_C)
        size_C = torch.searchsorted(sorted_labels_G, labels_C, right=True) - start_C
        class_U, place_U = ranges(start_C, size_C)
        ids_U = by_label_G[place_U]  # gallery rows of the classes of the block
        same_BU = labels_Q[query_B, None] == labels_C[class_U]

        block = _Block(query_rows, query_B, gallery_rows, None if exclude_Q is None else exclude_Q[query_B, None])
        keys_BG = None if keys is None else keys(query_B)
        block.find(ids_U, same_BU, keys_BG)
        above_BR = block.above_by_scores(scores_BG[: len(query_B)]) if tries else None
        if above_BR is None:
            tries = max(tries - 1, 0)
            above_BR = block.above_by_keys(keys_BG)
        ranks_BR = block.ranks(above_BR)
        for name, values_B in _per_query(ranks_BR, same_BU.sum(dim=1), largest, ks).items():
            total[name] = total.get(name, 0) + (values_B.double() * ONE).round().long().sum()
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


class _Block:
    """Ranks of the relevant items of a block of queries.

    The rank of a relevant item is its place among the relevant items plus the number of other items above it.

    Args:
        queries: all queries.
        query_B: queries of the block.
        gallery: the gallery.
        left_out_B1: gallery row to leave out for each query, or None.
    """

    def __init__(self, queries: Rows, query_B: Tensor, gallery: Rows, left_out_B1: Tensor | None):
        self.queries, self.query_B, self.gallery, self.left_out_B1 = queries, query_B, gallery, left_out_B1

    def find(self, ids_U: Tensor, same_BU: Tensor, keys_BG: Tensor | None = None) -> None:
        """Find the relevant items: the gallery rows ``ids`` of the same class, except those that are left out."""
        relevant_BU = same_BU if self.left_out_B1 is None else same_BU & (ids_U != self.left_out_B1)
        keys_BU = keys_of(self.queries, self.query_B, self.gallery, ids_U) if keys_BG is None else keys_BG[:, ids_U]
        keys_BU.masked_fill_(~relevant_BU, -torch.inf)
        self.keys_BR, place_BR = keys_BU.topk(int(relevant_BU.sum(dim=1).max()), dim=1)
        self.present_BR = self.keys_BR.isfinite()
        self.query_I, self.slot_I = self.present_BR.nonzero(as_tuple=True)
        self.id_I = ids_U[place_BR[self.query_I, self.slot_I]]

    def above_by_scores(self, scores_BG: Tensor) -> Tensor | None:
        """Number of other items above each relevant item [B, R], from scores in float32.

        Items whose scores differ by less than the error are compared by their keys.

        Args:
            scores_BG: float32 memory for the scores. New memory for each block would take a tenth of the time.

        Returns:
            None if there are so many of these that the keys of all items take less time, or if the product of the
            matrices was not one in float32.
        """
        error = float32_error(self.gallery.dim, self.gallery.chunk)
        scores_BG = scores_in_float32(self.queries, self.query_B, self.gallery, out=scores_BG)
        cosine_BR = cosine(self.keys_BR, self.queries.inverse_length_N[self.query_B, None])
        off_I = (scores_BG[self.query_I, self.id_I] - cosine_BR[self.query_I, self.slot_I]).abs()
        cosine_BR = cosine_BR.masked_fill(~self.present_BR, torch.inf)
        low_BR, high_BR = (cosine_BR - error).float(), (cosine_BR + error).float()
        counts = count_above(self._others(scores_BG), torch.cat([high_BR, low_BR], dim=1))
        above_BR, above_low_BR = counts.chunk(2, dim=1)
        open_BR = above_low_BR - above_BR  # number of items between the thresholds
        work = open_BR.sum() * PAIR + (open_BR > 0).sum() * len(self.gallery) / WINDOW
        if (off_I > error).any() or work > scores_BG.numel():
            return None
        query_P, slot_P = open_BR.nonzero(as_tuple=True)
        window_W, id_W = pairs_between(scores_BG, query_P, low_BR[query_P, slot_P], high_BR[query_P, slot_P])
        query_W, slot_W = query_P[window_W], slot_P[window_W]
        keys_W = keys_of_pairs(self.queries, self.query_B[query_W], self.gallery, id_W)
        is_above_W = keys_W > self.keys_BR[query_W, slot_W]
        return above_BR.index_put((query_W, slot_W), is_above_W.long(), accumulate=True)

    def above_by_keys(self, keys_BG: Tensor | None = None) -> Tensor:
        """Number of other items above each relevant item [B, R], from the keys of all items."""
        keys_BG = keys_of(self.queries, self.query_B, self.gallery) if keys_BG is None else keys_BG
        return count_above(self._others(keys_BG), self.keys_BR.masked_fill(~self.present_BR, torch.inf))

    def ranks(self, above_BR: Tensor) -> Tensor:
        """Ranks [B, R], ascending, starting at 1; inf for padding."""
        place_R = torch.arange(1, above_BR.shape[1] + 1, device=above_BR.device)
        return (above_BR + place_R).double().masked_fill_(~self.present_BR, torch.inf)

    def _others(self, values_BG: Tensor) -> Tensor:
        """Scores or keys with -inf for the items that are relevant or left out, in place."""
        values_BG[self.query_I, self.id_I] = -torch.inf
        return values_BG if self.left_out_B1 is None else values_BG.scatter_(1, self.left_out_B1, -torch.inf)


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
