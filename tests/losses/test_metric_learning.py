"""Metric-learning losses and triplet sampling: golden numbers, gradients, and where pytorch-metric-learning differs."""

import json
from pathlib import Path

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners
from torch.nn.functional import normalize

from fgssl.losses.metric_learning import (
    _draw,
    distance_weighted_triplets,
    inverse_density,
    margin_loss,
    multi_similarity,
    random_triplets,
    semi_hard_triplets,
    soft_hard_triplets,
    without_padding,
    without_positives,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "obdsd.json").read_text())
MARGIN_Z = GOLDEN["multisimilarity"]["raw"]  # the rows that the margin cases are of


def unit(rows, dtype=torch.float64) -> torch.Tensor:
    return normalize(torch.as_tensor(rows, dtype=dtype), dim=1)


def close(actual, expected, rtol=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=rtol, atol=1e-12)


def cloud(classes=6, each=4, dim=8, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(each)
    centres = torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(classes * each, dim, generator=generator, dtype=torch.float64)
    return unit(centres[labels] + noise).to(dtype), labels


# ---- multi-similarity -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["multisimilarity", "multisimilarity_2"])
def test_multi_similarity_matches_the_golden_file(name):
    case = GOLDEN[name]
    z = unit(case["raw"]).requires_grad_()
    loss = multi_similarity(z, torch.tensor(case["labels"]))
    close(loss, case["loss"])
    used = [value for value in case["per_anchor"] if value is not None]
    close(loss, sum(used) / len(used))
    assert torch.autograd.gradcheck(lambda x: multi_similarity(x, torch.tensor(case["labels"])), z)


def test_multi_similarity_of_pytorch_metric_learning_divides_by_all_anchors():
    """With its own miner it sees the same pairs, and its mean runs over all rows of the batch."""
    case = GOLDEN["multisimilarity_2"]
    z, labels = unit(case["raw"]), torch.tensor(case["labels"])
    pairs = miners.MultiSimilarityMiner(epsilon=0.1)(z, labels)
    theirs = losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.5)(z, labels, pairs)
    skipped = sum(value is None for value in case["per_anchor"])
    assert skipped == 2
    close(multi_similarity(z, labels) * (len(labels) - skipped) / len(labels), theirs.item(), rtol=1e-5)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3]], ids=["no negative", "no positive"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_multi_similarity_is_0_with_finite_gradient_if_all_anchors_are_skipped(labels, dtype):
    z = unit(torch.eye(4) + 0.1, dtype).requires_grad_()
    loss = multi_similarity(z, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0
    assert (z.grad == 0).all()


# ---- margin ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["margin_beta1.2", "margin_beta0.6", "rmargin_flip"])
def test_margin_loss_matches_the_golden_file(name):
    case = GOLDEN[name]
    z, labels = unit(MARGIN_Z).requires_grad_(), torch.tensor([0, 0, 1, 1, 2, 2])
    beta = torch.tensor(case["beta"], dtype=torch.float64, requires_grad=True)
    triplets = tuple(torch.tensor(case["triplets"]).T)
    for average, expected in (("triplets", "loss_per_active_triplet"), ("pairs", "loss_per_active_pair")):
        close(margin_loss(z, labels, triplets, beta, margin=case["margin"], average=average), case[expected])
    assert torch.autograd.gradcheck(lambda x, b: margin_loss(x, labels, triplets, b), (z, beta))


def test_margin_loss_of_pytorch_metric_learning_divides_by_pairs():
    case = GOLDEN["margin_beta0.6"]
    z, labels, triplets = unit(MARGIN_Z), torch.tensor([0, 0, 1, 1, 2, 2]), tuple(torch.tensor(case["triplets"]).T)
    theirs = losses.MarginLoss(margin=0.2, beta=0.6)(z, labels, triplets)
    beta = torch.full((3,), 0.6, dtype=torch.float64)
    close(margin_loss(z, labels, triplets, beta, average="pairs"), theirs.item(), rtol=1e-4)
    assert abs(margin_loss(z, labels, triplets, beta) - theirs) > 0.05


def test_margin_loss_is_0_with_finite_gradient_if_nothing_is_active():
    z, labels = torch.eye(4, dtype=torch.float64)[[0, 0, 1, 1]].requires_grad_(), torch.tensor([0, 0, 1, 1])
    triplets = tuple(torch.tensor([[0, 1, 2], [2, 3, 0]]).T)
    for chosen in (triplets, tuple(column[:0] for column in triplets)):
        loss = margin_loss(z, labels, chosen, torch.full((2,), 0.7, dtype=torch.float64))
        loss.backward()
        assert loss.item() == 0
        assert z.grad.isfinite().all()


# ---- triplets -------------------------------------------------------------------------------------------------------

SAMPLERS = [random_triplets, semi_hard_triplets, soft_hard_triplets, distance_weighted_triplets]


@pytest.mark.parametrize("sample", SAMPLERS[1:])
def test_samplers_give_a_triplet_for_each_anchor_with_both_partners(sample):
    z, labels = cloud()
    labels[0] = 99  # alone in its class
    for _ in range(20):
        padded = sample(z, labels)
        assert [len(column) for column in padded] == [24, 24, 24]
        anchor, positive, negative = without_padding(padded)
        assert anchor.tolist() == list(range(1, 24))
        assert (labels[anchor] == labels[positive]).all()
        assert (anchor != positive).all()
        assert (labels[anchor] != labels[negative]).all()


@pytest.mark.parametrize("sample", SAMPLERS)
@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_samplers_give_no_triplet_without_partners(sample, labels):
    padded = sample(unit(torch.eye(3)), torch.tensor(labels))
    assert [column.tolist() for column in padded] == [[0, 1, 2]] * 3
    assert [len(column) for column in without_padding(padded)] == [0, 0, 0]


@pytest.mark.parametrize("average", ["triplets", "pairs"])
def test_margin_loss_leaves_rows_without_a_triplet_out(average):
    z, labels = cloud()
    labels[0] = 6  # alone in its class
    beta = torch.linspace(0.4, 1.4, 7).double()
    padded = semi_hard_triplets(z, labels)
    assert padded[0][0] == padded[2][0]
    with_padding, without = (
        margin_loss(z, labels, triplets, beta, average=average) for triplets in (padded, without_padding(padded))
    )
    close(with_padding, without.item(), rtol=1e-12)


def test_a_column_is_drawn_as_by_multinomial():
    weights = torch.rand(50, 24)
    weights[weights < 0.3] = 0
    torch.manual_seed(3)
    ours = _draw(weights)
    torch.manual_seed(3)
    assert torch.equal(ours, torch.multinomial(weights, 1)[:, 0])


def test_random_triplets_are_as_many_as_rows_and_all_different():
    z, labels = cloud()
    labels[0] = 99  # alone in its class
    for _ in range(20):
        anchor, positive, negative = triplets = random_triplets(z, labels)
        assert len(anchor) == 24
        assert len(set(zip(*(column.tolist() for column in triplets), strict=True))) == 24
        assert (labels[anchor] == labels[positive]).all()
        assert (anchor != positive).all()
        assert (labels[anchor] != labels[negative]).all()


def test_random_triplets_are_equally_likely():
    """Classes of 3, 2 and 1: an anchor of the first has 2 x 3 triplets, of the second 1 x 4, of the third none."""
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    torch.manual_seed(0)
    drawn = [torch.stack(random_triplets(unit(torch.eye(6)), labels)).T for _ in range(2000)]
    triplets, counts = torch.cat(drawn).unique(dim=0, return_counts=True)
    assert len(triplets) == 3 * 2 * 3 + 2 * 1 * 4
    shares = counts / 2000  # 6 of 26 triplets a draw
    torch.testing.assert_close(shares, torch.full((26,), 6 / 26), rtol=0, atol=0.04)  # 4 deviations
    few = torch.tensor([0, 0, 1])  # two triplets in all
    all_of_them = without_padding(random_triplets(unit(torch.eye(3)), few))
    assert sorted(map(tuple, torch.stack(all_of_them).T.tolist())) == [(0, 1, 2), (1, 0, 2)]


def distances_of(z, triplets):
    anchor, positive, negative = triplets
    return (z[anchor] - z[positive]).norm(dim=1), (z[anchor] - z[negative]).norm(dim=1)


def test_semi_hard_negatives_are_farther_than_the_positive_by_less_than_the_margin():
    z, labels = cloud()
    d = torch.cdist(z, z)
    for _ in range(20):
        triplets = semi_hard_triplets(z, labels, margin=0.2)
        d_ap, d_an = distances_of(z, triplets)
        window = (labels != labels[:, None]) & (d > d_ap[:, None]) & (d < d_ap[:, None] + 0.2)
        there = window.any(dim=1)
        assert there.any()
        assert ((d_an > d_ap) & (d_an < d_ap + 0.2))[there].all()


def test_soft_hard_positives_are_far_and_negatives_near():
    z, labels = cloud()
    d, same = torch.cdist(z, z), labels == labels[:, None]
    farthest = torch.where(same, d, 0).amax(dim=1)
    nearest = torch.where(same, torch.inf, d).amin(dim=1)
    d_ap, d_an = distances_of(z, soft_hard_triplets(z, labels))
    hard = nearest < farthest
    assert hard.any()
    assert (d_ap > nearest - 1e-9)[hard].all()
    assert (d_an < farthest + 1e-9)[hard].all()


def test_inverse_density_matches_the_golden_file():
    case = GOLDEN["distance_weighted"]
    z, labels = unit(case["raw"]), torch.tensor(case["labels"])
    d = (z[:1] - z).norm(dim=1)[None]
    allowed = (labels != labels[0])[None]
    close(d.clamp(min=0.5)[0], case["dist"])
    close(inverse_density(d, allowed, dim=4, cutoff=case["lower_cutoff"])[0], case["prob"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [3, 128, 512])
def test_inverse_density_is_finite_at_distance_2(dim, dtype):
    d = torch.tensor([[2.0, 2.0000002, 1.4, 0.0]], dtype=dtype)
    weights = inverse_density(d, torch.ones(1, 4, dtype=torch.bool), dim=dim)
    assert weights.isfinite().all()
    close(weights.sum(), 1.0, rtol=1e-5)


def test_distance_weighted_negatives_follow_the_inverse_density():
    case = GOLDEN["distance_weighted"]
    z, labels = unit(case["raw"]), torch.tensor(case["labels"])
    torch.manual_seed(0)
    drawn = torch.stack([distance_weighted_triplets(z, labels)[2][0] for _ in range(3000)])
    shares = torch.bincount(drawn, minlength=6) / 3000
    torch.testing.assert_close(shares, torch.tensor(case["prob"]), rtol=0, atol=0.03)


def test_without_positives_replaces_a_share_of_the_triplets():
    z, labels = cloud()
    torch.manual_seed(0)
    triplets = random_triplets(z, labels)
    assert all(torch.equal(a, b) for a, b in zip(triplets, without_positives(triplets, 0.0), strict=True))
    anchor, positive, negative = without_positives(triplets, 1.0)
    assert torch.equal(positive, anchor)
    assert torch.equal(negative, triplets[1])
    flipped = [without_positives(triplets, 0.4)[1] == anchor for _ in range(200)]
    assert torch.stack(flipped).double().mean().item() == pytest.approx(0.4, abs=0.03)


def test_triplets_are_accepted_by_pytorch_metric_learning():
    z, labels = cloud()
    triplets = semi_hard_triplets(z, labels)
    d_ap, d_an = distances_of(z, triplets)
    hinge = (d_ap - d_an + 0.2).relu()
    loss = losses.TripletMarginLoss(margin=0.2, distance=distances.LpDistance())(z, labels, triplets)
    close(loss, (hinge.sum() / (hinge > 0).sum()).item(), rtol=1e-5)
