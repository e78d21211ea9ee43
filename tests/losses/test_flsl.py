"""FLSL's mean-shift and the three terms of its objective against golden numbers (float64), limits and gradients."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity

from fgssl.losses.flsl import batch_mass, inter_view, intra_view, mean_shift, volume

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "flsl.json").read_text())
SHIFT, LOSS = GOLDEN["meanshift"], GOLDEN["loss"]


def of(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


S, T, QUERIES = (of(SHIFT[name]) for name in ("s", "t", "queries"))
W_S, W_T = of(LOSS["W_student"]), of(LOSS["W_teacher"])
MASK = torch.tensor(SHIFT["mask"])


def close(actual, expected, rtol=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=rtol, atol=1e-12)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_mean_shift(queries, keys, temperature):
    return (temperature * queries @ keys.mT).softmax(dim=-1) @ keys


def objective(s, *, weights=(0.03, 1.0, 5.0)):
    """Eq. 13 of the golden tokens, the heads being matrices."""
    z = s[MASK].view(QUERIES.shape)
    z_hat = mean_shift(z, s, temperature=SHIFT["temp_sa"])
    z_hat_plus = mean_shift(z, T, temperature=SHIFT["temp_ca"]).detach()
    student, teacher = z_hat @ W_S, z_hat_plus @ W_T
    terms = (
        intra_view(z, z_hat),
        inter_view(student, teacher, tau_s=LOSS["tau_s"], tau_t=LOSS["tau_t"]),
        volume((student / LOSS["tau_s"]).softmax(dim=-1)),
    )
    return terms, sum(weight * term for weight, term in zip(weights, terms, strict=True))


def test_mean_shift_is_golden():
    close(mean_shift(QUERIES, S, temperature=SHIFT["temp_sa"]), SHIFT["mode_sa"])
    close(mean_shift(QUERIES, T, temperature=SHIFT["temp_ca"]), SHIFT["mode_ca"])
    close(mean_shift(QUERIES, S, temperature=SHIFT["temp_sa"]), of(SHIFT["attn_sa"]) @ S)


def test_mean_shift_at_temperature_0_and_infinity():
    close(mean_shift(QUERIES, S, temperature=0), SHIFT["temp0_is_mean"])
    close(mean_shift(QUERIES, S, temperature=0), S.mean(dim=1, keepdim=True).expand_as(QUERIES))
    close(mean_shift(QUERIES, S, temperature=1e4), SHIFT["temp_large_is_argmax_row"])


@pytest.mark.parametrize("temperature", [0.0, 0.3, 5.0])
def test_mean_shift_equals_the_plain_formula_and_its_gradient(temperature):
    q, k = random(2, 5, 24).requires_grad_(), random(2, 9, 24, seed=1).requires_grad_()
    ours, plain = mean_shift(q, k, temperature=temperature), plain_mean_shift(q, k, temperature)
    close(ours, plain, rtol=1e-9)
    weight = random(2, 5, 24, seed=2)
    for mine, theirs in zip(*(torch.autograd.grad((out * weight).sum(), (q, k)) for out in (ours, plain)), strict=True):
        close(mine, theirs, rtol=1e-8)


def test_terms_and_total_are_golden():
    (intra, inter, spread), total = objective(S)
    close(intra, LOSS["intra"])
    close(inter, LOSS["inter"])
    close(spread, LOSS["vmr"])
    close(total, LOSS["total"])


def test_gradient_is_golden():
    s = S.clone().requires_grad_()
    _, total = objective(s)
    total.backward()
    close(s.grad, LOSS["grad_total_wrt_s_teacher_branch_constant"])


def test_intra_view_is_2_minus_2_cos():
    z, modes = random(3, 4, 6), random(3, 4, 6, seed=1)
    close(intra_view(z, modes), (2 - 2 * cosine_similarity(z, modes, dim=-1)).mean())
    close(intra_view(z, 7 * z), 0.0)
    assert torch.autograd.gradcheck(intra_view, (z.requires_grad_(), modes.requires_grad_()))


def test_inter_view_has_no_gradient_to_the_teacher():
    student, teacher = random(3, 4, 6).requires_grad_(), random(3, 4, 6, seed=1).requires_grad_()
    inter_view(student, teacher, tau_s=0.5, tau_t=0.3).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda x: inter_view(x, teacher, tau_s=0.5, tau_t=0.3), (student,))
    p = torch.distributions.Categorical(logits=student.detach() / 0.5)
    close(inter_view(student, student.detach(), tau_s=0.5, tau_t=0.5), p.entropy().mean())  # its least


def test_volume_is_zero_at_uniform_and_log_k_at_one_hot():
    invariants = GOLDEN["vmr_invariants"]
    assert volume(torch.full((3, 4, 5), 0.2)).item() == pytest.approx(0, abs=1e-6)
    close(volume(torch.eye(5, dtype=torch.float64)), invariants["uniform"])  # each row one-hot, all used alike
    one_hot = torch.eye(5, dtype=torch.float64)[:1].expand(7, 5)
    close(volume(one_hot), invariants["one_hot_limit_logK"])
    close(volume(torch.eye(4096, dtype=torch.float64)[:1]), invariants["K4096_logK"])
    close(volume(of([invariants["example_p"]])), invariants["example_vmr"])
    p = random(3, 4, 5).softmax(dim=-1).requires_grad_()
    assert torch.autograd.gradcheck(volume, (p,))


def test_volume_takes_the_mean_over_queries_and_images():
    """The printed pseudo-code sums over tokens, whose p_bar is none: it sums to Q."""
    p = random(3, 4, 5).softmax(dim=-1)
    p_bar = p.mean(dim=(0, 1))
    close(volume(p), (p_bar * p_bar.log()).sum() + math.log(5))
    close(volume(p), volume(p_bar[None]))


def test_batch_mass_gives_the_golden_batch_softmax():
    golden = GOLDEN["batch_softmax_sinkhorn_like"]
    logits, tau = mean_shift(QUERIES, S, temperature=SHIFT["temp_sa"]) @ W_S, LOSS["tau_s"]
    share = (logits / tau - batch_mass(logits, tau=tau)).exp().flatten(0, -2)
    close(share.sum(dim=0), golden["column_sums"])
    close(share[0], golden["first_row"])
    close(share, (logits / tau).flatten(0, -2).softmax(dim=0), rtol=1e-9)


def test_default_temperatures_of_384_channels():
    golden = GOLDEN["default_temperatures_d384"]
    assert [0.1 / math.sqrt(384), 0.2 / math.sqrt(384)] == pytest.approx([golden["sa"], golden["ca"]], rel=1e-12)
