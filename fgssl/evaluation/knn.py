"""Weighted k-nearest-neighbour classification of embeddings."""

import torch
from torch import Tensor

from fgssl.evaluation.search import search


def knn_accuracy(
    queries: Tensor,
    query_labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Top-1 accuracy of k-nearest-neighbour classification with votes of weight exp(cosine / temperature).

    Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018.

    Args:
        queries: [Q, D] float, embeddings of the test set.
        query_labels: [Q] int, classes of the test set.
        bank: [M, D] float, embeddings of the training set.
        bank_labels: [M] int, classes of the training set.
        k: number of neighbours that vote.
        temperature: temperature of the votes.

    Returns:
        Fraction of queries that are classified correctly. The lowest class wins a tie.

    Raises:
        ValueError: invalid input of ``search``, or embeddings and labels of different length.
    """
    if query_labels.shape != (len(queries),) or bank_labels.shape != (len(bank),):
        raise ValueError(
            f"{len(queries)} queries, {len(bank)} in the bank, but labels of shapes "
            f"{tuple(query_labels.shape)} and {tuple(bank_labels.shape)}"
        )
    cosine_Qk, ids_Qk = search(queries, bank, k)
    predicted_Q = vote(cosine_Qk, bank_labels.to(queries.device)[ids_Qk], temperature)
    return int((predicted_Q == query_labels.to(queries.device)).sum()) / len(queries)


def vote(cosine_Qk: Tensor, labels_Qk: Tensor, temperature: float) -> Tensor:
    """Classes [Q] with the largest sum of exp(cosine / temperature) over k neighbours; the lowest class wins a tie."""
    classes, class_Qk = labels_Qk.unique(return_inverse=True)
    predicted = []
    for rows in torch.arange(len(cosine_Qk), device=cosine_Qk.device).split(4096):
        weight = cosine_Qk.new_zeros(len(rows), len(classes))
        below_Qk = cosine_Qk[rows] - cosine_Qk[rows].amax(dim=1, keepdim=True)  # no exp of it overflows
        weight.scatter_add_(1, class_Qk[rows], (below_Qk / temperature).exp())
        predicted.append(classes[weight.argmax(dim=1)])
    return torch.cat(predicted)
