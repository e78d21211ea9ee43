"""Re-ranking of retrieval: query expansion, database-side augmentation and k-reciprocal encoding.

Every sum is one of integers and every choice of neighbours is exact, so that the result is the same for any number of
processes and any block size.

Shapes: Q queries, G gallery rows, N rows of a pool (queries and gallery), B rows of a block, D dimensions, K
neighbours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from fgssl.distributed import gather_rows, is_distributed
from fgssl.errors import UserError, at_least
from fgssl.evaluation.search import search
from fgssl.metrics.ranking import MAX_ROWS, Rows, cosine, keys_of, keys_of_pairs, ranges

MOST = 64  # neighbours whose weighted sum is exact in float64
ROWS = 4096  # rows at a time


@dataclass(frozen=True)
class Rerank:
    """Re-ranking of the neighbours of each query. The default is none.

    Args:
        query_expansion: number of neighbours that are added to each query before the search (Chum et al., Total Recall,
            ICCV 2007); 0: none.
        database_augmentation: number of neighbours that are added to each gallery embedding (Arandjelovic and
            Zisserman, Three Things Everyone Should Know to Improve Object Retrieval, CVPR 2012); 0: none.
        alpha: exponent of the cosine similarity that weighs an added neighbour (Radenovic et al., Fine-Tuning CNN Image
            Retrieval with No Human Annotation, PAMI 2018); 0: all have weight 1.
        k_reciprocal: whether to rank by k-reciprocal encoding (Zhong et al., Re-ranking Person Re-identification with
            k-reciprocal Encoding, CVPR 2017), with d = 1 - cosine as the original distance. Not together with the
            expansions.
        k1: number of neighbours of which the k-reciprocal ones are kept; the paper's value.
        k2: number of neighbours, with the image itself, whose encodings are averaged; the paper's value. 1: no average.
        lam: weight of the original distance, 0 to 1; the paper's value.
    """

    query_expansion: int = 0
    database_augmentation: int = 0
    alpha: float = 3.0
    k_reciprocal: bool = False
    k1: int = 20
    k2: int = 6
    lam: float = 0.3

    def __post_init__(self) -> None:
        counts = {"query_expansion": self.query_expansion, "database_augmentation": self.database_augmentation}
        at_least(0, **{f"rerank.{name}": value for name, value in counts.items()})
        at_least(1, **{"rerank.k1": self.k1, "rerank.k2": self.k2})
        for name, value in counts.items():
            if value >= MOST:
                raise UserError(f"rerank.{name} is {value}; it must be below {MOST}.")
        if self.alpha < 0:
            raise UserError(f"rerank.alpha is {self.alpha}; it must be 0 or more.")
        if not 0 <= self.lam <= 1:
            raise UserError(f"rerank.lam is {self.lam}; it must be 0 to 1.")
        if self.k2 > self.k1 + 1:
            raise UserError(f"rerank.k2 is {self.k2}; it must be at most k1 + 1, which is {self.k1 + 1}.")
        if self.k_reciprocal and any(counts.values()):
            raise UserError("rerank.k_reciprocal cannot be combined with query_expansion or database_augmentation.")

    @property
    def name(self) -> str:
        """Description for results and titles; ``none`` without re-ranking."""
        if self.k_reciprocal:
            return f"k-reciprocal (k1 {self.k1}, k2 {self.k2}, lambda {self.lam:g})"
        steps = {"query expansion": self.query_expansion, "database augmentation": self.database_augmentation}
        return ", ".join(f"{step} {n} (alpha {self.alpha:g})" for step, n in steps.items() if n) or "none"


def expanded(queries: Tensor, gallery: Tensor, options: Rerank, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Queries and gallery after database-side augmentation and then query expansion.

    An expanded row is the sum of the unit vectors of the row, with weight 1, and of its neighbours, with weight
    max(cosine, 0) to the power of alpha. The queries are expanded by rows of the augmented gallery. Where the queries
    are gallery rows themselves, an augmented row may contain the query.

    Args:
        queries: [Q, D] float.
        gallery: [G, D] float.
        options: numbers of neighbours and alpha.
        exclude: [Q] gallery row of each query, which is none of its neighbours; None: none.
    """
    if options.database_augmentation:
        own_G = torch.arange(len(gallery), device=gallery.device)
        gallery = _add_neighbours(gallery, gallery, options.database_augmentation, options.alpha, own_G)
    if options.query_expansion:
        queries = _add_neighbours(queries, gallery, options.query_expansion, options.alpha, exclude)
    return queries, gallery


