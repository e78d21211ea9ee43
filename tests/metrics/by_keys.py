"""Ranking as it is defined: fixed-point keys of all pairs in one float64 matrix, nothing decided by float32."""

import torch
from torch import Tensor

from fgssl.metrics import finish
from fgssl.metrics.retrieval import ONE, _per_query


def fixed_point(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Integer vectors stored as float64, and their inverse norms."""
    x_ND = embeddings.detach().double()
    length_N1 = (x_ND.norm(dim=1, keepdim=True) / 0.7).clamp(min=torch.finfo(torch.float64).tiny)
    power_N1 = length_N1 / torch.frexp(length_N1).mantissa
    vectors_ND = (x_ND / power_N1 * 2**27).round()
    return vectors_ND, 1 / vectors_ND.square().sum(dim=1).clamp(min=1).sqrt()


def all_keys(queries: Tensor, gallery: Tensor, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Keys [Q, G], -inf for excluded rows, and inverse norms of the queries."""
    (x_QD, inverse_Q), (g_GD, inverse_G) = fixed_point(queries), fixed_point(gallery)
    keys_QG = (x_QD @ g_GD.T * (inverse_G * 2**4)).round() - torch.arange(len(gallery)) / 2**22
    return keys_QG if exclude is None else keys_QG.scatter(1, exclude[:, None], -torch.inf), inverse_Q


def metrics_by_keys(z, labels, gallery=None, gallery_labels=None, ks=(1, 2, 5, 50)) -> dict[str, float]:
    """As ``retrieval_metrics``."""
    alone = gallery is None
    gallery, gallery_labels = (z, labels) if alone else (gallery, gallery_labels)
    keys_QG, _ = all_keys(z, gallery, torch.arange(len(z)) if alone else None)
    same_QG = labels[:, None] == gallery_labels
    relevant_QG = keys_QG.masked_fill(~same_QG, -torch.inf).sort(dim=1, descending=True).values
    above_QG = len(gallery) - torch.searchsorted(keys_QG.sort(dim=1).values, relevant_QG, right=True)
    ranks_QG = (above_QG + 1).double().masked_fill(relevant_QG == -torch.inf, torch.inf)
    largest = int(gallery_labels.unique(return_counts=True)[1].max())
    values = _per_query(ranks_QG, same_QG.sum(dim=1), largest, ks)
    return finish({name: (value_Q.double() * ONE).round().long().sum() for name, value_Q in values.items()})


def search_by_keys(queries, gallery, k, exclude=None) -> tuple[Tensor, Tensor]:
    """As ``search``."""
    keys_QG, inverse_Q = all_keys(queries, gallery, exclude)
    best = keys_QG.topk(k, dim=1)
    return best.values.ceil() / 2**4 * inverse_Q[:, None], best.indices
