import math

import pytest
import torch

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
