"""MaskCon's targets and loss against golden numbers (float64), limits, gradients and hostile values."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from fgssl.losses.contrastive import info_nce
from fgssl.losses.maskcon import soft_contrastive_loss, soft_targets

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "maskcon.json").read_text())
INPUTS = GOLDEN["inputs"]
TAU0 = INPUTS["tau0"]


def unit(rows) -> torch.Tensor:
    return normalize(torch.tensor(rows, dtype=torch.float64), dim=1)


Q, K, QUEUE = unit(INPUTS["q_raw"]), unit(INPUTS["k_raw"]), unit(INPUTS["queue_raw"])
COARSE, QUEUE_COARSE = torch.tensor(INPUTS["coarse"]), torch.tensor(INPUTS["queue_coarse"])


def close(actual, expected, rtol=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=rtol, atol=1e-12)


def targets(tau, weight, keys=K, coarse=COARSE):
    return soft_targets(keys, QUEUE, coarse, QUEUE_COARSE, tau=tau, weight=weight)


@pytest.mark.parametrize("case", GOLDEN["maskcon"].values(), ids=GOLDEN["maskcon"].keys())
def test_targets_loss_and_gradients_are_the_golden_ones(case):
    z = targets(float(case["tau"]), case["w"])
    close(z, case["target"])
    close(soft_contrastive_loss(Q, K, QUEUE, z, tau0=TAU0), case["loss"])

    q_unit = Q.clone().requires_grad_()
    soft_contrastive_loss(q_unit, K, QUEUE, z, tau0=TAU0).backward()
    close(q_unit.grad, case["grad_q_unit"])
    q_raw = torch.tensor(INPUTS["q_raw"], dtype=torch.float64, requires_grad=True)
    soft_contrastive_loss(normalize(q_raw, dim=1), K, QUEUE, z, tau0=TAU0).backward()
    close(q_raw.grad, case["grad_q_raw"])


@pytest.mark.parametrize(
    ("tau", "weight", "name"), [(0.1, 0.0, "selfcon"), (math.inf, 1.0, "supcon")], ids=["selfcon", "supcon"]
)
def test_selfcon_and_supcon_equal_golden_losses(tau, weight, name):
    loss = soft_contrastive_loss(Q, K, QUEUE, targets(tau, weight), tau0=TAU0)
    close(loss, GOLDEN["baselines"][name]["loss"])


def test_targets_at_tau_inf_give_grafit():
    loss = soft_contrastive_loss(Q, K, QUEUE, targets(math.inf, 0.8), tau0=TAU0)
    close(loss, GOLDEN["baselines"]["grafit_w08"])


def test_targets_at_weight_0_give_info_nce_at_any_tau():
    for tau in (0.0, 0.05, math.inf):
        close(soft_contrastive_loss(Q, K, QUEUE, targets(tau, 0.0), tau0=TAU0), info_nce(Q, K, QUEUE, tau=TAU0).item())


def test_targets_without_an_entry_of_the_label_are_selfcon():
    case = GOLDEN["no_same_coarse"]
    z = targets(case["tau"], case["w"], coarse=torch.tensor(case["coarse"]))
    close(z, case["target"])
    close(soft_contrastive_loss(Q, K, QUEUE, z, tau0=TAU0), case["loss"])
    for tau in (0.0, math.inf):
        assert targets(tau, 1.0, coarse=torch.tensor(case["coarse"]))[0].tolist() == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_targets_are_finite_for_negative_cosines_and_small_tau(dtype):
    case = GOLDEN["negative_sims_tau_0.001"]
    keys = unit(case["k_raw"])
    z = soft_targets(
        keys.to(dtype), QUEUE.to(dtype), torch.tensor(case["coarse"]), QUEUE_COARSE, tau=case["tau"], weight=case["w"]
    )
    assert torch.isfinite(z).all()
    close(soft_contrastive_loss(Q.to(dtype), keys.to(dtype), QUEUE.to(dtype), z, tau0=TAU0), case["loss"], rtol=1e-5)


def test_targets_without_mask_at_tau_0_are_nnclr():
    z = soft_targets(K, QUEUE, torch.zeros(2), torch.zeros(5), tau=0, weight=1)
    close(z, GOLDEN["maskless_tau0"]["target"])
    close(soft_contrastive_loss(Q, K, QUEUE, z, tau0=TAU0), GOLDEN["maskless_tau0"]["loss"])


def test_targets_at_small_and_large_tau_approach_the_limits():
    close(targets(1e-5, 0.7), targets(0, 0.7))
    close(targets(1e9, 0.7), targets(math.inf, 0.7), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("tau", "limit"), [(1e-46, 0), (1e-300, 0), (5e-324, 0), (1e39, math.inf), (1e300, math.inf)])
def test_targets_at_tau_beyond_the_range_of_the_dtype_equal_the_limit(tau, limit, dtype):
    ours, theirs = (
        soft_targets(K.to(dtype), QUEUE.to(dtype), COARSE, QUEUE_COARSE, tau=t, weight=0.7) for t in (tau, limit)
    )
    assert torch.isfinite(ours).all()
    torch.testing.assert_close(ours, theirs)


def test_targets_sum_to_1_and_follow_the_order_of_the_memory():
    generator = torch.Generator().manual_seed(0)
    keys = normalize(torch.randn(16, 8, generator=generator, dtype=torch.float64), dim=1)
    queue = normalize(torch.randn(64, 8, generator=generator, dtype=torch.float64), dim=1)
    labels = torch.randint(0, 4, (16,), generator=generator)
    queue_labels = torch.randint(0, 4, (64,), generator=generator)
    order = torch.randperm(64, generator=generator)
    for tau in (0, 0.05, math.inf):
        z = soft_targets(keys, queue, labels, queue_labels, tau=tau, weight=0.6)
        close(z.sum(dim=1), torch.ones(16))
        permuted = soft_targets(keys, queue[order], labels, queue_labels[order], tau=tau, weight=0.6)
        close(permuted[:, 1:], z[:, 1:][:, order])


def test_targets_with_an_empty_memory_are_the_sample_itself():
    z = soft_targets(K, QUEUE[:0], COARSE, QUEUE_COARSE[:0], tau=0.1, weight=1.0)
    close(z, torch.ones(2, 1))


def test_targets_have_no_gradient_and_stay_float32_under_autocast():
    keys = K.float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = soft_targets(keys, QUEUE.float(), COARSE, QUEUE_COARSE, tau=0.05, weight=1.0)
    assert not z.requires_grad
    assert z.dtype == torch.float32
    close(z, GOLDEN["maskcon"]["tau=0.05,w=1.0"]["target"], rtol=1e-4)


@pytest.mark.parametrize(("tau", "weight"), [(-0.1, 0.5), (0.1, 1.5), (math.nan, 0.5), (0.1, math.nan)])
def test_targets_reject_tau_and_weight_out_of_range(tau, weight):
    with pytest.raises(ValueError, match="tau must be at least 0 and weight within"):
        targets(tau, weight)
