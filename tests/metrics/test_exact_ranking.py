"""Float32 products decide nothing that fixed-point keys decide otherwise: the same bits for any input and setting."""

import pytest
import torch
from torch import Tensor

from fgssl.evaluation.search import search
from fgssl.metrics import ranking, retrieval, retrieval_metrics
from tests.metrics.by_keys import metrics_by_keys, search_by_keys

KS = (1, 2, 5, 50)


def rows(kind: str, number: int = 600, dim: int = 300, classes: int = 40) -> tuple[Tensor, Tensor]:
    """Embeddings [N, D] and labels [N]; D is no multiple of the columns of a partial product."""
    g = torch.Generator().manual_seed(len(kind))
    labels_N = torch.randint(classes, (number,), generator=g)
    labels_N[::50] = classes + torch.arange(len(labels_N[::50]))  # alone in their class
    noise_ND = torch.randn(number, dim, generator=g)
    centre_ND = torch.randn(classes + number, dim, generator=g)[labels_N]
    z_ND = {
        "random": noise_ND,
        "clustered": centre_ND + 0.5 * noise_ND,
        "loosely clustered": 0.1 * centre_ND + noise_ND,
        "positive": noise_ND.relu() + 1,  # sums without cancellation: the largest errors
        "duplicated": noise_ND[: number // 4].repeat(4, 1),
        "scaled duplicates": noise_ND[: number // 4].repeat(4, 1) * torch.rand(number, 1, generator=g),
        "tied": torch.randint(-1, 2, (number, dim), generator=g) * 1.0,
        "equal": torch.ones(number, dim),
        "nearly tied": centre_ND[:1] + 1e-4 * noise_ND,
        "within the error": centre_ND + 3e-6 * noise_ND,
        "below float32": centre_ND[:1] + 1e-7 * noise_ND,
        "large and small norms": noise_ND * 10.0 ** torch.randint(-18, 18, (number, 1), generator=g),
        "zero rows": noise_ND * (torch.rand(number, 1, generator=g) < 0.9),
        "float64": noise_ND.double() + 1e-9,
        "bfloat16": noise_ND.bfloat16(),
        "one dimension": noise_ND[:, :1],
    }[kind]
    return z_ND, labels_N


KINDS = (
    "random", "clustered", "loosely clustered", "positive", "duplicated", "scaled duplicates", "tied", "equal",
    "nearly tied", "within the error", "below float32", "large and small norms", "zero rows", "float64", "bfloat16",
    "one dimension",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 40])
def test_retrieval_is_that_of_the_keys_of_all_pairs(kind, classes):
    z_ND, labels_N = rows(kind, classes=classes)
    assert retrieval_metrics(z_ND, labels_N, ks=KS) == metrics_by_keys(z_ND, labels_N)
    gallery, gallery_labels = z_ND[1::3], labels_N[1::3]
    got = retrieval_metrics(z_ND, labels_N, ks=KS, gallery=gallery, gallery_labels=gallery_labels)
    assert got == metrics_by_keys(z_ND, labels_N, gallery, gallery_labels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_search_is_that_of_the_keys_of_all_pairs(kind, backend, monkeypatch):
    monkeypatch.setattr("fgssl.evaluation.search.FEW", 1)  # torch searches with float32 scores in small galleries too
    z_ND, _ = rows(kind)
    own_N = torch.arange(len(z_ND))
    for ours, exact in zip(
        search(z_ND, z_ND, 9, exclude=own_N, backend=backend), search_by_keys(z_ND, z_ND, 9, own_N), strict=True
    ):
        assert torch.equal(ours, exact)


@pytest.mark.parametrize("kind", KINDS)
def test_retrieval_resolves_every_open_pair_alone(kind, monkeypatch):
    """However many pairs the scores leave open: never the keys of a whole block; and as a GPU does it."""
    z_ND, labels_N = rows(kind, number=120, dim=140, classes=12)
    exact = metrics_by_keys(z_ND, labels_N)
    monkeypatch.setattr(retrieval, "PAIR", 0)
    monkeypatch.setattr(retrieval, "WINDOW", torch.inf)
    monkeypatch.delattr(retrieval._Block, "above_by_keys")
    assert retrieval_metrics(z_ND, labels_N, ks=KS) == exact
    monkeypatch.setattr(ranking, "in_numpy", lambda tensor: False)
    monkeypatch.setattr(ranking, "BLOCK", 1)
    assert retrieval_metrics(z_ND, labels_N, ks=KS) == exact


@pytest.mark.parametrize("kind", ["random", "nearly tied"])
def test_retrieval_without_scores_is_the_same(kind, monkeypatch):
    z_ND, labels_N = rows(kind)
    monkeypatch.setattr(retrieval, "TRIES", 0)
    assert retrieval_metrics(z_ND, labels_N, ks=KS) == metrics_by_keys(z_ND, labels_N)


def test_retrieval_without_kept_vectors_is_the_same(monkeypatch):
    z_ND, labels_N = rows("nearly tied")
    monkeypatch.setattr(ranking, "KEPT", 0)
    monkeypatch.setattr(ranking, "VECTORS", 1000)
    assert retrieval_metrics(z_ND, labels_N, ks=KS) == metrics_by_keys(z_ND, labels_N)
    assert torch.equal(search(z_ND, z_ND, 9)[1], search_by_keys(z_ND, z_ND, 9)[1])


def test_retrieval_of_far_clusters_needs_no_keys_of_whole_blocks(monkeypatch):
    z_ND, labels_N = rows("clustered")
    monkeypatch.delattr(retrieval._Block, "above_by_keys")
    retrieval_metrics(z_ND, labels_N)


@pytest.mark.parametrize("dim", [1, 128, 129, 2048])
def test_float32_error_bounds_the_scores(dim):
    g = torch.Generator().manual_seed(dim)
    z_ND = torch.cat([torch.rand(40, dim, generator=g), torch.randn(40, dim, generator=g), torch.ones(1, dim)])
    prepared = ranking.Rows(z_ND)
    query_Q = torch.arange(len(z_ND))
    exact = ranking.cosine(ranking.keys_of(prepared, query_Q, prepared), prepared.inverse_length_N[:, None])
    error = (ranking.scores_in_float32(prepared, query_Q, prepared) - exact).abs().max()
    assert 0 < error < ranking.float32_error(dim) < 2e-5


@pytest.mark.parametrize("broken", ["retrieval", "search"])
def test_product_of_reduced_precision_is_noticed(broken, monkeypatch):
    """As TF32 or bfloat16 would, where a library takes it against the settings."""
    z_ND, labels_N = rows("loosely clustered")
    monkeypatch.setattr("fgssl.evaluation.search.FEW", 1)

    def reduced(*args, **options):
        return ranking.scores_in_float32(*args, **options).bfloat16().float()

    for module in ("fgssl.metrics.retrieval", "fgssl.evaluation.search"):
        monkeypatch.setattr(f"{module}.scores_in_float32", reduced)
    if broken == "retrieval":
        assert retrieval_metrics(z_ND, labels_N, ks=KS) == metrics_by_keys(z_ND, labels_N)
    else:
        assert torch.equal(search(z_ND, z_ND, 9, backend="torch")[1], search_by_keys(z_ND, z_ND, 9)[1])


@pytest.mark.parametrize("thresholds", [1, 40])
@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_counts_above_few_thresholds_are_those_of_sorted_rows(kind, thresholds, monkeypatch):
    z_ND, _ = rows(kind)
    values_BG = (z_ND[:20] @ z_ND.T).clone()
    values_BG[:, 3] = -torch.inf  # left out
    above_BT = values_BG[:, torch.arange(thresholds) * 2]
    above_BT[5:, thresholds // 2 :] = torch.inf  # padding
    expected = (values_BG[:, None] > above_BT[..., None]).sum(dim=2)
    for few in (0, 16, 1000):
        monkeypatch.setattr(ranking, "FEW", few)
        assert torch.equal(ranking.count_above(values_BG, above_BT), expected)


def test_scores_are_in_float32_under_any_setting_in_torch_and_numpy(monkeypatch):
    z_ND, _ = rows("random")
    prepared, query_B = ranking.Rows(z_ND), torch.arange(10)
    in_numpy = ranking.scores_in_float32(prepared, query_B, prepared)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ranking.scores_in_float32(prepared, query_B, prepared), in_numpy)
    monkeypatch.setattr(ranking, "in_numpy", lambda tensor: False)
    expected = ranking.scores_in_float32(prepared, query_B, prepared)
    seen = []
    product = torch.mm
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)

    def watched(*args, **options):
        seen.append([backend.fp32_precision for backend in backends])
        return product(*args, **options)

    monkeypatch.setattr(torch, "mm", watched)
    before = torch.get_float32_matmul_precision()
    try:
        for setting in ("high", "medium"):
            torch.set_float32_matmul_precision(setting)
            chosen = [backend.fp32_precision for backend in backends]
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(ranking.scores_in_float32(prepared, query_B, prepared), expected)
            assert [backend.fp32_precision for backend in backends] == chosen  # as the caller had it
            assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen
    assert all(precisions == ["ieee", "ieee"] for precisions in seen)
    assert (in_numpy - expected).abs().max() < 2 * ranking.float32_error(z_ND.shape[1])
