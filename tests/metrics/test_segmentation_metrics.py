"""Segmentation scores: known answers, a peer library, and what cannot be scored."""

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from fgssl.metrics.segmentation import IGNORED, confusion, segmentation_scores


def test_perfect_segmentation_scores_1_without_absent_classes():
    labels = torch.tensor([[0, 0, 2], [2, IGNORED, 0]])
    matrix = confusion(labels.where(labels != IGNORED, 1), labels, classes=4)
    assert matrix.diag().tolist() == [3, 0, 2, 0]
    assert matrix.sum() == 5
    assert segmentation_scores(matrix) == {"miou": 1.0, "macc": 1.0, "aacc": 1.0}


def test_segmentation_scores_equal_a_calculation_by_hand():
    """Class 0: 2 of 3 found, class 1: 1 of 2, class 2 is predicted once and not there."""
    labels, predicted = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 2])
    matrix = confusion(predicted, labels, classes=4)
    assert matrix.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    expected = {"miou": (2 / 3 + 1 / 3 + 0) / 3, "macc": (2 / 3 + 1 / 2) / 2, "aacc": 3 / 5}
    assert segmentation_scores(matrix) == pytest.approx(expected, rel=1e-12)


def test_segmentation_scores_equal_torchmetrics_and_sum_over_images():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (5, 20, 30), generator=generator)
    predicted = torch.where(torch.rand(labels.shape, generator=generator) < 0.6, labels, labels.flip(0))
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = IGNORED
    matrix = confusion(predicted, labels, classes=7)
    assert matrix.equal(sum(confusion(p, t, 7) for p, t in zip(predicted, labels, strict=True)))
    scores = segmentation_scores(matrix)
    options = {"num_classes": 7, "ignore_index": IGNORED}
    peers = {
        "miou": MulticlassJaccardIndex(**options, average="macro"),
        "macc": MulticlassAccuracy(**options, average="macro"),
        "aacc": MulticlassAccuracy(**options, average="micro"),
    }
    for name, peer in peers.items():
        assert scores[name] == pytest.approx(peer(predicted, labels).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("predicted", "labels", "said"),
    [([0, 1], [0], "shape"), ([0], [3], "labels are in 3 .. 3"), ([4], [0], "predictions are in 4 .. 4")],
)
def test_confusion_rejects_other_shapes_and_classes(predicted, labels, said):
    with pytest.raises(ValueError, match=said):
        confusion(torch.tensor(predicted), torch.tensor(labels), classes=3)


def test_segmentation_scores_need_a_labelled_pixel():
    with pytest.raises(ValueError, match="no pixel has a label"):
        segmentation_scores(confusion(torch.tensor([0]), torch.tensor([IGNORED]), classes=2))
