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
    predicted_Q = knn_predict(queries, bank, bank_labels, k=k, temperature=temperature)
    return int((predicted_Q == query_labels.to(queries.device)).sum()) / len(queries)


def knn_predict(queries: Tensor, bank: Tensor, bank_labels: Tensor, *, k: int, temperature: float) -> Tensor:
    """The vote behind ``knn_accuracy``: the class [Q] of each query."""
    cosine_Qk, ids_Qk = search(queries, bank, k)
    classes_C, class_M = bank_labels.to(queries.device).unique(return_inverse=True)
    predicted = []
    for rows in torch.arange(len(queries), device=queries.device).split(4096):
        vote_QC = cosine_Qk.new_zeros(len(rows), len(classes_C))
        vote_QC.scatter_add_(1, class_M[ids_Qk[rows]], (cosine_Qk[rows] / temperature).exp())
        predicted.append(classes_C[vote_QC.argmax(dim=1)])
    return torch.cat(predicted)
