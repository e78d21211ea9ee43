"""SwAV's codes and its swapped prediction (Caron et al., NeurIPS 2020).

Shapes: B batch, K prototypes, V views, of which the first A are assigned to prototypes; N rows that share a code book.
"""

import torch
from torch import Tensor

from fgssl.losses.cmd import Pairs, bag_distillation, log_posterior
from fgssl.losses.precision import at_least_float32

EPSILON = 0.025  # exp(-2 / 0.025) is 2e-35, float32's smallest number 1e-38


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Codes of N features that use all prototypes equally (Eq. 3 to 5), by the iterations of Sinkhorn and Knopp.

    Q = Diag(v) exp(scores / epsilon) Diag(u): an iteration chooses u such that all columns have equal sums, then v such
    that each row sums to 1.

    Args:
        scores: [N, K] cosines of features and prototypes, of all processes.
        epsilon: weight of the codes' entropy; a small one makes the codes nearly one-hot, a large one uniform. At least
            EPSILON, or exp(scores / epsilon) would be 0 in float32.
        iterations: number of iterations, 1 or more.

    Returns:
        [N, K], rows that sum to 1. Without gradient.
    """
    scores_NK = at_least_float32(scores)
    m_NK = ((scores_NK - scores_NK.max()) / epsilon).exp()
    v_N = m_NK.new_ones(len(m_NK))
    for _ in range(iterations):
        u_K = 1 / (v_N @ m_NK)
        v_N = 1 / (m_NK @ u_K)
    return v_N[:, None] * m_NK * u_K


def swapped_prediction(scores: Tensor, codes: Tensor, *, tau: float) -> Tensor:
    """Cross-entropy of the code of a view against the prediction of another view (Eq. 1, 2; multi-crop Eq. 6).

    Mean over the batch and over all pairs of an assigned view and another view.

    Args:
        scores: [V, B, K] cosines of features and prototypes.
        codes: [A, B, K] codes of the first A views.
        tau: temperature of the predictions.
    """
    pairs: Pairs = [(i, v) for i in range(len(codes)) for v in range(len(scores)) if v != i]
    log_p_VBK = log_posterior(at_least_float32(scores), tau=tau)
    return bag_distillation(list(log_p_VBK), list(codes), pairs=pairs)
