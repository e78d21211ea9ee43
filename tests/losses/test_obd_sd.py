"""OBD-SD's targets and loss against golden numbers (float64), the iterated walk, limits, gradients, hostile values."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from fgssl.losses.obd_sd import (
    diffused_targets,
    distillation_weight,
    global_affinity,
    global_similarity,
    relation_distillation,
    symmetric_transition,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "obdsd.json").read_text())
NORMALIZATIONS = ("softmax", "symmetric")


def similarity(rows) -> torch.Tensor:
    z = normalize(torch.as_tensor(rows, dtype=torch.float64), dim=1)
    return z @ z.T


TEACHER, STUDENT = similarity(GOLDEN["inputs"]["teacher_raw"]), similarity(GOLDEN["inputs"]["student_raw"])
NEGATIVE = similarity(GOLDEN["negative_degree"]["teacher_raw"])


def close(actual, expected, rtol=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=rtol, atol=1e-12)


def settings(name: str) -> dict[str, float]:
    return {key: float(value) for key, value in (part.split("=") for part in name.split(","))}


def check(case: dict, targets: torch.Tensor, tau: float):
    close(targets, case["target"])
    close(relation_distillation(STUDENT, targets, tau=tau), case["kl"])


def test_similarities_match_the_golden_file():
    close(TEACHER, GOLDEN["inputs"]["D_teacher"])
    close(STUDENT, GOLDEN["inputs"]["D_student"])


@pytest.mark.parametrize("name", GOLDEN["psd"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_targets_with_omega_0_are_those_of_psd(name, normalization):
    tau = settings(name)["tau"]
    check(GOLDEN["psd"][name], diffused_targets(TEACHER, omega=0, tau=tau, normalization=normalization), tau)


@pytest.mark.parametrize("name", GOLDEN["obdp_code_softmax"])
def test_targets_with_softmax_normalisation_match_the_golden_file(name):
    said = {"omega": 0.0, **settings(name)}
    check(GOLDEN["obdp_code_softmax"][name], diffused_targets(TEACHER, **said), said["tau"])


@pytest.mark.parametrize("name", GOLDEN["obdp_paper_eq5"])
def test_targets_with_symmetric_normalisation_match_the_golden_file(name):
    case, said = GOLDEN["obdp_paper_eq5"][name], settings(name)
    close(symmetric_transition(TEACHER), case["S"])
    check(case, diffused_targets(TEACHER, **said, normalization="symmetric"), said["tau"])


def test_distillation_gradient_matches_the_golden_file_and_reaches_the_student_only():
    targets = diffused_targets(TEACHER, omega=0.3, tau=1.0)
    d = STUDENT.clone().requires_grad_()
    relation_distillation(d, targets, tau=1.0).backward()
    close(d.grad, GOLDEN["kl_gradient_code_omega=0.3"]["dKL_dD"])
    raw = torch.tensor(GOLDEN["inputs"]["student_raw"], dtype=torch.float64, requires_grad=True)
    z = normalize(raw, dim=1)
    teacher = TEACHER.clone().requires_grad_()
    relation_distillation(z @ z.T, diffused_targets(teacher, omega=0.3, tau=1.0), tau=1.0).backward()
    close(raw.grad, GOLDEN["kl_gradient_code_omega=0.3"]["dKL_draw"])
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda s: relation_distillation(s, targets, tau=0.5), d)


@pytest.mark.parametrize("point", GOLDEN["weight"], ids=lambda p: f"epoch{p['epoch_zero_based']}")
def test_distillation_weight_matches_the_golden_file(point):
    weight = distillation_weight(point["epoch_zero_based"], point["n_epochs"], lam=point["lam"], tau=point["tau"])
    assert weight == pytest.approx(point["weight"], rel=1e-12)


def batch(count=24, dim=5, seed=0, dtype=torch.float64) -> torch.Tensor:
    z = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return similarity(z).to(dtype)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("omega", [0.0, 0.3, 0.99])
def test_targets_sum_to_one_and_permute_with_the_batch(normalization, omega):
    d = batch()
    targets = diffused_targets(d, omega=omega, tau=0.5, normalization=normalization)
    close(targets.sum(dim=1), torch.ones(24))
    assert (targets > 0).all()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    permuted = diffused_targets(d[order][:, order], omega=omega, tau=0.5, normalization=normalization)
    close(permuted, targets[order][:, order])


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_targets_with_small_omega_approach_psd(normalization):
    psd = diffused_targets(batch(), omega=0, tau=1.0)
    torch.testing.assert_close(
        diffused_targets(batch(), omega=1e-9, tau=1.0, normalization=normalization), psd, rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("omega", [0.3, 0.99])
def test_closed_form_is_the_limit_of_the_random_walk(normalization, omega):
    d = batch()
    if normalization == "softmax":
        transition, start = torch.softmax((d / 0.5).fill_diagonal_(-torch.inf), dim=1), torch.softmax(d, dim=1)
    else:
        transition, start = symmetric_transition(d), d
    f = start
    for _ in range(4000):
        f = omega * transition @ f + (1 - omega) * start
    expected = f if normalization == "softmax" else torch.softmax(f, dim=1)
    close(diffused_targets(d, omega=omega, tau=1.0, tau_d=0.5, normalization=normalization), expected)


def test_clamp_avoids_nan_for_a_row_with_a_negative_sum():
    case = GOLDEN["negative_degree"]
    affinity = NEGATIVE.clone().fill_diagonal_(0)
    close(affinity.sum(dim=1), case["degree_unclamped"])
    close(affinity.clamp(min=0).sum(dim=1), case["degree_clamped"])
    close(diffused_targets(NEGATIVE, omega=0.5, tau=1.0), case["code_target"])
    unclamped = diffused_targets(NEGATIVE, omega=0.3, tau=1.0, normalization="symmetric", clamp=False)
    assert unclamped.isnan().any()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("precision", ["float32", "bf16 autocast", "bf16 input"])
def test_targets_are_finite_for_negative_sums_at_low_precision(normalization, precision):
    d = NEGATIVE.to(torch.bfloat16 if precision == "bf16 input" else torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled="autocast" in precision):
        targets = diffused_targets(d, omega=0.99, tau=0.2, tau_d=0.005, normalization=normalization)
        loss = relation_distillation(STUDENT.to(d.dtype), targets, tau=0.2)
    assert targets.dtype == loss.dtype == torch.float32
    assert targets.isfinite().all()
    assert loss.isfinite()
    close(targets.sum(dim=1), torch.ones(4), rtol=1e-5)
    if precision != "bf16 input":
        exact = diffused_targets(NEGATIVE, omega=0.99, tau=0.2, tau_d=0.005, normalization=normalization)
        torch.testing.assert_close(targets.double(), exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("rows", [torch.ones(6, 3), -torch.eye(4) + 0.0, torch.eye(1)], ids=["equal", "apart", "one"])
def test_targets_are_finite_for_degenerate_batches(rows, normalization):
    targets = diffused_targets(similarity(rows).float(), omega=0.99, tau=1.0, normalization=normalization)
    assert targets.isfinite().all()
    close(targets.sum(dim=1), torch.ones(len(rows)), rtol=1e-4)


@pytest.mark.parametrize("wrong", [{"omega": 1.0}, {"omega": -0.1}, {"tau": 0.0}, {"tau_d": 0.0}])
def test_targets_refuse_values_out_of_range(wrong):
    with pytest.raises(ValueError, match="omega lies in"):
        diffused_targets(TEACHER, **({"omega": 0.3, "tau": 1.0} | wrong))


# ---- global manifold ------------------------------------------------------------------------------------------------


def points(count=60) -> torch.Tensor:
    z = torch.randn(count, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return normalize(z, dim=1)


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_global_affinity_keeps_mutual_neighbours_only(power):
    z, k = points(), 5
    d = (z @ z.T).fill_diagonal_(-torch.inf)
    near = torch.zeros_like(d, dtype=torch.bool).scatter_(1, d.topk(k, dim=1).indices, True)
    expected = torch.where(near & near.T, d.clamp(min=0) ** power, 0)
    close(global_affinity(z, neighbours=k, power=power).to_dense(), expected)


@pytest.mark.parametrize(("omega", "power"), [(0.3, 1.0), (0.99, 1.0), (0.3, 9.0)])
def test_global_similarity_equals_the_dense_solution(omega, power, monkeypatch):
    monkeypatch.setattr("fgssl.losses.obd_sd.COLUMNS", 25)
    z = points()
    w = global_affinity(z, neighbours=5, power=power).to_dense()
    assert power == 1 or ((w.sum(1) > 0) & (w.sum(1) < 1)).sum() > 5  # small degrees too
    root = torch.where(w.sum(1) > 0, w.sum(1).rsqrt(), 0)
    system = torch.eye(60, dtype=z.dtype) - omega * root[:, None] * w * root
    expected = (1 - omega) * torch.linalg.inv(system) @ (z @ z.T)
    ours = global_similarity(z, omega=omega, neighbours=5, power=power)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_global_similarity_with_all_neighbours_equals_the_batch_diffusion():
    z = normalize(points().abs() + 0.1, dim=1)  # no negative cosine, so that each pair is an edge
    close(
        torch.softmax(global_similarity(z, omega=0.3, neighbours=59, tolerance=1e-12), dim=1),
        diffused_targets(z @ z.T, omega=0.3, tau=1.0, normalization="symmetric"),
    )
