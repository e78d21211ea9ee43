"""Structure of an embedding space: class density, spectral decay, and measures of collapse.

Density and decay: Roth et al., Revisiting Training Strategies and Generalization Performance in Deep Metric Learning,
ICML 2020, Sec. 5; reported by OBD-SD.

Shapes: N rows, D dimensions, C classes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fgssl.metrics.checks import check_embeddings


def embedding_density(embeddings: Tensor, labels: Tensor) -> float:
    """Embedding density pi_intra / pi_inter: distance within classes relative to distance between classes.

    pi_intra is the mean cosine distance between members of a class, averaged over classes with at least two members;
    pi_inter is the mean cosine distance between the L2-normalised class means.

    Args:
        embeddings: [N, D] float; L2-normalised here.
        labels: [N] int.

    Returns:
        The ratio, 0 or more; nan if all class means coincide, as in a collapsed embedding.

    Raises:
        ValueError: NaN or Inf, different lengths, fewer than two classes, or no class with two members.
    """
    check_embeddings(embeddings, labels)
    z_ND = _unit_rows(embeddings)
    _, class_N, size_C = labels.cpu().unique(return_inverse=True, return_counts=True)
    if len(size_C) < 2 or size_C.max() < 2:
        raise ValueError(f"density needs two classes and a class of two rows; class sizes: {size_C.tolist()[:10]}")
    sum_CD = z_ND.new_zeros(len(size_C), z_ND.shape[1]).index_add_(0, class_N, z_ND)
    square_C = z_ND.new_zeros(len(size_C)).index_add_(0, class_N, z_ND.square().sum(dim=1))
    many_C = size_C >= 2
    intra = _mean_distance(sum_CD[many_C], square_C[many_C], size_C[many_C]).mean()
    mean_CD = F.normalize(sum_CD)
    inter = _mean_distance(mean_CD.sum(dim=0), mean_CD.square().sum(), torch.tensor(len(size_C)))
    return float(intra / inter) if inter > 1e-12 else math.nan  # a smaller value is rounding error


def spectral_decay(embeddings: Tensor, *, drop: int = 2) -> float:
    """Spectral decay: KL divergence of the normalised singular values from the uniform distribution.

    Args:
        embeddings: [N, D] float; L2-normalised here.
        drop: number of largest singular values left out; 2 in the paper.

    Returns:
        KL(uniform || singular values) in nats: 0 for equal singular values, inf if one is 0 in float64 precision.

    Raises:
        ValueError: NaN or Inf, or no singular value left after ``drop``.
    """
    check_embeddings(embeddings)
    z_ND = _unit_rows(embeddings)
    if not 0 <= drop < min(z_ND.shape):
        raise ValueError(f"drop is {drop}; it must be in 0 .. {min(z_ND.shape) - 1}")
    s = torch.linalg.svdvals(z_ND)
    if s[-1] <= s[0] * max(z_ND.shape) * torch.finfo(s.dtype).eps:
        return math.inf
    share = s[drop:] / s[drop:].sum()
    return float(-(share * len(share)).log().mean())  # mean of log(uniform / share)


def rankme(embeddings: Tensor, *, eps: float = 1e-7) -> float:
    """RankMe, an effective rank: exponential of the entropy of p_k = s_k / sum(s) + eps, with singular values s.

    Garrido et al., RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by Their
    Rank, ICML 2023, Eq. 1 and 2. The embeddings are neither centred nor normalised.

    Args:
        embeddings: [N, D] float.
        eps: small constant; the paper's value for float32.

    Returns:
        From 1 (all rows parallel) to min(N, D) (equal singular values); nan if all embeddings are 0.

    Raises:
        ValueError: NaN or Inf.
    """
    check_embeddings(embeddings)
    s = torch.linalg.svdvals(embeddings.detach().cpu().double())
    p = s / s.sum() + eps
    return float((-p * p.log()).sum().exp())


def feature_std(embeddings: Tensor) -> float:
    """Standard deviation of the L2-normalised rows per dimension, mean over dimensions, times sqrt(D).

    Chen & He, Exploring Simple Siamese Representation Learning, CVPR 2021, Sec. 4.1; the factor sqrt(D) is added here.

    Args:
        embeddings: [N, D] float, N at least 2.

    Returns:
        0 if all rows are parallel; 1 for rows spread evenly over the sphere.

    Raises:
        ValueError: NaN or Inf, or a single row.
    """
    check_embeddings(embeddings)
    if len(embeddings) < 2:
        raise ValueError("the standard deviation needs at least two rows, got 1")
    z_ND = _unit_rows(embeddings)
    return float(z_ND.std(dim=0, correction=0).mean() * math.sqrt(z_ND.shape[1]))


def _unit_rows(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings.detach().cpu().double())


def _mean_distance(total: Tensor, square: Tensor, n: Tensor) -> Tensor:
    """Mean cosine distance over pairs of n unit vectors, from their sum [..., D] and the sum of squared norms [...]."""
    pairs = n * (n - 1)
    return 1 - (total.square().sum(dim=-1) - square) / pairs
