"""Retrieval metrics as computed by the released script of CMD, for comparison with its numbers."""

import torch
from torch import Tensor
from torch.nn import functional as F

EVERY = 9  # every ninth test image is a query
CUT = 100  # neighbours considered
BLOCK = 256  # queries per block


def cmd_code_retrieval(
    test_ND: Tensor, test_labels_N: Tensor, train_MD: Tensor, train_labels_M: Tensor
) -> dict[str, float]:
    """Rank-1, Rank-5 and mAP with every ninth test image as query, against the training and other test images.

    The paper's protocol differs: leave-one-out over the test images, mAP on the full list (``retrieval_metrics``).
    Here, average precision is computed on the first 100 neighbours and divided by the number of matches among them.

    Args:
        test_ND: features of the test images, in the order of the data set.
        test_labels_N: their classes.
        train_MD: features of the training images.
        train_labels_M: their classes.

    Returns:
        ``cmd_code_rank1``, ``cmd_code_rank5`` and ``cmd_code_map``, as fractions.
    """
    is_query_N = torch.arange(len(test_ND), device=test_ND.device) % EVERY == 0
    gallery_GD = F.normalize(torch.cat([train_MD, test_ND[~is_query_N]]).double(), dim=1)
    labels_G = torch.cat([train_labels_M, test_labels_N[~is_query_N]])
    queries_QD = F.normalize(test_ND[is_query_N].double(), dim=1)
    hits = []
    for rows in torch.arange(len(queries_QD), device=test_ND.device).split(BLOCK):
        order_BG = (queries_QD[rows] @ gallery_GD.T).argsort(dim=1, descending=True, stable=True)[:, :CUT]
        hits.append(labels_G[order_BG] == test_labels_N[is_query_N][rows, None])
    hit_QK = torch.cat(hits).double()
    found_Q = hit_QK.sum(dim=1)
    precision_QK = hit_QK.cumsum(dim=1) / torch.arange(1, hit_QK.shape[1] + 1, device=hit_QK.device)
    ap_Q = (precision_QK * hit_QK).sum(dim=1) / found_Q.clamp(min=1)
    figures = {"rank1": hit_QK[:, 0], "rank5": hit_QK[:, :5].amax(dim=1), "map": ap_Q}
    return {f"cmd_code_{name}": value_Q.mean().item() for name, value_Q in figures.items()}
