"""Weighted k-nearest-neighbour classification with a frozen backbone."""

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
    """Top-1 accuracy of a vote of the k nearest of the bank, each with weight exp(cosine / temperature).

    Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018.

    Args:
        queries, query_labels: [Q, D] float, [Q] int: the test set.
        bank, bank_labels: [M, D] float, [M] int: the training set.
        k: voters of a query.
        temperature: of the weights.

    Returns:
        A fraction. Of classes with equal votes the lowest wins.

    Raises:
        ValueError: as ``search``, or lengths that differ.
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
    """The class [Q] with most weight, exp(cosine / temperature) of each voter; the lowest of equals."""
    classes, class_Qk = labels_Qk.unique(return_inverse=True)
    predicted = []
    for rows in torch.arange(len(cosine_Qk), device=cosine_Qk.device).split(4096):
        weight = cosine_Qk.new_zeros(len(rows), len(classes))
        weight.scatter_add_(1, class_Qk[rows], (cosine_Qk[rows] / temperature).exp())
        predicted.append(classes[weight.argmax(dim=1)])
    return torch.cat(predicted)
