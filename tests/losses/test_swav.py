"""SwAV's codes and swapped prediction: golden numbers from plain loops, marginals, gradients, and lightly's loss."""

import math

import pytest
import torch
from lightly.loss import SwaVLoss
from lightly.loss.swav_loss import sinkhorn as sinkhorn_of_lightly

from fgssl.losses.swav import EPSILON, sinkhorn, swapped_prediction


def cosines(*shape: int, seed: int = 0) -> torch.Tensor:
    """Cosines [..., K] of random directions."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(*shape[:-1], 6, generator=generator, dtype=torch.float64)
    prototypes = torch.randn(shape[-1], 6, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(z, dim=-1) @ torch.nn.functional.normalize(prototypes, dim=-1).T


def plain_sinkhorn(scores: list[list[float]], epsilon: float, iterations: int) -> list[list[float]]:
    """Number by number, as in the released code: prototypes to the sum 1 / K, then images to 1 / N; at last times N."""
    q = [[math.exp(x / epsilon) for x in row] for row in scores]
    images, prototypes = len(q), len(q[0])
    for _ in range(iterations):
        sums = [sum(row[k] for row in q) for k in range(prototypes)]
        q = [[x / sums[k] / prototypes for k, x in enumerate(row)] for row in q]
        q = [[x / sum(row) / images for x in row] for row in q]
    return [[x * images for x in row] for row in q]


def close(actual, expected, rtol=1e-9):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=rtol, atol=1e-12)


def test_sinkhorn_of_two_images_and_two_prototypes_has_these_codes():
    """exp(scores) is [[2, 1], [4, 1]]; by hand: columns [[1/3, 1/2], [2/3, 1/2]], then rows."""
    scores = torch.tensor([[2.0, 1.0], [4.0, 1.0]], dtype=torch.float64).log()
    close(sinkhorn(scores, epsilon=1.0, iterations=1), [[2 / 5, 3 / 5], [4 / 7, 3 / 7]])


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("epsilon", [0.05, 0.3])
def test_sinkhorn_is_the_plain_loop_and_lightlys(epsilon, iterations):
    scores = cosines(7, 5)
    ours = sinkhorn(scores, epsilon=epsilon, iterations=iterations)
    close(ours, plain_sinkhorn(scores.tolist(), epsilon, iterations))
    close(ours, sinkhorn_of_lightly(scores, iterations=iterations, epsilon=epsilon))


def test_codes_are_distributions_and_use_all_prototypes_equally():
    scores = cosines(24, 6)
    scores[:, 0] += 2  # a prototype that all images prefer
    codes = sinkhorn(scores, epsilon=0.3, iterations=200)
    close(codes.sum(dim=1), torch.ones(24))
    close(codes.sum(dim=0), torch.full((6,), 24 / 6), rtol=1e-6)
    assert (scores.argmax(dim=1) == 0).all()
    assert not sinkhorn(scores.requires_grad_(), epsilon=0.3, iterations=3).requires_grad


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_sinkhorn_of_the_sharpest_epsilon_has_the_digits_of_float32(kind):
    """With a feature on a prototype, and a prototype opposite to all features: exp(-2 / 0.025) = 2e-35."""
    scores = cosines(8, 5)
    scores[:, 1], scores[0, 0] = -1.0, 1.0
    scores = scores.to(kind)
    codes = sinkhorn(scores, epsilon=EPSILON, iterations=3)
    assert codes.dtype == torch.float32
    close(codes.double(), sinkhorn(scores.double(), epsilon=EPSILON, iterations=3), rtol=1e-4)
    close(codes.sum(dim=1), torch.ones(8), rtol=1e-5)


def test_swapped_prediction_is_the_plain_mean_over_pairs():
    """Two assigned views and three others: 2 x 4 pairs."""
    views, batch, prototypes, tau = 5, 3, 4, 0.1
    scores = cosines(views, batch, prototypes)
    codes = torch.stack([sinkhorn(scores[i], epsilon=0.05, iterations=3) for i in range(2)])
    total = 0.0
    for i in range(2):
        for v in range(views):
            for b in range(batch):
                e = [math.exp(scores[v, b, k].item() / tau) for k in range(prototypes)]
                p = [x / sum(e) for x in e]
                if v != i:
                    total -= sum(codes[i, b, k].item() * math.log(p[k]) for k in range(prototypes))
    close(swapped_prediction(scores, codes, tau=tau), total / (2 * 4 * batch))


def test_swapped_prediction_has_the_gradient_of_finite_differences():
    scores = cosines(3, 2, 4).requires_grad_()
    codes = sinkhorn(cosines(2, 2, 4, seed=1).flatten(0, 1), epsilon=0.3, iterations=3).unflatten(0, (2, 2))
    assert torch.autograd.gradcheck(lambda x: swapped_prediction(x, codes, tau=0.5), (scores,))


@pytest.mark.parametrize(("local", "queue"), [(0, 0), (6, 0), (6, 10)])
def test_swapped_prediction_is_lightlys(local, queue):
    """Also with the scores of a queue, which take part in the codes alone."""
    scores, past = cosines(2 + local, 8, 12).float(), cosines(2, queue, 12, seed=1).float()
    pool = [torch.cat([scores[i], past[i]]) for i in range(2)]
    codes = torch.stack([sinkhorn(rows, epsilon=0.05, iterations=3)[:8] for rows in pool])
    theirs = SwaVLoss()(list(scores[:2]), list(scores[2:]), list(past) if queue else None)
    close(swapped_prediction(scores, codes, tau=0.1)[None], theirs, rtol=1e-5)
