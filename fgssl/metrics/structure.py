"""The shape of an embedding space: density of the classes, decay of the spectrum, and what tells a collapse.

Source of density and decay: Roth et al., Revisiting Training Strategies and Generalization Performance in Deep Metric
Learning, ICML 2020, section 5, as OBD-SD reports them.

Shapes: N rows, D dimensions, C classes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fgssl.metrics.checks import check_embeddings


def embedding_density(embeddings: Tensor, labels: Tensor) -> float:
    """pi_ratio = pi_intra / pi_inter: how tight the classes are beside the distance between them.

    pi_intra is the mean over classes of two or more of the mean cosine distance between their members, pi_inter the
    mean cosine distance between the L2-normalised class means.

    Args:
        embeddings: [N, D] float, normalised inside.
        labels: [N] int.

    Returns:
        pi_ratio, 0 or more; nan where the class means coincide, as in a collapsed embedding.

    Raises:
        ValueError: NaN or Inf, lengths that differ, fewer than two classes, or no class of two.
    """
    check_embeddings(embeddings, labels)
    z_ND = _unit_rows(embeddings)
    _, class_N, size_C = labels.cpu().unique(return_inverse=True, return_counts=True)
    if len(size_C) < 2 or size_C.max() < 2:
        raise ValueError(f"density needs two classes, one of them of two rows: got sizes {size_C.tolist()[:10]}")
    sum_CD = z_ND.new_zeros(len(size_C), z_ND.shape[1]).index_add_(0, class_N, z_ND)
    square_C = z_ND.new_zeros(len(size_C)).index_add_(0, class_N, z_ND.square().sum(dim=1))
    many_C = size_C >= 2
    intra = _mean_distance(sum_CD[many_C], square_C[many_C], size_C[many_C]).mean()
    mean_CD = F.normalize(sum_CD)
    inter = _mean_distance(mean_CD.sum(dim=0), mean_CD.square().sum(), torch.tensor(len(size_C)))
    return float(intra / inter) if inter > 1e-12 else math.nan  # below, both are rounding errors


def spectral_decay(embeddings: Tensor, *, drop: int = 2) -> float:
    """KL(uniform || normalised singular values) of the embeddings: 0 where they use all directions alike.

    Args:
        embeddings: [N, D] float, normalised inside.
        drop: how many of the largest singular values to leave out; 2 in the paper.

    Returns:
        The divergence in nats; inf where a singular value is 0 to float64 precision (fewer directions than D).

    Raises:
        ValueError: NaN or Inf, or no singular value left after ``drop``.
    """
    check_embeddings(embeddings)
    z_ND = _unit_rows(embeddings)
    if not 0 <= drop < min(z_ND.shape):
        raise ValueError(f"cannot drop {drop} of {min(z_ND.shape)} singular values")
    s = torch.linalg.svdvals(z_ND)
    if s[-1] <= s[0] * max(z_ND.shape) * torch.finfo(s.dtype).eps:
        return math.inf
    share = s[drop:] / s[drop:].sum()
    return float(-(share * len(share)).log().mean())  # mean of log(uniform / share)


def rankme(embeddings: Tensor, *, eps: float = 1e-7) -> float:
    """RankMe, the effective rank: exp of the entropy of the normalised singular values, p_k = s_k / sum(s) + eps.

    Source: Garrido et al., RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations
    by Their Rank, ICML 2023, Eq. 1 and 2. Neither centred nor normalised by row.

    Args:
        embeddings: [N, D] float.
        eps: the paper's, of float32.

    Returns:
        1 where all rows have one direction, to min(N, D) where all directions weigh the same; nan of zeros alone.

    Raises:
        ValueError: NaN or Inf.
    """
    check_embeddings(embeddings)
    s = torch.linalg.svdvals(embeddings.detach().cpu().double())
    p = s / s.sum() + eps
    return float((-p * p.log()).sum().exp())


def feature_std(embeddings: Tensor) -> float:
    """Standard deviation of each dimension of the L2-normalised rows, mean over dimensions, times sqrt(D).

    Source: Chen & He, Exploring Simple Siamese Representation Learning, CVPR 2021, section 4.1, who plot it without
    the factor: its 1 / sqrt(D) of points spread over the sphere is 1 here.

    Args:
        embeddings: [N, D] float, N of 2 or more.

    Returns:
        0 where all rows have one direction, 1 where they are spread over the sphere.

    Raises:
        ValueError: NaN or Inf, or a single row.
    """
    check_embeddings(embeddings)
    if len(embeddings) < 2:
        raise ValueError("a single row has no standard deviation")
    z_ND = _unit_rows(embeddings)
    return float(z_ND.std(dim=0, correction=0).mean() * math.sqrt(z_ND.shape[1]))


def _unit_rows(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings.detach().cpu().double())


def _mean_distance(total: Tensor, square: Tensor, n: Tensor) -> Tensor:
    """Mean cosine distance over pairs of n unit vectors, from their sum [..., D] and their summed squares [...]."""
    pairs = n * (n - 1)
    return 1 - (total.square().sum(dim=-1) - square) / pairs
