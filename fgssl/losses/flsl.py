"""FLSL: mean-shift, and the three terms of the objective (Su, Netchaev, Li & Ji, NeurIPS 2023, Eq. 13).

Shapes: B batch, Q queries, N tokens, D channels, K centroids.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_shift(queries: Tensor, keys: Tensor, *, temperature: float) -> Tensor:
    """One step of mean-shift from each query towards the mode of the keys around it (Eq. 4; across views Eq. 12).

    z_hat = sum_n softmax_n(temperature * <z, z_n>) z_n: single-head attention without projections, with the keys as
    values. Computed by torch's fused attention, which does not store the [Q, N] weights.

    Args:
        queries: [B, Q, D], not normalised.
        keys: [B, N, D], the tokens of one view.
        temperature: inverse temperature; 0 gives the mean of the keys, a large value the key of largest inner product.

    Returns:
        [B, Q, D] modes.
    """
    queries_B1QD, keys_B1ND = queries[:, None], keys[:, None]  # a dimension for the single head
    return F.scaled_dot_product_attention(queries_B1QD, keys_B1ND, keys_B1ND, scale=temperature)[:, 0]


def intra_view(z: Tensor, modes: Tensor) -> Tensor:
    """Squared distance between features [..., D] and their modes [..., D], both normalised: 2 - 2 cos (Eq. 8).

    Mean over all features. Gradient flows through both.
    """
    return (F.normalize(z, dim=-1) - F.normalize(modes, dim=-1)).square().sum(dim=-1).mean()


def inter_view(student_logits: Tensor, teacher_logits: Tensor, *, tau_s: float, tau_t: float) -> Tensor:
    """Cross-entropy of teacher assignments against student log-assignments [..., K] (first term of Eq. 11).

    Mean over all rows, nats. No gradient flows to the teacher.
    """
    return assignment_loss((student_logits / tau_s).log_softmax(dim=-1), (teacher_logits / tau_t).softmax(dim=-1))


def assignment_loss(student_log_probs: Tensor, teacher_probs: Tensor) -> Tensor:
    """:func:`inter_view` of the student's log-probabilities and the teacher's probabilities [..., K]."""
    return -(teacher_probs.detach() * student_log_probs).sum(dim=-1).mean()


def volume(student_probs: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the mean assignment from the uniform one, KL(p_bar || 1/K) (Eq. 11, second term).

    Args:
        student_probs: [..., K], rows that sum to 1; p_bar is the mean over all of them.

    Returns:
        Scalar, nats: 0 where all centroids are used equally, log K where all rows go to one centroid.
    """
    p_bar_K = student_probs.flatten(0, -2).mean(dim=0)
    return math.log(len(p_bar_K)) - torch.special.entr(p_bar_K).sum()


def batch_mass(logits: Tensor, *, tau: float) -> Tensor:
    """Log of the total mass of each centroid: logsumexp over all rows of [..., K] logits / tau, [K].

    ``exp(logits / tau - batch_mass)`` is the softmax along the batch dimension that the paper calls Sinkhorn.
    """
    return (logits / tau).flatten(0, -2).logsumexp(dim=0)
