"""MLS's labels and losses against golden numbers (float64), limits, gradients and hostile values."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from fgssl.losses.contrastive import info_nce
from fgssl.losses.mls import (
    bce_pos_loss,
    knn_softmax_loss,
    mean_length,
    multi_label_loss,
    pseudo_labels,
    pull_and_push,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mls.json").read_text())
MAIN = GOLDEN["main"]
TAU, K_NEAR = MAIN["tau"], MAIN["k"]


def of(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


G1, Z1, G2, Z2, QG, QZ = (of(MAIN[name]) for name in ("g1", "z1", "g2", "z2", "Qg", "Qz"))
Y = of(MAIN["y"])


def close(actual, expected, rtol=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=rtol, atol=1e-12)


def random_unit(*shape: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def test_labels_are_the_golden_ones():
    y = pseudo_labels(G1, QG, k=K_NEAR)
    close(y, MAIN["y"])
    close(G1 @ QG.T, MAIN["backbone_scores"])
    assert [sorted(row.nonzero()[:, 0].tolist()) for row in y] == [sorted(row) for row in MAIN["topk_indices"]]


def test_losses_are_the_golden_ones():
    close(multi_label_loss(Z1, QZ, Y, tau=TAU), MAIN["L_ml"])
    for row in range(3):
        close(multi_label_loss(Z1[row : row + 1], QZ, Y[row : row + 1], tau=TAU), MAIN["bce_per_sample"][row])
        close(info_nce(Z1[row : row + 1], Z2[row : row + 1], QZ, tau=TAU), MAIN["nce_per_sample"][row])
    nce = info_nce(Z1, Z2, QZ, tau=TAU)
    close(nce, MAIN["L_nce"])
    close(nce + MAIN["lambda"] * multi_label_loss(Z1, QZ, Y, tau=TAU), MAIN["total"])


def test_gradients_are_the_golden_ones():
    z1 = Z1.clone().requires_grad_()
    multi_label_loss(z1, QZ, Y, tau=TAU).backward()
    close(z1.grad, MAIN["grad_L_ml_wrt_z1"])
    # The product of p with the identity is p: its gradient is that of the logits.
    p = of(MAIN["p"]).requires_grad_()
    multi_label_loss(p, torch.eye(8, dtype=torch.float64), Y, tau=TAU).backward()
    close(p.grad, MAIN["grad_L_ml_wrt_p"])
    z1 = Z1.clone().requires_grad_()
    total = info_nce(z1, Z2, QZ, tau=TAU) + MAIN["lambda"] * multi_label_loss(z1, QZ, Y, tau=TAU)
    total.backward()
    close(z1.grad, MAIN["grad_total_wrt_z1"])


@pytest.mark.parametrize("loss", [multi_label_loss, bce_pos_loss, knn_softmax_loss])
def test_gradient_is_that_of_finite_differences(loss):
    assert torch.autograd.gradcheck(lambda z: loss(z, QZ, Y, tau=TAU), Z1.clone().requires_grad_())


def test_losses_of_the_ablations_are_the_golden_ones():
    ablation = GOLDEN["ablation_losses"]
    close(knn_softmax_loss(Z1, QZ, Y, tau=TAU), ablation["knn"])
    close(bce_pos_loss(Z1, QZ, Y, tau=TAU), ablation["bce_pos"])
    close(multi_label_loss(G1, QG, Y, tau=TAU), ablation["g"])
    close(multi_label_loss(Z1, QZ, pseudo_labels(Z1, QZ, k=K_NEAR), tau=TAU), ablation["z"])


def test_knn_softmax_is_equation_10_and_not_the_misprint():
    """Two positives of two classes: the logarithm of a sum would be -log(1) / 2 = 0."""
    p = of([[0.3, -0.1]])
    both = torch.ones(1, 2, dtype=torch.float64)
    loss = knn_softmax_loss(p, torch.eye(2, dtype=torch.float64), both, tau=TAU)
    close(loss, -torch.log_softmax(p / TAU, dim=1).mean())
    assert loss > 0.5


def test_labels_and_logits_are_of_one_dictionary():
    """What comes out when both are taken after the batch's keys have entered, and when only the labels are."""
    order = GOLDEN["enqueue_order"]
    new_qg, new_qz = torch.cat([G2, QG[3:]]), torch.cat([Z2, QZ[3:]])
    after = pseudo_labels(G1, new_qg, k=K_NEAR)
    assert [sorted(row.nonzero()[:, 0].tolist()) for row in after] == [sorted(row) for row in order["topk_after"]]
    close(multi_label_loss(Z1, QZ, pseudo_labels(G1, QG, k=K_NEAR), tau=TAU), order["before"])
    close(multi_label_loss(Z1, new_qz, after, tau=TAU), order["after"])
    close(multi_label_loss(Z1, QZ, after, tau=TAU), order["misaligned"])


