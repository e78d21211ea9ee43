"""SwAV's codes and its swapped prediction (Caron et al., NeurIPS 2020).

Shapes: B batch, K prototypes, V views, of which the first A are assigned to prototypes; N rows that share a code book.
"""

import torch
from torch import Tensor

from fgssl.losses.cmd import Pairs, bag_distillation, log_posterior
from fgssl.losses.precision import at_least_float32


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Codes of N features that use all prototypes equally (Eq. 3 to 5), by the iterations of Sinkhorn and Knopp.

    An iteration scales the columns of exp(scores / epsilon) to equal sums and then its rows to the sum 1. It is done on
    the logarithms: at an epsilon of 0.01 the smallest of these numbers are 0 in float32.

    Args:
        scores: [N, K] cosines of features and prototypes, of all processes.
        epsilon: weight of the codes' entropy; near 0 each code is a one-hot vector, a large one makes them uniform.
        iterations: number of iterations.

    Returns:
        [N, K], rows that sum to 1. Without gradient.
    """
    log_q_NK = at_least_float32(scores) / epsilon
    for _ in range(iterations):
        log_q_NK = log_q_NK.log_softmax(dim=0).log_softmax(dim=1)
    return log_q_NK.exp()


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