def _add_neighbours(rows: Tensor, gallery: Tensor, count: int, alpha: float, exclude: Tensor | None) -> Tensor:
    """Rows [N, D] in float32 with their ``count`` nearest gallery rows added."""
    count = min(count, len(gallery) - (exclude is not None))
    cosine_NK, id_NK = neighbours(rows, gallery, count, exclude) if count else (None, None)
    if cosine_NK is None or id_NK is None:
        return rows
    from_rows, from_gallery = Rows(rows), Rows(gallery)
    weight_NK = (cosine_NK.clamp(min=0).pow(alpha) * 2**20).round()
    added = torch.empty_like(rows, dtype=torch.float32)
    for row_B in torch.arange(len(rows), device=rows.device).split(ROWS):
        total_BD = _unit_integers(from_rows, row_B) * 2**20
        for number in range(count):  # integers below 2^53: exact in any order
            total_BD += _unit_integers(from_gallery, id_NK[row_B, number]) * weight_NK[row_B, number, None]
        added[row_B] = (total_BD / 2**46).float()
    return added


def _unit_integers(rows: Rows, ids: Tensor) -> Tensor:
    """Unit vectors times 2^26, rounded, in float64."""
    return (rows.vectors(ids) * (rows.inverse_length_N[ids, None] * 2**26)).round_()