@pytest.mark.parametrize("k", [1, 5, 20, 40])
def test_each_row_sums_to_k(k):
    y = pseudo_labels(random_unit(16, 8, seed=0), random_unit(64, 8, seed=1), k=k)
    assert set(y.unique().tolist()) == {0.0, 1.0}
    assert y.sum(dim=1).tolist() == [k] * 16


@pytest.mark.parametrize(("fill", "k"), [(0, 3), (2, 3), (3, 3)])
def test_a_dictionary_of_no_more_than_k_entries_is_all_positive(fill, k):
    y = pseudo_labels(G1, QG[:fill], k=k)
    assert y.shape == (3, fill)
    assert bool((y == 1).all())
    for loss in (multi_label_loss, bce_pos_loss, knn_softmax_loss):
        value = loss(Z1.clone().requires_grad_(), QZ[:fill], y, tau=TAU)
        assert torch.isfinite(value)
        value.backward()


def test_scale_of_the_features_does_not_matter():
    lengths = torch.rand(3, 1, dtype=torch.float64) + 0.1
    close(pseudo_labels(G1 * lengths, QG, k=K_NEAR), Y)


@pytest.mark.parametrize("loss", [multi_label_loss, bce_pos_loss, knn_softmax_loss])
def test_a_joint_permutation_of_both_dictionaries_changes_nothing(loss):
    g1, z1 = random_unit(16, 8, seed=0), random_unit(16, 6, seed=1)
    q_g, q_z = random_unit(64, 8, seed=2), random_unit(64, 6, seed=3)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(4))
    y, permuted = pseudo_labels(g1, q_g, k=5), pseudo_labels(g1, q_g[order], k=5)
    close(permuted, y[:, order])
    value = loss(z1, q_z, y, tau=TAU)
    close(loss(z1, q_z[order], permuted, tau=TAU), value, rtol=1e-12)
    assert abs(loss(z1, q_z[order], y, tau=TAU) - value) > 1e-4  # of one alone, it does


def entries_of(p: float, count: int) -> torch.Tensor:
    """Dictionary entries that z = (1, 0) has the cosine p with."""
    return of([[p, (1 - p * p) ** 0.5]]).expand(count, 2)


def test_values_at_the_limits():
    known, z = GOLDEN["invariants"], of([[1.0, 0.0]])
    y = torch.zeros(1, 4096, dtype=torch.float64)
    y[:, :20] = 1
    close(multi_label_loss(z, entries_of(0, 4096), y, tau=TAU), known["p_0"])
    close(multi_label_loss(z, entries_of(1, 4096), y, tau=TAU), known["all_ones_D4096_k20"])
    separated = torch.cat([entries_of(1, 20), entries_of(-1, 4076)])
    close(multi_label_loss(z, separated, y, tau=TAU), known["perfect_separation_D4096_k20"])
    close(info_nce(z, entries_of(0, 1), entries_of(0, 4096), tau=TAU), GOLDEN["moco"]["nce_at_uniform_D4096"])
    low, high = known["bounds"]
    for seed in range(5):
        loss = multi_label_loss(
            random_unit(4, 6, seed=seed), random_unit(30, 6, seed=9), torch.ones(4, 30).double(), tau=TAU
        )
        assert low <= loss <= high


def test_positives_have_no_more_weight_than_negatives():
    p = torch.zeros(1, 4096, dtype=torch.float64, requires_grad=True)
    y = torch.zeros(1, 4096, dtype=torch.float64)
    y[:, :20] = 1
    multi_label_loss(p, torch.eye(4096, dtype=torch.float64), y, tau=TAU).backward()
    size = p.grad.abs()
    close(size[:, :20].sum() / size.sum(), GOLDEN["invariants"]["share_of_gradient_on_positives"])


