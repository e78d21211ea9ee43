"""Scores of semantic segmentation, all of them from one confusion matrix, which sums over images and processes."""

import torch
from torch import Tensor

IGNORED = 255  # label of a pixel that no class is given to


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count pixels by their true and their predicted class.

    Args:
        predicted: integer class of each pixel, any shape.
        labels: the same shape; ``IGNORED`` pixels are left out.
        classes: C.

    Returns:
        [C, C] int64: true class by row, predicted class by column.

    Raises:
        ValueError: the shapes differ, or a class is not in 0 .. C - 1.
    """
    if predicted.shape != labels.shape:
        raise ValueError(f"predictions of shape {tuple(predicted.shape)} for labels of {tuple(labels.shape)}")
    known = labels != IGNORED
    true, found = labels[known].long(), predicted[known].long()
    for name, values in (("label", true), ("prediction", found)):
        if len(values) and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(f"{name}s run from {values.min()} to {values.max()}, and there are {classes} classes")
    return torch.bincount(true * classes + found, minlength=classes**2).view(classes, classes)


def segmentation_scores(matrix: Tensor) -> dict[str, float]:
    """Mean IoU, mean class accuracy and pixel accuracy, as ADE20K's benchmark has them (Zhou et al., 2017).

    Args:
        matrix: [C, C] of ``confusion``, over all images of a part.

    Returns:
        Fractions: ``miou``, the mean over classes of intersection by union; ``macc``, the mean over classes of the
        share of their pixels that was found; ``aacc``, the share of all pixels. A class that is neither labelled nor
        predicted is left out of ``miou``, one that is not labelled out of ``macc``.

    Raises:
        ValueError: no pixel has a label.
    """
    right, labelled, found = matrix.diag().double(), matrix.sum(1).double(), matrix.sum(0).double()
    if not labelled.any():
        raise ValueError("no pixel has a label")
    union = labelled + found - right
    return {
        "miou": (right / union)[union > 0].mean().item(),
        "macc": (right / labelled)[labelled > 0].mean().item(),
        "aacc": (right.sum() / labelled.sum()).item(),
    }
