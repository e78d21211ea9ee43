"""Top-k accuracy, and the average precisions of Pascal VOC.

Shapes: N images, C classes, T thresholds (distinct scores of a class, descending).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

DIFFICULT = 255  # of a target: neither present nor absent


def topk_accuracy(scores: Tensor, labels: Tensor, *, ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Share of the images whose class is among the k with the highest scores.

    Of classes with the same score the lower label comes first: a network that gives all the same score is at chance.

    Args:
        scores: [N, C] float.
        labels: [N] int in 0 .. C - 1.
        ks: each k. One of C or more, but 1, says nothing and is left out.

    Returns:
        ``top1``, ``top5``, as fractions.

    Raises:
        ValueError: no image, NaN among the scores, shapes or labels that do not fit.
    """
    _check_scores(scores)
    count, classes = scores.shape
    if labels.shape != (count,) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must be {count} numbers in 0 .. {classes - 1}")
    own_N1 = scores.gather(1, labels[:, None])
    before = torch.arange(classes, device=labels.device) < labels[:, None]
    rank_N = ((scores > own_N1) | ((scores == own_N1) & before)).sum(dim=1)
    return {f"top{k}": float((rank_N < k).double().mean()) for k in ks if k == 1 or k < classes}


def mean_average_precisions(scores: Tensor, targets: Tensor) -> dict[str, float]:
    """Mean over the classes of each form of average precision.

    Args:
        scores: [N, C] float.
        targets: [N, C] uint8: 1 where the class is in the image, 0 where it is not, 255 where only difficult objects
            of it are. A difficult image is left out of the ranking of its class.

    Returns:
        Fractions: ``map_11point``, ``map_allpoint``, ``map_noninterpolated``, see ``average_precisions``. A class
        that no image shows has no average precision and is left out.

    Raises:
        ValueError: no image, NaN among the scores, shapes or targets that do not fit, or no class in any image.
    """
    _check_scores(scores)
    if targets.shape != scores.shape:
        raise ValueError(f"targets of shape {tuple(targets.shape)} for scores of shape {tuple(scores.shape)}")
    if not ((targets <= 1) | (targets == DIFFICULT)).all():
        raise ValueError("targets must be 0, 1 or 255")
    each = []
    for score_N, target_N in zip(scores.T, targets.T, strict=True):
        counted = target_N != DIFFICULT
        if (target_N == 1).any():
            each.append(average_precisions(score_N[counted], target_N[counted] == 1))
    if not each:
        raise ValueError("no image shows any class")
    return {f"map_{form}": sum(ap[form] for ap in each) / len(each) for form in each[0]}


def average_precisions(scores: Tensor, relevant: Tensor) -> dict[str, float]:
    """The three average precisions of one ranking.

    Precision and recall are taken at each distinct score, so that the order of images with the same score does not
    matter.

    Args:
        scores: [N] float.
        relevant: [N] bool, at least one of them set.

    Returns:
        - ``11point``: mean over the recalls r = 0, 0.1 .. 1 of the highest precision at a recall of r or more (VOC
          2007, Everingham et al., IJCV 2010, Eq. 1 and 2);
        - ``allpoint``: area under that interpolated curve, all its steps taken (VOC from 2010 on);
        - ``noninterpolated``: area under the steps of the curve itself: the sum of precision times gain in recall.
    """
    distinct, place_N = scores.unique(return_inverse=True)  # ascending
    last = len(distinct) - 1 - place_N
    shown_T = torch.bincount(last, minlength=len(distinct)).cumsum(0)
    found_T = torch.bincount(last[relevant], minlength=len(distinct)).cumsum(0)
    total = found_T[-1]
    precision_T = found_T.double() / shown_T
    highest_T = precision_T.flip(0).cummax(0).values.flip(0)  # at this recall or a higher one
    gain_T = torch.diff(found_T, prepend=found_T.new_zeros(1)).double() / total
    # In integers: a recall of 3 / 10 is 0.3, which the floats 3 / 10 and 3 * 0.1 are not both.
    points = torch.stack([highest_T[10 * found_T >= tenth * total][0] for tenth in range(11)])
    return {
        "11point": float(points.mean()),
        "allpoint": float((gain_T * highest_T).sum()),
        "noninterpolated": float((gain_T * precision_T).sum()),
    }


def _check_scores(scores: Tensor) -> None:
    if scores.ndim != 2 or scores.numel() == 0:
        raise ValueError(f"scores must be a non-empty [N, C] matrix, got shape {tuple(scores.shape)}")
    if scores.isnan().any():
        raise ValueError(f"{int(scores.isnan().any(dim=1).sum())} of {len(scores)} rows of scores hold NaN")