def neighbours(rows: Tensor, gallery: Tensor, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
    """``search`` with the rows shared out among the ranks; the same result on all of them."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)
    if world == 1:
        return search(rows, gallery, k, exclude=exclude)
    each = -(-len(rows) // world)
    mine = torch.arange(rank * each, (rank + 1) * each, device=rows.device).clamp(max=len(rows) - 1)
    found = search(rows[mine], gallery, k, exclude=None if exclude is None else exclude[mine])
    cosine_NK, id_NK = (column[: len(rows)] for column in gather_rows(*found))
    return cosine_NK, id_NK


class KReciprocal:
    """Distances by k-reciprocal encoding between rows of a pool of queries and gallery.

    The encoding of a row p is exp(-d(p, g)) for the rows g of its expanded k-reciprocal set, Sec. 3.2, averaged over
    its ``k2`` nearest rows, Sec. 3.4; the distance is (1 - lam) times the Jaccard distance of two encodings plus lam d,
    Sec. 3.3 and 3.5. A row is the first of its own neighbours. A set R(q, k1 / 2) is added where at least two thirds of
    it are in R(p, k1), as in the paper (released code: more than two thirds), and d is not divided by its maximum
    (released code: by the largest of each row).

    Args:
        pool: [N, D] float, at most 2^22 rows.
        options: k1, k2 and lam.
    """

    def __init__(self, pool: Tensor, options: Rerank):
        self.options, self.rows = options, Rows(pool)
        own_N = torch.arange(len(pool), device=pool.device)
        k1 = min(options.k1, len(pool) - 1)
        others_NK = neighbours(pool, pool, k1, own_N)[1] if k1 else own_N[:, None][:, :0]
        near_NK = torch.cat([own_N[:, None], others_NK], dim=1)
        set_row, set_column = _expanded_sets(near_NK, round(options.k1 / 2) + 1)
        distance = 1 - self._cosines(set_row, set_column)
        weight = ((-distance).exp() * 2**30).round().long()  # integers: sums are exact
        start_N, size_N = _places(set_row, len(pool))
        keys, weights = [], []
        for near_BK in near_NK[:, : options.k2].split(ROWS):
            owner, place = ranges(start_N[near_BK.flatten()], size_N[near_BK.flatten()])
            row = near_BK[:, 0].repeat_interleave(near_BK.shape[1])[owner]
            pair, inverse = (row * len(pool) + set_column[place]).unique(return_inverse=True)
            keys.append(pair)
            weights.append(torch.zeros_like(pair).index_add_(0, inverse, weight[place]))
        pair, self._weight = torch.cat(keys), torch.cat(weights)
        self._row, self._column = pair // len(pool), pair % len(pool)
        self._total_N = torch.zeros_like(own_N).index_add_(0, self._row, self._weight)
        self._start_N, self._size_N = _places(self._row, len(pool))
        self._by_column = self._column.sort(stable=True).indices
        self._column_start_N, self._column_size_N = _places(self._column[self._by_column], len(pool))

    def _cosines(self, row_P: Tensor, column_P: Tensor) -> Tensor:
        keys_P = keys_of_pairs(self.rows, row_P, self.rows, column_P)
        return cosine(keys_P, self.rows.inverse_length_N[row_P])

    def jaccard(self, query_B: Tensor) -> Tensor:
        """Jaccard distances [B, N] of rows of the pool to all rows."""
        query_P, place_P = ranges(self._start_N[query_B], self._size_N[query_B])  # entries of the queries' encodings
        column_P = self._column[place_P]
        entry_M, other_M = ranges(self._column_start_N[column_P], self._column_size_N[column_P])
        other_M = self._by_column[other_M]  # entries of other rows in the same columns
        smaller_M = torch.minimum(self._weight[place_P[entry_M]], self._weight[other_M])
        number = len(self.rows)
        common = torch.zeros(len(query_B) * number, dtype=torch.int64, device=query_B.device)
        common.index_add_(0, query_P[entry_M] * number + self._row[other_M], smaller_M)
        common_BN = common.view(len(query_B), number)
        either_BN = self._total_N[query_B, None] + self._total_N - common_BN
        return 1 - common_BN.double() / either_BN.double()

    def keys(self, query_B: Tensor, first: int = 0) -> Tensor:
        """Keys [B, G] of the rows of the pool from ``first`` on, as of ``keys_of``: the nearest has the highest key."""
        cosine_BN = cosine(keys_of(self.rows, query_B, self.rows), self.rows.inverse_length_N[query_B, None])
        distance_BN = self.jaccard(query_B) * (1 - self.options.lam) + (1 - cosine_BN) * self.options.lam
        nearness_BG = (distance_BN[:, first:] * -(2.0**30)).round_()
        return nearness_BG.sub_(torch.arange(nearness_BG.shape[1], device=query_B.device) / MAX_ROWS)


def _expanded_sets(near_NK: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Expanded k-reciprocal sets: pairs of a row and a member, sorted by row.

    Args:
        near_NK: neighbours of each row, itself first.
        half: number of neighbours, itself included, of the sets that are added.
    """
    full, small = _reciprocal(near_NK), _reciprocal(near_NK[:, :half])
    pairs = []
    for row_B in torch.arange(len(near_NK), device=near_NK.device).split(max(1, 2**22 // near_NK.shape[1] ** 3)):
        members_BK = near_NK[row_B].masked_fill(~full[row_B], -1)
        candidates_BKH = near_NK[near_NK[row_B], :half]
        there_BKH = small[near_NK[row_B]]
        common_BKH = (candidates_BKH[..., None] == members_BK[:, None, None]).any(dim=3) & there_BKH
        added_BK = full[row_B] & (3 * common_BKH.sum(dim=2) >= 2 * there_BKH.sum(dim=2))
        taken_BKH = there_BKH & added_BK[..., None]
        row_BKH = row_B[:, None, None].expand_as(candidates_BKH)
        own = row_B[:, None].expand_as(members_BK)[full[row_B]] * len(near_NK) + near_NK[row_B][full[row_B]]
        more = row_BKH[taken_BKH] * len(near_NK) + candidates_BKH[taken_BKH]
        pairs.append(torch.cat([own, more]).unique())
    pair = torch.cat(pairs)
    return pair // len(near_NK), pair % len(near_NK)


def _reciprocal(near_NK: Tensor) -> Tensor:
    """Whether a row is among the neighbours of its neighbour [N, K]."""
    rows = torch.arange(len(near_NK), device=near_NK.device).split(ROWS)
    return torch.cat([(near_NK[near_NK[row_B]] == row_B[:, None, None]).any(dim=2) for row_B in rows])


def _places(sorted_rows: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """First place and number of places of each of 0 to ``number`` - 1 in a sorted vector."""
    every = torch.arange(number, device=sorted_rows.device)
    start = torch.searchsorted(sorted_rows, every)
    return start, torch.searchsorted(sorted_rows, every, right=True) - start


def reranked_keys(
    queries: Tensor, gallery: Tensor, options: Rerank, exclude: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """Function that returns the k-reciprocal keys [B, G] of the gallery rows for queries [B].

    Args:
        queries: [Q, D] float.
        gallery: [G, D] float.
        options: k1, k2 and lam.
        exclude: [Q] gallery row of each query, where the queries are gallery rows; None: they are not, and the pool of
            neighbours holds both.
    """
    if exclude is not None:
        encoding, place_Q, first = KReciprocal(gallery, options), exclude, 0
    else:
        encoding, first = KReciprocal(torch.cat([queries, gallery]), options), len(queries)
        place_Q = torch.arange(len(queries), device=encoding.rows.device)
    return lambda query_B: encoding.keys(place_Q.to(query_B.device)[query_B], first)


def reranked_search(
    queries: Tensor, gallery: Tensor, k: int, options: Rerank, *, exclude: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``search`` with re-ranking.

    Args:
        queries: [Q, D] float.
        gallery: [G, D] float.
        k: number of neighbours.
        options: kind of re-ranking.
        exclude: [Q] gallery row of each query, where the queries are gallery rows; None: they are not.

    Returns:
        Cosine similarities [Q, k] (of the expanded embeddings, if they are) and gallery rows [Q, k], nearest first.
    """
    if not options.k_reciprocal:
        return search(*expanded(queries, gallery, options, exclude), k, exclude=exclude)
    keys = reranked_keys(queries, gallery, options, exclude)
    rows_Q, rows_G = Rows(queries), Rows(gallery)
    found = []
    for query_B in torch.arange(len(queries), device=rows_G.device).split(64):
        keys_BG = keys(query_B)
        if exclude is not None:
            keys_BG.scatter_(1, exclude.to(keys_BG.device)[query_B, None], -torch.inf)
        found.append(keys_BG.topk(k, dim=1).indices)
    id_Qk = torch.cat(found)
    query_P = torch.arange(len(queries), device=id_Qk.device).repeat_interleave(k)
    keys_Qk = keys_of_pairs(rows_Q, query_P, rows_G, id_Qk.flatten()).view_as(id_Qk)
    return cosine(keys_Qk, rows_Q.inverse_length_N[:, None]).to(queries.device), id_Qk.to(queries.device)
