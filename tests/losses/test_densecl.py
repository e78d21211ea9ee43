"""DenseCL's correspondence and dense loss against plain loops in float64, finite differences and lightly's."""

import math

import pytest
import torch
from lightly.loss import NTXentLoss
from lightly.models.utils import select_most_similar
from torch.nn.functional import normalize

from fgssl.losses.contrastive import info_nce
from fgssl.losses.densecl import correspondence, dense_info_nce

B, N, M, F, D, K = 2, 4, 6, 5, 3, 7  # M: view 2 may have another number of positions


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


F1, F2 = random(B, N, F, seed=0), random(B, M, F, seed=1)
R, T, QUEUE = (normalize(random(*shape, seed=2 + i), dim=-1) for i, shape in enumerate([(B, N, D), (B, M, D), (K, D)]))


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def plain_correspondence(f1: list, f2: list) -> list[int]:
    """Of one image."""

    def cosine(one: list[float], other: list[float]) -> float:
        return dot(one, other) / math.sqrt(dot(one, one) * dot(other, other))

    return [max(range(len(f2)), key=lambda j, feature=feature: cosine(feature, f2[j])) for feature in f1]


def plain_info_nce(query: list[float], key: list[float], queue: list[list[float]], tau: float) -> float:
    logits = [dot(query, key) / tau, *(dot(query, negative) / tau for negative in queue)]
    return math.log(sum(math.exp(logit) for logit in logits)) - logits[0]


def test_correspondence_is_that_of_plain_loops():
    expected = [plain_correspondence(f1, f2) for f1, f2 in zip(F1.tolist(), F2.tolist(), strict=True)]
    assert correspondence(F1, F2).tolist() == expected
    assert correspondence(100 * F1, F2 * torch.arange(1, M + 1)[:, None]).tolist() == expected  # cosines, not products


def test_positions_correspond_to_themselves_in_the_same_view():
    assert correspondence(F1, F1).tolist() == [list(range(N))] * B
    order = torch.tensor([2, 0, 3, 1])
    assert correspondence(F1[:, order], F1).tolist() == [order.tolist()] * B


def test_dense_loss_is_that_of_plain_loops():
    c_BN = correspondence(F1, F2)
    expected = [
        plain_info_nce(R[b, i].tolist(), T[b, c_BN[b, i]].tolist(), QUEUE.tolist(), 0.2)
        for b in range(B)
        for i in range(N)
    ]
    assert dense_info_nce(R, T, c_BN, QUEUE, tau=0.2).item() == pytest.approx(sum(expected) / len(expected), rel=1e-12)


def test_gradient_of_the_dense_loss_is_that_of_finite_differences():
    c_BN = correspondence(F1, F2)
    assert torch.autograd.gradcheck(lambda r: dense_info_nce(r, T, c_BN, QUEUE, tau=0.2), R.clone().requires_grad_())


def lightlys(queries: torch.Tensor, keys: torch.Tensor, tau: float) -> torch.Tensor:
    """lightly's loss with the same entries in its memory."""
    loss = NTXentLoss(temperature=tau, memory_bank_size=(K, D)).double()
    loss.memory_bank.bank = QUEUE.clone()
    return loss(queries, keys)


def test_losses_are_lightlys():
    """DenseCL in lightly: NTXentLoss with a memory for images and another for positions, after select_most_similar."""
    q, k = R[:, 0], T[:, 0]
    torch.testing.assert_close(info_nce(q, k, QUEUE, tau=0.2), lightlys(q, k, 0.2), rtol=1e-5, atol=0)
    f2, t = F2[:, :N], T[:, :N]  # lightly's selection takes as many positions in both views
    theirs = lightlys(R.flatten(0, 1), select_most_similar(F1, f2, t).flatten(0, 1), 0.2)
    torch.testing.assert_close(dense_info_nce(R, t, correspondence(F1, f2), QUEUE, tau=0.2), theirs, rtol=1e-5, atol=0)
