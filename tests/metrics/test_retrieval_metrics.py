"""Retrieval metrics against golden numbers, a full sort and pytorch-metric-learning."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from fgssl.metrics import finish, retrieval_metrics, retrieval_statistics

GOLDEN = Path(__file__).parents[1] / "golden"
KS = (1, 2, 5, 50)


def random_set(kind: str, rows: int = 240, classes: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings with ties of one kind, and labels that leave some rows alone in their class."""
    g = torch.Generator().manual_seed(len(kind))
    z_ND = {
        "gaussian": torch.randn(rows, 16, generator=g),
        "duplicates": torch.randn(rows // 4, 16, generator=g).repeat(4, 1),
        "quantised": torch.randint(-2, 3, (rows, 5), generator=g).float(),
        "equal": torch.ones(rows, 7) / 3,
    }[kind]
    labels_N = torch.randint(classes, (rows,), generator=g)
    labels_N[::40] = classes + torch.arange(len(labels_N[::40]))
    return z_ND, labels_N


KINDS = ("gaussian", "duplicates", "quantised", "equal")


@pytest.mark.parametrize(("closer", "expected"), [(999, 1 / 1000), (1000, 0)])
def test_map_at_1000_counts_the_thousandth_neighbour_and_no_further_one(closer, expected):
    """In a gallery whose only relevant image has ``closer`` others above it."""
    angle_G = torch.linspace(0.1, 1.5, closer + 1, dtype=torch.float64)
    gallery, labels = torch.stack([angle_G.cos(), angle_G.sin()], dim=1), torch.arange(closer + 1)
    got = retrieval_metrics(
        torch.tensor([[1.0, 0.0]]).double(), labels[-1:], ks=(1000,), gallery=gallery, gallery_labels=labels
    )
    assert got["map@1000"] == pytest.approx(expected)
    assert got["recall@1000"] == (expected > 0)
    assert got["map"] == pytest.approx(1 / (closer + 1))


def order_by_sorting(query: torch.Tensor, gallery: torch.Tensor) -> np.ndarray:
    """Gallery rows, nearest first: cosines in float64, those that differ by rounding made equal, a stable sort."""
    unit = [torch.nn.functional.normalize(x.double(), dim=-1).numpy() for x in (query, gallery)]
    return np.argsort(-np.round(unit[1] @ unit[0], 9), kind="stable")


def metrics_by_sorting(z, labels, gallery=None, gallery_labels=None) -> dict[str, float]:
    """The definitions, one query at a time, from whole sorted lists."""
    alone = gallery is None
    gallery, gallery_labels = (z, labels) if alone else (gallery, gallery_labels)
    largest = int(gallery_labels.unique(return_counts=True)[1].max())
    everyone, matched = [], []
    for q in range(len(z)):
        order = order_by_sorting(z[q], gallery)
        order = order[order != q] if alone else order
        hit = (gallery_labels[order] == labels[q]).numpy()
        precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
        n, size = int(hit.sum()), int((gallery_labels == labels[q]).sum())
        everyone.append(
            {f"recall@{k}": hit[:k].any() for k in KS}
            | {
                f"map{name}": (precision * hit)[:k].sum() / max(size, 1)
                for name, k in (("@1000", 1000), ("_c", largest))
            }
        )
        if n:
            matched.append(
                {
                    "map": precision[hit].mean(),
                    "map@r": (precision * hit)[:n].sum() / n,
                    "r_precision": hit[:n].mean(),
                    "precision@1": hit[0],
                }
            )
    mean = {name: float(np.mean([row[name] for row in rows])) for rows in (everyone, matched) for name in rows[0]}
    return mean | {"queries_without_match": len(z) - len(matched)}


def test_retrieval_equals_golden_numbers_of_obdsd():
    golden = json.loads((GOLDEN / "obdsd_metrics.json").read_text())
    z, labels = torch.tensor(golden["raw"], dtype=torch.float64), torch.tensor(golden["labels"])
    got = retrieval_metrics(z, labels, ks=(1, 2, 4))
    for k, value in golden["recall"].items():
        assert got[f"recall@{k}"] == pytest.approx(value, rel=1e-6)
    assert got["map"] == pytest.approx(golden["mAP_full_div_n_minus_1"], rel=1e-6)
    assert got["map@r"] == pytest.approx(golden["mAP_at_R_standard"], rel=1e-6)
    assert got["map_c"] == pytest.approx(golden["mAP_c_official"], rel=1e-6)
    assert got["map@1000"] == pytest.approx(golden["mAP_full_official_div_n"], rel=1e-6)


def test_retrieval_equals_golden_recall_of_maskcon():
    golden = json.loads((GOLDEN / "retrieval.json").read_text())
    z, labels = torch.tensor(golden["feat_raw"], dtype=torch.float64), torch.tensor(golden["fine"])
    got = retrieval_metrics(z, labels, ks=(1, 2, 5))
    assert {k: got[f"recall@{k}"] for k in golden["recall"]} == pytest.approx(golden["recall"], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [3, 30])
def test_retrieval_equals_a_full_sort(kind, classes):
    z, labels = random_set(kind, classes=classes)
    assert retrieval_metrics(z, labels, ks=KS) == pytest.approx(metrics_by_sorting(z, labels), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_retrieval_in_a_gallery_equals_a_full_sort(kind):
    z, labels = random_set(kind)
    gallery, gallery_labels = z[1::2], labels[1::2]
    got = retrieval_metrics(z, labels, ks=KS, gallery=gallery, gallery_labels=gallery_labels)
    assert got == pytest.approx(metrics_by_sorting(z, labels, gallery, gallery_labels), rel=1e-9)
    assert got["queries_without_match"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_retrieval_equals_pytorch_metric_learning(kind):
    z, labels = random_set(kind)

    def neighbours(query, k, reference, ref_includes_query):  # its own search settles ties at random
        order = torch.stack([torch.from_numpy(order_by_sorting(q, reference)) for q in query])
        order = order[order != torch.arange(len(query))[:, None]].view(len(query), -1)[:, :k]
        return torch.zeros(order.shape), order

    names = {
        "precision@1": "precision_at_1",
        "r_precision": "r_precision",
        "map@r": "mean_average_precision_at_r",
        "map": "mean_average_precision",
    }
    calculator = AccuracyCalculator(include=tuple(names.values()), k=len(z) - 1, knn_func=neighbours)
    theirs = calculator.get_accuracy(z, labels)
    ours = retrieval_metrics(z, labels)
    assert {name: ours[name] for name in names} == pytest.approx({n: theirs[m] for n, m in names.items()}, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [3, 30])
def test_retrieval_does_not_depend_on_block_size_or_shards(kind, classes, monkeypatch):
    z, labels = random_set(kind, rows=320, classes=classes)
    whole = retrieval_metrics(z, labels, ks=KS)
    own = torch.arange(len(z))
    shards = [
        retrieval_statistics(z[rank::3], labels[rank::3], z, labels, exclude=own[rank::3], ks=KS) for rank in range(3)
    ]
    assert finish({name: sum(shard[name] for shard in shards) for name in shards[0]}) == whole
    monkeypatch.setattr("fgssl.metrics.ranking.BLOCK", 1)  # the smallest blocks: 64 queries
    assert retrieval_metrics(z, labels, ks=KS) == whole


def test_retrieval_does_not_depend_on_row_order_or_scale():
    z, labels = random_set("gaussian")
    shuffled = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))
    whole = retrieval_metrics(z, labels)
    assert retrieval_metrics(z[shuffled], labels[shuffled]) == whole
    assert retrieval_metrics(z * 2.0 ** torch.randint(-30, 30, (len(z), 1)), labels) == whole


def test_retrieval_takes_bfloat16_and_keeps_its_inputs():
    z, labels = random_set("gaussian")
    for dtype in (torch.bfloat16, torch.float64):
        x = z.to(dtype)
        before = x.clone()
        retrieval_metrics(x, labels)
        assert torch.equal(x, before)


def test_retrieval_of_one_class_is_1():
    got = retrieval_metrics(torch.randn(20, 4), torch.zeros(20, dtype=torch.long), ks=(1,))
    assert [got[name] for name in ("recall@1", "map", "map@r", "r_precision", "precision@1")] == [1, 1, 1, 1, 1]


def test_retrieval_without_relevant_pairs_is_0():
    got = retrieval_metrics(torch.randn(20, 4), torch.arange(20))
    assert got.pop("queries_without_match") == 20
    assert set(got.values()) == {0}


def test_retrieval_without_a_common_class_with_the_gallery():
    z = torch.randn(6, 4)
    got = retrieval_metrics(z, torch.zeros(6), gallery=z, gallery_labels=torch.ones(6))
    assert got["queries_without_match"] == 6
    assert got["recall@8"] == 0


def test_recall_with_k_above_the_gallery_uses_the_whole_gallery():
    got = retrieval_metrics(torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 3]), ks=(5, 100))
    assert got["recall@5"] == got["recall@100"] == 4 / 6