def test_labels_carry_no_gradient_and_keep_float32_under_autocast():
    features, queue = random_unit(32, 64, seed=0).float().requires_grad_(), random_unit(512, 64, seed=1).float()
    expected = pseudo_labels(features, queue, k=20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = pseudo_labels(features, queue, k=20)
        rough = features @ queue.T
    assert not y.requires_grad
    assert y.dtype == torch.float32
    assert torch.equal(y, expected)
    assert not torch.equal(torch.zeros_like(y).scatter_(1, rough.float().topk(20).indices, 1), expected)


def test_extreme_logits_stay_finite():
    z, queue = of([[1.0, 0.0]]).float(), of([[1.0, 0.0], [-1.0, 0.0]]).float()
    for loss in (multi_label_loss, bce_pos_loss, knn_softmax_loss):
        assert torch.isfinite(loss(z, queue, torch.tensor([[0.0, 1.0]]), tau=1e-4))


def test_k_below_one_is_named():
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        pseudo_labels(G1, QG, k=0)


REDUCTIONS = ["mean", "balanced", "sum"]
REDUCED = GOLDEN["reductions"]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_and_their_gradients_are_the_golden_ones(reduction):
    golden = REDUCED[reduction]
    z1 = Z1.clone().requires_grad_()
    pull, push = pull_and_push(z1, QZ, Y, tau=TAU, reduction=reduction)
    close(pull.detach(), golden["pull"])
    close(push.detach(), golden["push"])
    close(bce_pos_loss(Z1, QZ, Y, tau=TAU, reduction=reduction), golden["pull"])
    loss = multi_label_loss(z1, QZ, Y, tau=TAU, reduction=reduction)
    close(loss.detach(), golden["loss"])
    loss.backward()
    close(z1.grad, golden["grad_wrt_z1"])


def test_mean_is_torchs_binary_cross_entropy():
    y = pseudo_labels(random_unit(16, 8, seed=0), random_unit(64, 8, seed=1), k=5)
    z1, q_z = random_unit(16, 6, seed=2), random_unit(64, 6, seed=3)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(z1 @ q_z.T / TAU, y)
    close(multi_label_loss(z1, q_z, y, tau=TAU), expected, rtol=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradient_of_a_reduction_is_that_of_finite_differences(reduction):
    def loss(z):
        return multi_label_loss(z, QZ, Y, tau=TAU, reduction=reduction)

    assert torch.autograd.gradcheck(loss, Z1.clone().requires_grad_())


@pytest.mark.parametrize(("reduction", "share"), [("mean", 20 / 4096), ("sum", 20 / 4096), ("balanced", 0.5)])
def test_share_of_the_gradient_on_the_labels(reduction, share):
    """At p = 0, where every entry has the same gradient: Eq. 9 as printed gives the labels k / D of it."""
    p = torch.zeros(1, 4096, dtype=torch.float64, requires_grad=True)
    y = torch.zeros(1, 4096, dtype=torch.float64)
    y[:, :20] = 1
    multi_label_loss(p, torch.eye(4096, dtype=torch.float64), y, tau=TAU, reduction=reduction).backward()
    size = p.grad.abs()
    close(size[:, :20].sum() / size.sum(), share)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("fill", [0, 2, 3])
def test_reductions_of_a_dictionary_without_negatives_are_finite(reduction, fill):
    y = pseudo_labels(G1, QG[:fill], k=3)
    pull, push = pull_and_push(Z1, QZ[:fill], y, tau=TAU, reduction=reduction)
    assert torch.isfinite(pull)
    assert push == 0
    assert (pull == 0) == (fill == 0)


def test_mean_length_is_0_where_entries_cancel_and_1_where_they_agree():
    direction = random_unit(1, 6, seed=0)
    close(mean_length(direction.expand(5, 6)), 1.0)
    close(mean_length(torch.cat([direction, -direction])), 0.0)
    close(mean_length(QZ), QZ.mean(dim=0).norm())
    assert mean_length(QZ[:0]) == 0
