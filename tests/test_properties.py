"""What holds for any input: retrieval, losses, memories and protocols under permutation, repetition, ties and scaling.

The examples are the same in every run (``derandomize``).
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fgssl.data.index import Index
from fgssl.data.protocols import Protocol
from fgssl.data.samplers import ClassBalanced, EvalShard, Shuffled
from fgssl.errors import UserError
from fgssl.losses.contrastive import info_nce, nt_xent
from fgssl.losses.maskcon import soft_contrastive_loss, soft_targets
from fgssl.losses.metric_learning import multi_similarity
from fgssl.losses.mls import knn_softmax_loss, multi_label_loss, pseudo_labels
from fgssl.losses.obd_sd import diffused_targets, relation_distillation
from fgssl.metrics.retrieval import retrieval_metrics
from fgssl.nn.memory import Memory

FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None)
SEEDS = st.integers(0, 2**31)


def units(seed: int, rows: int, dim: int = 5) -> torch.Tensor:
    return F.normalize(
        torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1
    )


def order(seed: int, rows: int) -> torch.Tensor:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed + 1))


# ---- retrieval ------------------------------------------------------------------------------------------------------


def set_of(seed: int, rows: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed + 2))
    return units(seed, rows).float(), labels


SETS = {"seed": SEEDS, "rows": st.integers(2, 40), "classes": st.integers(1, 12)}


@FEW
@given(**SETS)
def test_retrieval_without_ties_does_not_depend_on_the_order_of_the_rows(seed, rows, classes):
    z, labels = set_of(seed, rows, classes)
    moved = order(seed, rows)
    assert retrieval_metrics(z[moved], labels[moved]) == pytest.approx(retrieval_metrics(z, labels), abs=1e-12)


@FEW
@given(**SETS, length=st.floats(1e-3, 1e3))
def test_retrieval_does_not_depend_on_the_length_of_any_row_nor_on_the_names_of_the_classes(
    seed, rows, classes, length
):
    z, labels = set_of(seed, rows, classes)
    lengths = torch.linspace(1, length, rows)[:, None]
    names = torch.randperm(100, generator=torch.Generator().manual_seed(seed))[:classes]
    assert retrieval_metrics(z * lengths, names[labels]) == pytest.approx(retrieval_metrics(z, labels), abs=1e-12)


@FEW
@given(**SETS)
def test_every_image_twice_is_found_at_once(seed, rows, classes):
    z, labels = set_of(seed, rows, classes)
    metrics = retrieval_metrics(z.repeat_interleave(2, 0), labels.repeat_interleave(2))
    assert metrics["recall@1"] == metrics["precision@1"] == 1
    assert metrics["queries_without_match"] == 0


@FEW
@given(**SETS)
def test_among_equal_rows_the_lower_ones_come_first(seed, rows, classes):
    _, labels = set_of(seed, rows, classes)
    found = retrieval_metrics(torch.ones(rows, 4), labels, ks=(1,))["recall@1"]
    first = torch.tensor([labels[1], *[labels[0]] * (rows - 1)])  # of row 0 it is row 1, of all others row 0
    assert found == pytest.approx((first == labels).double().mean().item())


@FEW
@given(**SETS)
def test_recall_rises_with_k_and_every_metric_is_a_share(seed, rows, classes):
    metrics = retrieval_metrics(*set_of(seed, rows, classes), ks=(1, 2, 5, 100))
    assert metrics["recall@1"] <= metrics["recall@2"] <= metrics["recall@5"] <= metrics["recall@100"]
    missing = metrics.pop("queries_without_match")
    assert all(0 <= value <= 1 for value in metrics.values())
    assert metrics["recall@100"] == pytest.approx((rows - missing) / rows)


@FEW
@given(**SETS)
def test_a_set_among_itself_is_the_set_against_a_gallery_without_the_query(seed, rows, classes):
    z, labels = set_of(seed, rows, classes)
    each = [
        retrieval_metrics(z[[q]], labels[[q]], ks=(1, 3), gallery=z[others], gallery_labels=labels[others])
        for q in range(rows)
        if len(others := [other for other in range(rows) if other != q])
    ]
    ours = retrieval_metrics(z, labels, ks=(1, 3))
    for name in ("recall@1", "recall@3"):
        assert ours[name] == pytest.approx(np.mean([found[name] for found in each]), abs=1e-12)


# ---- losses ---------------------------------------------------------------------------------------------------------

LOSSES = {
    "maskcon": lambda q, k, memory, y, y_K: soft_contrastive_loss(
        q, k, memory, soft_targets(k, memory, y, y_K, tau=0.2, weight=0.7), tau0=0.1
    ),
    "info_nce": lambda q, k, memory, y, y_K: info_nce(q, k, memory, tau=0.2),
    "nt_xent": lambda q, k, memory, y, y_K: nt_xent(q, k, tau=0.2),
    "mls": lambda q, k, memory, y, y_K: multi_label_loss(q, memory, pseudo_labels(k, memory, k=2), tau=0.2),
    "knn": lambda q, k, memory, y, y_K: knn_softmax_loss(q, memory, pseudo_labels(k, memory, k=2), tau=0.2),
    "multi_similarity": lambda q, k, memory, y, y_K: multi_similarity(q, y),
    "obd_sd": lambda q, k, memory, y, y_K: relation_distillation(
        q @ q.T, diffused_targets(k @ k.T, omega=0.3, tau=0.5), tau=0.5
    ),
}
BATCHES = {"seed": SEEDS, "batch": st.integers(2, 9), "length": st.integers(3, 17)}


def inputs(seed: int, batch: int, length: int) -> list[torch.Tensor]:
    labels = torch.arange(batch + length) % 3
    return [units(seed, batch), units(seed + 1, batch), units(seed + 2, length), labels[:batch], labels[batch:]]


@pytest.mark.parametrize("name", LOSSES)
@FEW
@given(**BATCHES)
def test_loss_does_not_depend_on_the_order_of_the_batch_and_of_the_memory(name, seed, batch, length):
    q, k, memory, y, y_K = inputs(seed, batch, length)
    i, j = order(seed, batch), order(seed, length)
    loss = LOSSES[name](q, k, memory, y, y_K)
    torch.testing.assert_close(LOSSES[name](q[i], k[i], memory[j], y[i], y_K[j]), loss, rtol=1e-9, atol=1e-9)
    assert loss.isfinite()


@FEW
@given(**BATCHES)
def test_loss_of_a_batch_is_the_mean_of_the_losses_of_its_images(seed, batch, length):
    """MaskCon and InfoNCE, whose images meet in the memory alone."""
    q, k, memory, y, y_K = inputs(seed, batch, length)
    for name in ("maskcon", "info_nce"):
        loss = LOSSES[name]
        each = torch.stack([loss(q[[b]], k[[b]], memory, y[[b]], y_K) for b in range(batch)])
        torch.testing.assert_close(loss(q, k, memory, y, y_K), each.mean(), rtol=1e-9, atol=1e-12)


@FEW
@given(**BATCHES, weight=st.floats(0, 1), tau=st.floats(0, 10))
def test_soft_targets_are_a_distribution_over_the_own_key_and_its_coarse_label(seed, batch, length, weight, tau):
    _, k, memory, y, y_K = inputs(seed, batch, length)
    z = soft_targets(k, memory, y, y_K, tau=tau, weight=weight)
    torch.testing.assert_close(z.sum(dim=1), torch.ones(batch, dtype=z.dtype))
    assert (z >= 0).all()
    assert (z[:, 1:][y[:, None] != y_K] == 0).all()


# ---- memory ---------------------------------------------------------------------------------------------------------


@FEW
@given(length=st.integers(1, 13), batches=st.lists(st.integers(0, 30), max_size=8))
def test_memory_holds_the_last_keys_for_any_length_and_batch(length, batches):
    memory, total = Memory(length, 2), 0
    for count in batches:
        rows = total + torch.arange(count)
        memory.enqueue(torch.stack([rows, -rows], dim=1).float(), rows % 5, rows)
        total += count
    last = torch.arange(max(0, total - length), total)
    assert memory.fill == len(last)
    assert memory.pointer == total % length
    assert sorted(memory.index.tolist()) == last.tolist()
    assert torch.equal(memory.keys, torch.stack([memory.index, -memory.index], dim=1).float())
    assert torch.equal(memory.labels, memory.index % 5)


# ---- rows -----------------------------------------------------------------------------------------------------------

IMAGES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8).filter(
    lambda counts: sum(train for train, _ in counts) > 0
)


def index_of(counts: list[tuple[int, int]], coarse: bool) -> Index:
    """An index with so many training and test images of each class."""
    fine = np.repeat(np.arange(len(counts)), [train + test for train, test in counts])
    split = np.concatenate([np.repeat(["train", "test"], count) for count in counts])
    return Index(
        name="any", paths=np.array([f"{row}.jpg" for row in range(len(fine))]), fine=fine, split=split,
        fine_names=tuple(map(str, range(len(counts)))), coarse=fine // 2 if coarse else None,
        coarse_names=tuple(map(str, range((len(counts) + 1) // 2))) if coarse else (),
    )  # fmt: skip


def train_rows(index: Index, split: str) -> np.ndarray:
    """Rows of the training part, by hand."""
    train, test = index.rows("train"), index.rows("test")
    disjoint = len(train) and len(test) and not np.isin(index.fine[test], index.fine[train]).any()
    first_half = np.flatnonzero(index.fine < len(index.fine_names) // 2)
    return train if split == "official" or disjoint else first_half


SHARES = st.sampled_from([0.0, 0.1, 0.34, 0.5, 0.9])


@settings(FEW, max_examples=60)
@given(IMAGES, st.booleans(), st.sampled_from(["official", "zero_shot"]), SHARES, SHARES, SHARES, st.integers(0, 3))
def test_protocol_gives_disjoint_rows_of_any_classes_or_says_why_not(counts, coarse, split, val, kept, noise, seed):
    index = index_of(counts, coarse)
    protocol = Protocol(split, val_fraction=val, label_fraction=1 - kept, label_noise=noise, seed=seed)
    try:
        parts = protocol.apply(index)
    except UserError:
        assert len(train_rows(index, split)) == 0
        return
    rows = np.concatenate([parts.train, parts.val, parts.test])
    assert len(np.unique(rows)) == len(rows)
    assert all((np.diff(part) > 0).all() for part in (parts.train, parts.val, parts.test))
    if split == "official":
        assert np.array_equal(parts.test, index.rows("test"))
        assert np.isin(parts.train, index.rows("train")).all()
    held_out = np.setdiff1d(np.arange(len(index)), parts.train)
    assert np.array_equal(parts.index.fine[held_out], index.fine[held_out])
    assert np.isin(parts.index.fine[parts.train], index.fine[parts.train]).all()
    changed = np.flatnonzero(parts.index.fine != index.fine)
    assert np.array_equal(changed, parts.flipped) or len(np.unique(index.fine[parts.train])) == 1
    assert parts.index.coarse is index.coarse


@FEW
@given(st.lists(st.integers(0, 6), min_size=4, max_size=40), st.integers(1, 3), st.integers(1, 6), st.booleans())
def test_class_balanced_batches_have_their_classes_in_equal_numbers_or_say_why_not(labels, each, groups, replacement):
    labels, batch = np.array(labels), each * groups
    options = {"images_per_class": each, "replacement": replacement}
    try:
        batches = list(ClassBalanced(labels, batch, **options))
    except UserError:
        assert batch > len(labels) or groups > len(np.unique(labels))
        return
    for pairs in batches:
        found = labels[pairs[:, 0]].reshape(groups, each)
        assert (found == found[:, :1]).all()
        assert replacement or len(np.unique(found[:, 0])) == groups


@FEW
@given(images=st.integers(1, 50), batch=st.integers(1, 50), world=st.integers(1, 5))
def test_evaluation_sees_every_row_and_training_none_twice(images, batch, world):
    seen = [np.concatenate(list(EvalShard(images, batch, rank=rank, world=world)))[:, 0] for rank in range(world)]
    assert set(np.concatenate(seen)) == set(range(images))
    assert len({len(part) for part in seen}) == 1
    if batch <= images and batch % world == 0:
        drawn = np.concatenate(
            [pairs for rank in range(world) for pairs in Shuffled(images, batch, rank=rank, world=world)]
        )
        assert len(np.unique(drawn[:, 0])) == len(drawn) == images // batch * batch