def test_retrieval_of_a_zero_row_has_similarity_0():
    z = torch.tensor([[1.0, 0], [0, 0], [-1, 0.1]])
    assert retrieval_metrics(z, torch.tensor([0, 0, 1]), ks=(1,))["recall@1"] == 2 / 3


Z, Y = torch.randn(4, 3), torch.zeros(4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embeddings": Z[:0], "labels": Y[:0]}, "non-empty"),
        ({"embeddings": Z[0], "labels": Y[0]}, "non-empty"),
        ({"embeddings": Z, "labels": Y[:3]}, "4 queries but labels"),
        ({"embeddings": Z * torch.inf, "labels": Y}, "4 of 4 queries hold NaN or Inf"),
        ({"embeddings": Z, "labels": Y, "ks": (0,)}, "at least 1"),
        ({"embeddings": Z, "labels": Y, "gallery": Z}, "given together"),
        ({"embeddings": Z, "labels": Y, "gallery": Z[:, :2], "gallery_labels": Y}, "3 dimensions, the gallery has 2"),
    ],
)
def test_retrieval_rejects_invalid_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(**arguments)


def test_retrieval_rejects_excluded_rows_outside_the_gallery():
    with pytest.raises(ValueError, match="outside the gallery"):
        retrieval_statistics(Z, Y, Z, Y, ks=[1], exclude=torch.full((4,), 4))


@pytest.mark.slow
def test_retrieval_memory_stays_below_the_matrix_of_all_pairs():
    """16,000 x 16,000 float64 are 1.9 GiB; the metrics take less than 0.7."""
    script = """
import resource, torch
from fgssl.metrics import retrieval_metrics
torch.set_num_threads(1)
z, labels = torch.randn(16_000, 8), torch.arange(16_000) // 5
retrieval_metrics(z[:100], labels[:100])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
retrieval_metrics(z, labels)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    kib = int(subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert kib < 0.7 * 2**20
