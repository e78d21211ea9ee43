import math

import pytest
import torch
import torch.nn.functional as F

from fgssl.evaluation.knn import knn_accuracy


def test_near_neighbours_outvote_more_distant_ones():
    """One bank row at cosine 1 against two at 0.5 of another class: exp(1 / t) against 2 exp(0.5 / t)."""
    half = torch.tensor([0.5, math.sqrt(0.75)])
    bank, bank_labels = torch.stack([torch.tensor([1.0, 0]), half, half]), torch.tensor([4, 9, 9])
    query = torch.tensor([[1.0, 0]])
    assert knn_accuracy(query, torch.tensor([4]), bank, bank_labels, k=3, temperature=0.07) == 1
    assert knn_accuracy(query, torch.tensor([9]), bank, bank_labels, k=3, temperature=10) == 1


def test_knn_accuracy_is_a_fraction_of_the_queries():
    bank = torch.eye(4)
    assert knn_accuracy(bank, torch.tensor([0, 1, 2, 7]), bank, torch.arange(4), k=1) == 0.75


def test_knn_accuracy_refuses_bad_input():
    with pytest.raises(ValueError, match="k must be"):
        knn_accuracy(torch.eye(2), torch.arange(2), torch.eye(2), torch.arange(2))
    with pytest.raises(ValueError, match="labels of shapes"):
        knn_accuracy(torch.eye(2), torch.arange(3), torch.eye(2), torch.arange(2), k=1)


def test_small_temperature_is_the_nearest_neighbours_class():
    """exp(1 / 0.001) is infinite in float32: all classes of such votes would be equal."""
    embeddings = F.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.arange(40) % 5
    queries = F.normalize(embeddings + 0.01, dim=1)
    assert knn_accuracy(queries, labels, embeddings, labels, k=10, temperature=0.001) == 1
