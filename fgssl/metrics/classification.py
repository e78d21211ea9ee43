"""Top-k accuracy, and average precision as Pascal VOC defines it.

Shapes: N images, C classes, T thresholds (distinct scores of a class, descending).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

DIFFICULT = 255  # target value of a class of which only difficult objects are in the image


def topk_accuracy(scores: Tensor, labels: Tensor, *, ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Share of images whose class is among the k highest scores.

    Ties are broken by the lower label, so that a network with equal scores for all classes is at chance level.

    Args:
        scores: [N, C] float.
        labels: [N] int in 0 .. C - 1.
        ks: values of k. Values of C or more are left out, except 1.

    Returns:
        ``top<k>`` for each k, as fractions.

    Raises:
        ValueError: no image, NaN scores, or shapes or labels that do not match.
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
    """Mean average precision over classes, in three forms (see :func:`average_precisions`).

    Args:
        scores: [N, C] float.
        targets: [N, C] uint8: 1 present, 0 absent, 255 only difficult objects of the class. An image with 255 is left
            out of the ranking of that class.

    Returns:
        ``map_11point``, ``map_allpoint`` and ``map_noninterpolated``, as fractions. Classes without a positive image
        are left out of the mean.

    Raises:
        ValueError: no image, NaN scores, shapes or targets that do not match, or no positive target.
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
        raise ValueError("targets have no positive entry: average precision is undefined")
    return {f"map_{form}": sum(ap[form] for ap in each) / len(each) for form in each[0]}


def average_precisions(scores: Tensor, relevant: Tensor) -> dict[str, float]:
    """Average precision of one ranking, in three forms.

    Precision and recall are computed at each distinct score, so that the order of tied images has no effect.

    Args:
        scores: [N] float.
        relevant: [N] bool, at least one True.

    Returns:
        - ``11point``: mean over recalls r = 0, 0.1, ..., 1 of the maximum precision at recall r or more (VOC 2007;
          Everingham et al., IJCV 2010, Eq. 1 and 2);
        - ``allpoint``: area under the interpolated precision-recall curve (VOC since 2010);
        - ``noninterpolated``: sum of precision times the increase in recall, without interpolation.
    """
    distinct, place_N = scores.unique(return_inverse=True)  # ascending
    last = len(distinct) - 1 - place_N
    shown_T = torch.bincount(last, minlength=len(distinct)).cumsum(0)
    found_T = torch.bincount(last[relevant], minlength=len(distinct)).cumsum(0)
    total = found_T[-1]
    precision_T = found_T.double() / shown_T
    highest_T = precision_T.flip(0).cummax(0).values.flip(0)  # maximum precision at this recall or more
    gain_T = torch.diff(found_T, prepend=found_T.new_zeros(1)).double() / total
    # Recalls are compared as integers: in floats, 3 * 0.1 is larger than 3 / 10.
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
