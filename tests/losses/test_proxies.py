"""ProxyNCA++, SoftTriple, ProxyAnchor, ArcFace and cross-entropy: golden numbers by plain loops in float64, gradients,
and where pytorch-metric-learning differs."""

import math

import pytest
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.regularizers import SparseCentersRegularizer
from torch import Tensor
from torch.nn import functional as F

from fgssl.losses.proxies import proxy_nca_pp, soft_triple
from fgssl.nn.dml import build_dml

B, C, K, D = 7, 4, 3, 5
LABELS = [0, 2, 2, 1, 0, 2, 0]  # class 3 is not in the batch


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Z, P, W = F.normalize(draw(B, D), dim=1), draw(C, D, seed=1), draw(C, K, D, seed=2)
LABELS_B = torch.tensor(LABELS)


def cosine(one: Tensor, other: Tensor) -> float:
    product = sum(a * b for a, b in zip(one.tolist(), other.tolist(), strict=True))
    return product / math.sqrt(sum(a * a for a in one.tolist()) * sum(b * b for b in other.tolist()))


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def close(actual: Tensor, expected: float, rtol: float = 1e-10) -> None:
    assert actual.dtype == torch.float64
    assert actual.item() == pytest.approx(expected, rel=rtol)


def golden(name: str, **settings) -> Tensor:
    """Value of a loss by name, with its weights set to ``P``."""
    loss, _ = build_dml({"class_path": name, "init_args": settings}, None, num_classes=C, embedding_size=D)
    loss = loss.double()
    with torch.no_grad():
        for weight in loss.parameters():
            weight.copy_((P if weight.shape == P.shape else P.T) if weight.ndim == 2 else torch.arange(C))
    return loss(Z, LABELS_B)


# ---- ProxyNCA++ -----------------------------------------------------------------------------------------------------


def nca_terms(temperature: float, without_own: bool = False) -> list[float]:
    """-log of exp(-d / T) of the own proxy over the sum of all, d the squared distance of rows of unit length."""
    terms = []
    for z, label in zip(Z, LABELS, strict=True):
        squared = [2 - 2 * cosine(z, p) for p in P]
        others = [math.exp(-d / temperature) for c, d in enumerate(squared) if not (without_own and c == label)]
        terms.append(-math.log(math.exp(-squared[label] / temperature) / sum(others)))
    return terms


@pytest.mark.parametrize("temperature", [1 / 9, 0.5])
def test_proxy_nca_pp_is_the_negative_logarithm_of_the_probability_of_the_own_proxy(temperature):
    close(proxy_nca_pp(Z, LABELS_B, P, temperature=temperature), mean(nca_terms(temperature)))
    close(proxy_nca_pp(3 * Z, LABELS_B, 7 * P, temperature=temperature), mean(nca_terms(temperature)))
    close(golden("ProxyNCApp", temperature=temperature), mean(nca_terms(temperature)))


def test_proxy_nca_of_pytorch_metric_learning_is_proxy_nca_pp_at_the_temperature_of_its_scale():
    """And neither is the first ProxyNCA, whose denominator leaves the own proxy out."""
    close(golden("ProxyNCA", softmax_scale=9), mean(nca_terms(1 / 9)))
    close(golden("ProxyNCA"), mean(nca_terms(1.0)))
    assert mean(nca_terms(1 / 9, without_own=True)) < mean(nca_terms(1 / 9)) - 0.01


def test_proxy_nca_pp_gradient():
    assert torch.autograd.gradcheck(lambda z, p: proxy_nca_pp(z, LABELS_B, p), [x.requires_grad_() for x in copies()])


def copies() -> list[Tensor]:
    return [Z.clone(), P.clone()]


# ---- SoftTriple -----------------------------------------------------------------------------------------------------


def soft_triple_terms(la=20.0, gamma=0.1, margin=0.01) -> list[float]:
    terms = []
    for z, label in zip(Z, LABELS, strict=True):
        relaxed = []
        for centers in W:
            similar = [cosine(z, w) for w in centers]
            weights = [math.exp(s / gamma) for s in similar]
            relaxed.append(sum(q * s for q, s in zip(weights, similar, strict=True)) / sum(weights))
        logits = [la * (s - margin * (c == label)) for c, s in enumerate(relaxed)]
        terms.append(-logits[label] + math.log(sum(math.exp(x) for x in logits)))
    return terms


def distance_of_centers() -> float:
    """Sum over pairs of centres of one class of their distance, over C K (K - 1)."""
    pairs = [(w[i], w[j]) for w in W for i in range(K) for j in range(i + 1, K)]
    return sum(math.sqrt(2 + 1e-5 - 2 * cosine(a, b)) for a, b in pairs) / (C * K * (K - 1))


@pytest.mark.parametrize("settings", [{}, {"la": 5.0, "gamma": 0.3, "margin": 0.1}])
def test_soft_triple_is_the_cross_entropy_of_relaxed_similarities_and_a_regulariser(settings):
    expected = mean(soft_triple_terms(**settings))
    close(soft_triple(Z, LABELS_B, W, tau=0.0, **settings), expected)
    close(soft_triple(Z, LABELS_B, 7 * W, tau=0.2, **settings), expected + 0.2 * distance_of_centers())


