"""Re-ranking against an independent NumPy implementation in float64 over dense matrices."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from fgssl.callbacks.retrieval import statistics_over_ranks
from fgssl.errors import UserError
from fgssl.evaluation.embedding import Embeddings
from fgssl.evaluation.reranking import KReciprocal, Rerank, expanded, reranked_search
from fgssl.evaluation.search import search
from fgssl.metrics import finish

KS = [1, 5, 20]
K_RECIPROCAL = Rerank(k_reciprocal=True)
KINDS = (
    Rerank(query_expansion=4),
    Rerank(database_augmentation=3, alpha=0),
    Rerank(query_expansion=2, database_augmentation=5, alpha=1.5),
    K_RECIPROCAL,
    Rerank(k_reciprocal=True, k1=9, k2=1, lam=0.7),
)
kinds = pytest.mark.parametrize("options", KINDS, ids=lambda options: options.name)


def embeddings(rows: int = 180, dim: int = 24, seed: int = 0) -> Embeddings:
    """Loose classes, rows of different length."""
    g = torch.Generator().manual_seed(seed)
    fine_N = torch.randint(20, (rows,), generator=g)
    centre_CD = torch.randn(20, dim, generator=torch.Generator().manual_seed(9))
    z_ND = centre_CD[fine_N] + torch.randn(rows, dim, generator=g)
    return Embeddings(z_ND * torch.rand(rows, 1, generator=g), fine_N, torch.arange(rows))


# ---- the definitions, row by row ------------------------------------------------------------------------------------


def unit(z: Tensor) -> np.ndarray:
    z = z.double().numpy()
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def expand(rows: np.ndarray, gallery: np.ndarray, count: int, alpha: float, own: bool) -> np.ndarray:
    result = []
    for number, row in enumerate(rows):
        cosine = gallery @ row
        order = [other for other in np.argsort(-cosine, kind="stable") if not (own and other == number)]
        total = row + sum(max(cosine[other], 0) ** alpha * gallery[other] for other in order[:count])
        result.append(total / np.linalg.norm(total))
    return np.array(result)


def k_reciprocal(pool: np.ndarray, k1: int, k2: int, lam: float) -> np.ndarray:
    """Distances [N, N] after Zhong et al., Sec. 3."""
    number, distance = len(pool), 1 - pool @ pool.T
    near = [[p, *(int(g) for g in np.argsort(distance[p], kind="stable") if g != p)] for p in range(number)]

    def reciprocal(p: int, k: int) -> set[int]:
        return {g for g in near[p][: k + 1] if p in near[g][: k + 1]}

    encoding = np.zeros((number, number))
    for p in range(number):
        members = reciprocal(p, k1)
        whole = set(members)
        for q in members:
            half = reciprocal(q, round(k1 / 2))
            if len(members & half) >= 2 / 3 * len(half):
                whole |= half
        for g in whole:
            encoding[p, g] = np.exp(-distance[p, g])
    encoding = np.array([encoding[near[p][:k2]].mean(axis=0) for p in range(number)])
    jaccard = np.empty((number, number))
    for p in range(number):
        jaccard[p] = 1 - np.minimum(encoding[p], encoding).sum(axis=1) / np.maximum(encoding[p], encoding).sum(axis=1)
    return (1 - lam) * jaccard + lam * distance


def distances(queries: Tensor, gallery: Tensor | None, options: Rerank) -> np.ndarray:
    """Distances [Q, G] after re-ranking; ``gallery`` None: leave-one-out. Rows with the same neighbours tie."""
    alone = gallery is None
    q, g = unit(queries), unit(queries if alone else gallery)
    if options.k_reciprocal:
        pool = g if alone else np.concatenate([q, g])
        found = k_reciprocal(pool, options.k1, options.k2, options.lam)
        return np.round(found if alone else found[: len(q), len(q) :], 9)
    if options.database_augmentation:
        g = expand(g, g, options.database_augmentation, options.alpha, own=True)
    if options.query_expansion:
        q = expand(q, g, options.query_expansion, options.alpha, own=alone)
    return np.round(1 - q @ g.T, 9)


def golden_metrics(distance: np.ndarray, labels: np.ndarray, gallery_labels: np.ndarray, alone: bool) -> dict:
    recall, precision = [], []
    for number, row in enumerate(distance):
        order = np.argsort(row, kind="stable")
        hit = (gallery_labels == labels[number])[order[order != number] if alone else order]
        recall.append([hit[:k].any() for k in KS])
        precision.append((np.cumsum(hit) / np.arange(1, len(hit) + 1))[hit].mean())
    return {f"recall@{k}": value for k, value in zip(KS, np.mean(recall, axis=0), strict=True)} | {
        "map": np.mean(precision)
    }


def measured(queries: Embeddings, gallery: Embeddings | None, options: Rerank) -> dict[str, float]:
    return finish(statistics_over_ranks(queries, gallery, KS, options))


# ---- tests ----------------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("alone", [True, False])
def test_reranked_metrics_are_those_of_the_definitions(options, alone):
    queries, gallery = embeddings(), None if alone else embeddings(150, seed=1)
    searched = gallery or queries
    golden = golden_metrics(
        distances(queries.embedding, gallery and gallery.embedding, options),
        queries.fine.numpy(),
        searched.fine.numpy(),
        alone,
    )
    got = measured(queries, gallery, options)
    assert {name: got[name] for name in golden} == pytest.approx(golden, abs=1e-9)
    assert got["map"] > measured(queries, gallery, Rerank())["map"] + 0.01  # loose classes gain, so it did something


@kinds
@pytest.mark.parametrize("alone", [True, False])
def test_reranked_search_is_that_of_the_definitions(options, alone):
    queries, gallery = embeddings(), None if alone else embeddings(150, seed=1)
    searched = (gallery or queries).embedding
    own = torch.arange(len(queries.fine)) if alone else None
    _, ids = reranked_search(queries.embedding, searched, 7, options, exclude=own)
    distance = distances(queries.embedding, gallery and gallery.embedding, options)
    if alone:
        np.fill_diagonal(distance, np.inf)
    assert np.array_equal(ids.numpy(), np.argsort(distance, axis=1, kind="stable")[:, :7])


def test_distances_of_k_reciprocal_encoding_are_golden():
    z_ND = embeddings(60).embedding
    got = -KReciprocal(z_ND, K_RECIPROCAL).keys(torch.arange(60)).ceil() / 2**30
    np.testing.assert_allclose(got, k_reciprocal(unit(z_ND), 20, 6, 0.3), atol=1e-7)


def test_cosines_of_a_reranked_search_are_those_of_the_images():
    z_ND = embeddings().embedding
    cosine, ids = reranked_search(z_ND[:5], z_ND, 8, K_RECIPROCAL)
    whole, order = search(z_ND[:5], z_ND, len(z_ND))
    assert torch.equal(cosine, whole.gather(1, order.argsort(dim=1).gather(1, ids)))


@kinds
def test_ties_go_to_the_lower_row(options):
    """Four copies of each row: a copy of the query, and any two copies of a row, are at one distance."""
    z_ND = embeddings(15).embedding.repeat(4, 1)
    _, ids = reranked_search(z_ND[:15], z_ND, 60, options)
    copies = ids.view(15, 15, 4) % 15
    if not options.database_augmentation:  # it adds other neighbours to each copy
        assert (copies == copies[..., :1]).all()
        assert (ids.view(15, 15, 4).diff(dim=2) > 0).all()
    assert torch.equal(ids, reranked_search(z_ND[:15], z_ND, 60, options)[1])


@pytest.mark.parametrize("options", [Rerank(), Rerank(query_expansion=0, alpha=1)], ids=str)
def test_without_reranking_the_search_is_the_plain_one(options):
    z_ND = embeddings().embedding
    for ours, plain in zip(reranked_search(z_ND, z_ND, 5, options), search(z_ND, z_ND, 5), strict=True):
        assert torch.equal(ours, plain)
    assert options.name == "none"


def test_reranking_does_not_depend_on_blocks(monkeypatch):
    queries = embeddings()
    whole = [measured(queries, None, options) for options in KINDS]
    monkeypatch.setattr("fgssl.evaluation.reranking.ROWS", 7)
    for name in ("BLOCK", "VECTORS"):
        monkeypatch.setattr(f"fgssl.metrics.ranking.{name}", 1)
    assert [measured(queries, None, options) for options in KINDS] == whole


@kinds
def test_fewer_rows_than_neighbours(options):
    queries = embeddings(3)
    assert measured(queries, embeddings(2, seed=1), options)["recall@20"] <= 1
    assert measured(queries, None, options)["recall@20"] <= 1


def test_expansion_keeps_its_inputs_and_adds_clamped_neighbours():
    z_ND = torch.tensor([[1.0, 0], [0, 2.0], [-3.0, 0]])
    before = z_ND.clone()
    queries, gallery = expanded(z_ND, z_ND, Rerank(query_expansion=2, alpha=1), torch.arange(3))
    assert torch.equal(queries, torch.tensor([[1.0, 0], [0, 1.0], [-1.0, 0]]))  # no neighbour has a cosine above 0
    assert gallery is z_ND
    assert torch.equal(z_ND, before)


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    queries, gallery = embeddings(), embeddings(151, seed=1)
    found = [measured(queries, searched, options) for searched in (None, gallery) for options in KINDS]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.ddp
def test_two_processes_give_the_bits_of_one(tmp_path):
    mp.start_processes(one_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    queries, gallery = embeddings(), embeddings(151, seed=1)
    expected = [measured(queries, searched, options) for searched in (None, gallery) for options in KINDS]
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query_expansion": -1}, "query_expansion is -1"),
        ({"database_augmentation": 64}, "below 64"),
        ({"alpha": -1}, "alpha is -1"),
        ({"lam": 1.5}, "lam is 1.5; it must be 0 to 1"),
        ({"k1": 0}, "k1 is 0"),
        ({"k1": 3, "k2": 5}, "k2 is 5; it must be at most k1"),
        ({"k_reciprocal": True, "query_expansion": 1}, "cannot be combined"),
    ],
)
def test_mistakes_in_the_options_of_reranking(options, message):
    with pytest.raises(UserError, match=message):
        Rerank(**options)
