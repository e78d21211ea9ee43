"""Accuracy and average precision: hand-worked values, scikit-learn, ties and difficult objects."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from fgssl.data import index
from fgssl.metrics.classification import DIFFICULT, average_precisions, mean_average_precisions, topk_accuracy


def ranked(*relevant: int) -> dict[str, float]:
    """The average precisions of images in this order."""
    return average_precisions(-torch.arange(len(relevant)).double(), torch.tensor(relevant, dtype=torch.bool))


def test_accuracy_agrees_with_scikit_learn():
    scores, labels = torch.randn(200, 12, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 12
    for k in (1, 3, 5):
        expected = top_k_accuracy_score(labels, scores, k=k)
        assert topk_accuracy(scores, labels, ks=(k,))[f"top{k}"] == pytest.approx(expected, abs=1e-12)


def test_accuracy_of_equal_scores_is_at_chance():
    assert topk_accuracy(torch.zeros(20, 10), torch.arange(20) % 10) == {"top1": 0.1, "top5": 0.5}


def test_accuracy_leaves_out_k_of_all_classes():
    assert list(topk_accuracy(torch.eye(4), torch.arange(4))) == ["top1"]


@pytest.mark.parametrize(
    ("relevant", "eleven", "all_points", "plain"),
    [
        ((1, 1, 0), 1, 1, 1),
        ((1, 0, 1, 0, 0, 1), 8 / 11, 13 / 18, 13 / 18),  # precisions 1, 2/3, 1/2: they fall, nothing to interpolate
        ((0, 1, 1, 0, 1), 106 / 165, 29 / 45, 53 / 90),  # 1/2, 2/3, 3/5: the first rises to 2/3
        ((1, 1, 1, *[0] * 10, *[1] * 7), 7.5 / 11, 6.5 / 10, None),  # a recall of exactly 0.3
    ],
)
def test_average_precisions_equal_a_calculation_by_hand(relevant, eleven, all_points, plain):
    found = ranked(*relevant)
    assert found["11point"] == pytest.approx(eleven, rel=1e-12)
    assert found["allpoint"] == pytest.approx(all_points, rel=1e-12)
    if plain is not None:
        assert found["noninterpolated"] == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("levels", [1000, 5])
def test_noninterpolated_average_precision_equals_scikit_learn_with_ties(levels):
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (300,), generator=generator).double() / levels
    relevant = torch.rand(300, generator=generator) < 0.2 + 0.4 * scores
    expected = average_precision_score(relevant, scores)
    assert average_precisions(scores, relevant)["noninterpolated"] == pytest.approx(expected, rel=1e-12)


def test_average_precision_of_equal_scores_is_the_share_of_positives():
    for order in ((1, 0, 0, 0), (0, 0, 0, 1)):
        found = average_precisions(torch.zeros(4), torch.tensor(order, dtype=torch.bool))
        assert found == {"11point": 0.25, "allpoint": 0.25, "noninterpolated": 0.25}


def test_average_precision_does_not_depend_on_the_order_of_images():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(20, (100, 3), generator=generator).float()
    targets = torch.tensor([0, 1, 255], dtype=torch.uint8)[torch.randint(3, (100, 3), generator=generator)]
    order = torch.randperm(100, generator=generator)
    assert mean_average_precisions(scores, targets) == mean_average_precisions(scores[order], targets[order])


def test_mean_average_precision_leaves_out_difficult_images_of_a_class():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(60, 4, generator=generator)
    targets = torch.tensor([0, 1, 255], dtype=torch.uint8)[torch.randint(3, (60, 4), generator=generator)]
    expected = [
        average_precision_score(targets[kept, c] == 1, scores[kept, c])
        for c in range(4)
        for kept in [np.flatnonzero(targets[:, c].numpy() != 255)]
    ]
    found = mean_average_precisions(scores, targets)
    assert found["map_noninterpolated"] == pytest.approx(np.mean(expected), rel=1e-12)
    moved = torch.where(targets == 255, 100 * torch.randn(60, 4, generator=generator), scores)
    assert mean_average_precisions(moved, targets) == found


def test_mean_average_precision_leaves_out_classes_without_positives():
    scores = torch.tensor([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0]])
    found = mean_average_precisions(scores, torch.tensor([[0, 255], [1, 0], [0, 0]], dtype=torch.uint8))
    assert found == {"map_11point": 0.5, "map_allpoint": 0.5, "map_noninterpolated": 0.5}


@pytest.mark.parametrize(
    ("scores", "labels", "said"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), "non-empty"),
        (torch.tensor([[0.0, torch.nan]]), torch.tensor([0]), "1 of 1 rows of scores hold NaN"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), r"labels must be 2 numbers in 0 \.\. 2"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), "labels must be"),
    ],
)
def test_accuracy_rejects_invalid_input(scores, labels, said):
    with pytest.raises(ValueError, match=said):
        topk_accuracy(scores, labels)


def test_mean_average_precision_rejects_invalid_input():
    none = torch.zeros(2, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="targets have no positive entry"):
        mean_average_precisions(torch.zeros(2, 3), none)
    with pytest.raises(ValueError, match="targets must be 0, 1 or 255"):
        mean_average_precisions(torch.zeros(2, 3), none + 2)
    with pytest.raises(ValueError, match="targets of shape"):
        mean_average_precisions(torch.zeros(2, 4), none)


def test_difficult_is_marked_as_the_data_sets_mark_it():
    assert DIFFICULT == index.DIFFICULT == 255
