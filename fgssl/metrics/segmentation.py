"""Metrics of semantic segmentation, from a confusion matrix that can be summed over images and processes."""

import torch
from torch import Tensor

IGNORED = 255  # label of pixels without a class


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Confusion matrix of pixels.

    Args:
        predicted: integer class of each pixel, any shape.
        labels: true classes, of the same shape; pixels with ``IGNORED`` are left out.
        classes: number of classes C.

    Returns:
        [C, C] int64 counts; rows are true classes, columns predicted classes.

    Raises:
        ValueError: different shapes, or a class outside 0 .. C - 1.
    """
    if predicted.shape != labels.shape:
        raise ValueError(f"predictions of shape {tuple(predicted.shape)} for labels of {tuple(labels.shape)}")
    known = labels != IGNORED
    true, found = labels[known].long(), predicted[known].long()
    for name, values in (("label", true), ("prediction", found)):
        if len(values) and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(f"{name}s are in {values.min()} .. {values.max()}, outside 0 .. {classes - 1}")
    return torch.bincount(true * classes + found, minlength=classes**2).view(classes, classes)


def segmentation_scores(matrix: Tensor) -> dict[str, float]:
    """Mean IoU, mean class accuracy and pixel accuracy, as in ADE20K's benchmark (Zhou et al., 2017).

    Args:
        matrix: [C, C] confusion matrix, summed over all images.

    Returns:
        As fractions: ``miou``, intersection over union, mean over the classes that are labelled or predicted;
        ``macc``, accuracy per class, mean over the labelled classes; ``aacc``, accuracy over all pixels.

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