def test_soft_triple_of_one_center_a_class_has_no_regulariser():
    one = soft_triple(Z, LABELS_B, W[:, :1], tau=0.2)
    close(one, soft_triple(Z, LABELS_B, W[:, :1], tau=0.0).item())
    assert one.isfinite()


def test_soft_triple_gradient_is_finite_where_centers_are_equal():
    inputs = Z.clone().requires_grad_(), W.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z, w: soft_triple(z, LABELS_B, w), inputs)
    same = W[:, :1].repeat(1, K, 1).requires_grad_()
    soft_triple(Z, LABELS_B, same).backward()
    assert same.grad.isfinite().all()


def test_soft_triple_of_pytorch_metric_learning_has_the_regulariser_only_where_it_is_given():
    """Its centres are a [D, C K] matrix, and its regulariser adds another small number below the root."""
    flat = W.reshape(C * K, D).T
    plain = losses.SoftTripleLoss(C, D, centers_per_class=K)
    both = losses.SoftTripleLoss(
        C, D, centers_per_class=K, weight_regularizer=SparseCentersRegularizer(C, K), weight_reg_weight=0.2
    )
    for loss, tau, rtol in ((plain, 0.0, 1e-10), (both, 0.2, 1e-5)):
        loss.fc.data = flat.clone()
        close(loss(Z, LABELS_B), soft_triple(Z, LABELS_B, W, tau=tau).item(), rtol)


# ---- the losses of pytorch-metric-learning that experiments name -----------------------------------------------------


def test_proxy_anchor_pulls_over_the_classes_of_the_batch_and_pushes_over_all():
    alpha, margin = 32.0, 0.1
    s = [[cosine(z, p) for p in P] for z in Z]
    pull = [
        math.log(1 + sum(math.exp(-alpha * (s[b][c] - margin)) for b in range(B) if LABELS[b] == c)) for c in (0, 1, 2)
    ]
    push = [
        math.log(1 + sum(math.exp(alpha * (s[b][c] + margin)) for b in range(B) if LABELS[b] != c)) for c in range(C)
    ]
    close(golden("ProxyAnchor", margin=margin, alpha=alpha), mean(pull) + mean(push))


def test_arc_face_adds_its_margin_in_degrees_to_the_angle_of_the_own_class():
    margin, scale = 0.5, 16.0
    terms = []
    for z, label in zip(Z, LABELS, strict=True):
        s = [cosine(z, p) for p in P]
        theta = math.acos(s[label])
        assert theta + margin < math.pi  # the other branch is beyond
        s[label] = math.cos(theta + margin)
        terms.append(-scale * s[label] + math.log(sum(math.exp(scale * x) for x in s)))
    close(golden("ArcFace", margin=math.degrees(margin), scale=scale), mean(terms))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_spreads_a_share_of_the_target_over_all_classes(smoothing):
    terms = []
    for z, label in zip(Z.tolist(), LABELS, strict=True):
        logits = [sum(a * b for a, b in zip(z, p, strict=True)) + c for c, p in enumerate(P.tolist())]
        logs = [x - math.log(sum(map(math.exp, logits))) for x in logits]
        targets = [smoothing / C + (1 - smoothing) * (c == label) for c in range(C)]
        terms.append(-sum(t * x for t, x in zip(targets, logs, strict=True)))
    close(golden("CrossEntropy", label_smoothing=smoothing), mean(terms))


def test_cross_entropy_starts_with_equal_classes_and_drops_entries_in_training_alone():
    loss, _ = build_dml(
        {"class_path": "CrossEntropy", "init_args": {"dropout": 0.5}}, None, num_classes=C, embedding_size=D
    )
    assert loss.double()(Z, LABELS_B).item() == pytest.approx(math.log(C))
    with torch.no_grad():
        loss.classifier.weight.copy_(P)
    assert loss(Z, LABELS_B) != loss(Z, LABELS_B)
    loss.eval()
    assert loss(Z, LABELS_B) == loss(Z, LABELS_B)


@pytest.mark.parametrize("name", ["ProxyNCApp", "SoftTriple", "ProxyAnchor", "ArcFace", "CrossEntropy"])
def test_gradient_reaches_embeddings_and_proxies(name):
    torch.manual_seed(0)
    loss, _ = build_dml(name, None, num_classes=C, embedding_size=D)
    loss = loss.double()
    z = Z.clone().requires_grad_()
    with torch.no_grad():
        for weight in loss.parameters():
            weight += 0.1 * torch.randn_like(weight)
    weights = list(loss.parameters())
    assert torch.autograd.gradcheck(lambda z, *_: loss(z, LABELS_B), [z, *weights])
    loss(z, LABELS_B).backward()
    assert z.grad.abs().sum() > 0
    assert all(weight.grad.abs().sum() > 0 for weight in weights)
