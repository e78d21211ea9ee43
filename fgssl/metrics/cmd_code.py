"""Retrieval as the script published with CMD measures it, for comparison with numbers that came out of it."""

import torch
from torch import Tensor
from torch.nn import functional as F

EVERY, CUT = 9, 100
BLOCK = 256  # queries at once


def cmd_code_retrieval(
    test_ND: Tensor, test_labels_N: Tensor, train_MD: Tensor, train_labels_M: Tensor
) -> dict[str, float]:
    """Rank-1, Rank-5 and mAP of every ninth test image as a query against the training and the other test images.

    It is not the paper's protocol (leave-one-out over the test images, full-list mAP, which ``retrieval_metrics``
    gives): average precision looks at the first 100 neighbours and is divided by the right ones found among them.

    Args:
        test_ND, test_labels_N: [N, D] features, [N] classes, in the order of the data set.
        train_MD, train_labels_M: of the training images.

    Returns:
        ``cmd_code_rank1``, ``cmd_code_rank5``, ``cmd_code_map``, fractions.
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
