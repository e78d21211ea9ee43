"""Retrieval metrics at the end of an epoch: which rows count."""

import torch

from fgssl.callbacks.retrieval import labelled
from fgssl.evaluation.embedding import Embeddings


def rows(*fine: int) -> Embeddings:
    return Embeddings(torch.eye(len(fine)), torch.tensor(fine), torch.arange(len(fine)))


def test_images_without_a_class_label_are_left_out():
    whole = rows(2, 0, 2)
    assert labelled(whole, "test") is whole
    some = labelled(rows(-1, 0, -1, 2), "test")
    assert (some.fine.tolist(), some.index.tolist()) == ([0, 2], [1, 3])
    assert torch.equal(some.embedding, torch.eye(4)[[1, 3]])
    assert labelled(rows(-1, -1), "val") is None
