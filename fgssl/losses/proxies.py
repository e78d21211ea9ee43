"""Losses with learned proxies or centres of the classes.

Only what differs from pytorch-metric-learning is here; ProxyAnchor and ArcFace are taken from there. Shapes: B batch,
C training classes, K centres of a class, D embedding.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def proxy_nca_pp(embeddings: Tensor, labels: Tensor, proxies: Tensor, *, temperature: float = 1 / 9) -> Tensor:
    """ProxyNCA++: negative logarithm of the probability of the own class's proxy (Teh et al., ECCV 2020).

    Unlike ProxyNCA, the own proxy is part of the denominator, and distances are divided by a temperature.

    Args:
        embeddings: [B, D] embeddings; scaled to unit length here.
        labels: [B] classes, 0 to C - 1.
        proxies: [C, D] a proxy of each class; scaled to unit length here.
        temperature: T, which divides the squared Euclidean distances.

    Returns:
        Scalar, mean over the batch.
    """
    x_BD, p_CD = F.normalize(embeddings, dim=1), F.normalize(proxies, dim=1)
    squared_BC = 2 - 2 * x_BD @ p_CD.T  # of rows of unit length
    return F.cross_entropy(-squared_BC / temperature, labels)


def soft_triple(
    embeddings: Tensor,
    labels: Tensor,
    centers: Tensor,
    *,
    la: float = 20.0,
    gamma: float = 0.1,
    margin: float = 0.01,
    tau: float = 0.2,
) -> Tensor:
    """SoftTriple: cross-entropy of relaxed similarities to K centres a class (Qian et al., ICCV 2019).

    pytorch-metric-learning's SoftTripleLoss is the first term alone, and its regulariser of the centres compares all
    centres of all classes; here those of one class are compared.

    Args:
        embeddings: [B, D] rows of unit length.
        labels: [B] classes, 0 to C - 1.
        centers: [C, K, D] centres of each class; scaled to unit length here.
        la: lambda, factor of the similarities.
        gamma: temperature of the choice among the centres of a class.
        margin: delta, subtracted from the similarity to the own class.
        tau: weight of the regulariser, the mean distance of centres of one class, which merges those not needed.

    Returns:
        Scalar, mean over the batch.
    """
    w_CKD = F.normalize(centers, dim=2)
    s_BCK = torch.einsum("bd,ckd->bck", embeddings, w_CKD)
    s_BC = (torch.softmax(s_BCK / gamma, dim=2) * s_BCK).sum(dim=2)
    own_BC = F.one_hot(labels, len(centers)).to(s_BC)
    loss = F.cross_entropy(la * (s_BC - margin * own_BC), labels)
    count, number, _ = centers.shape
    if not tau or number == 1:
        return loss
    first, second = torch.triu_indices(number, number, offset=1, device=centers.device)
    cosine_CP = (w_CKD[:, first] * w_CKD[:, second]).sum(dim=2)
    distances_CP = torch.sqrt(2 + 1e-5 - 2 * cosine_CP)  # the released code's 1e-5, for a gradient of equal centres
    return loss + tau * distances_CP.sum() / (count * number * (number - 1))
