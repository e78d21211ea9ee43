"""FLSL: mean-shift, and the three terms of the objective (Su, Netchaev, Li & Ji, NeurIPS 2023, Eq. 13).

Shapes: B batch, Q queries, N tokens, D channels, K centroids.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_shift(queries: Tensor, keys: Tensor, *, temperature: float) -> Tensor:
    """One step of mean-shift from each query towards the mode of the keys around it (Eq. 4; across views Eq. 12).

    z_hat = sum_n softmax_n(temperature * <z, z_n>) z_n: attention of one head without projections, whose values are
    its keys. Done by torch's fused attention, so the [Q, N] weights are never stored.

    Args:
        queries: [B, Q, D], not normalised.
        keys: [B, N, D], the tokens of one view.
        temperature: inverse temperature; 0 gives the mean of the keys, a large one the key nearest by inner product.

    Returns:
        [B, Q, D] modes.
    """
    queries_B1QD, keys_B1ND = queries[:, None], keys[:, None]  # one head: the fused kernels want the dimension
    return F.scaled_dot_product_attention(queries_B1QD, keys_B1ND, keys_B1ND, scale=temperature)[:, 0]


def intra_view(z: Tensor, modes: Tensor) -> Tensor:
    """Squared distance of features [..., D] from their modes [..., D], both of unit length: 2 - 2 cos (Eq. 8).

    The gradient goes through both. Mean over all features.
    """
    return (F.normalize(z, dim=-1) - F.normalize(modes, dim=-1)).square().sum(dim=-1).mean()


def inter_view(student_logits: Tensor, teacher_logits: Tensor, *, tau_s: float, tau_t: float) -> Tensor:
    """Cross-entropy of the student's assignments under the teacher's, aligned rows [..., K] (first term of Eq. 11).

    No gradient reaches the teacher. Mean over all rows, nats.
    """
    p_plus = (teacher_logits.detach() / tau_t).softmax(dim=-1)
    return -(p_plus * (student_logits / tau_s).log_softmax(dim=-1)).sum(dim=-1).mean()


def volume(student_probs: Tensor) -> Tensor:
    """Divergence of the mean assignment from the uniform one, KL(p_bar || 1/K) (second term of Eq. 11).

    Args:
        student_probs: [..., K], rows that sum to 1; p_bar is the mean over all of them.

    Returns:
        Scalar: 0 where the centroids are used alike, log K where one takes everything.
    """
    p_bar_K = student_probs.flatten(0, -2).mean(dim=0)
    return math.log(len(p_bar_K)) - torch.special.entr(p_bar_K).sum()


def batch_mass(logits: Tensor, *, tau: float) -> Tensor:
    """What each centroid gets from the whole batch: logsumexp over all rows of [..., K] logits / tau, [K].

    ``exp(logits / tau - batch_mass)`` is the softmax along the batch dimension that the paper calls Sinkhorn.
    """
    return (logits / tau).flatten(0, -2).logsumexp(dim=0)
