"""How well objects are segmented through a video: region similarity J and contour accuracy F of DAVIS.

Source: Perazzi et al., A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation, CVPR 2016, section
5; Pont-Tuset et al., The 2017 DAVIS Challenge, for several objects.

Shapes: H x W pixels, T frames. Masks are bool.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.spatial import KDTree

TOLERANCE = 0.008  # of the image's diagonal: how far a contour may be off
RECALLED = 0.5  # a frame counts to the recall above this J or F


def region_similarity(predicted_HW: np.ndarray, truth_HW: np.ndarray) -> float:
    """J: intersection over union of two masks; 1 where both are empty.

    Raises:
        ValueError: not two bool matrices of one size.
    """
    _check(predicted_HW, truth_HW)
    union = np.count_nonzero(predicted_HW | truth_HW)
    return np.count_nonzero(predicted_HW & truth_HW) / union if union else 1.0


def contour_accuracy(predicted_HW: np.ndarray, truth_HW: np.ndarray, *, tolerance: float = TOLERANCE) -> float:
    """F: harmonic mean of the contours' precision and recall.

    A contour's pixel is matched if the other contour has one within the tolerance (rounded up to whole pixels). That
    is what dilating the other contour by a disk gives.

    Args:
        predicted_HW, truth_HW: the masks.
        tolerance: as a fraction of the image's diagonal.

    Returns:
        F in 0 .. 1; 1 where neither mask has a contour, 0 where one of them alone has.

    Raises:
        ValueError: not two bool matrices of one size.
    """
    _check(predicted_HW, truth_HW)
    radius = math.ceil(tolerance * math.hypot(*truth_HW.shape))
    predicted_P2, truth_Q2 = np.argwhere(contour(predicted_HW)), np.argwhere(contour(truth_HW))
    if not len(predicted_P2) or not len(truth_Q2):
        return float(len(predicted_P2) == len(truth_Q2))
    precision = _share_within(radius, predicted_P2, truth_Q2)
    recall = _share_within(radius, truth_Q2, predicted_P2)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def contour(mask_HW: np.ndarray) -> np.ndarray:
    """[H, W] bool: pixels that differ from their right, lower or lower right neighbour; the image's edge is none."""
    padded = np.pad(mask_HW, ((0, 1), (0, 1)), mode="edge")
    here, right, below, across = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (here != right) | (here != below) | (here != across)


def video_metrics(objects: Sequence[tuple[Sequence[float], Sequence[float]]]) -> dict[str, float]:
    """Mean over the frames of each object, then over all objects of all videos.

    Args:
        objects: J [T] and F [T] of each object, of the frames that count: the first, whose mask was given, and the last
            do not.

    Returns:
        Fractions: ``j_mean``, ``f_mean``, ``jf_mean`` (the mean of both), and ``j_recall``, ``f_recall``: the share of
        frames above 0.5.

    Raises:
        ValueError: no object, or one of no frame.
    """
    if not objects or not all(len(j_T) and len(j_T) == len(f_T) for j_T, f_T in objects):
        raise ValueError("video metrics need one object or more, each with as many J as F and at least one")
    figures = {}
    for name, column in (("j", 0), ("f", 1)):
        frames = [np.asarray(scores[column], dtype=float) for scores in objects]
        figures[f"{name}_mean"] = float(np.mean([values_T.mean() for values_T in frames]))
        figures[f"{name}_recall"] = float(np.mean([(values_T > RECALLED).mean() for values_T in frames]))
    return figures | {"jf_mean": (figures["j_mean"] + figures["f_mean"]) / 2}


def _share_within(radius: int, points_P2: np.ndarray, others_Q2: np.ndarray) -> float:
    distance_P, _ = KDTree(others_Q2).query(points_P2)
    return float((distance_P <= radius).mean())


def _check(predicted_HW: np.ndarray, truth_HW: np.ndarray) -> None:
    if predicted_HW.shape != truth_HW.shape or truth_HW.ndim != 2:
        raise ValueError(f"masks of shapes {predicted_HW.shape} and {truth_HW.shape} are not of one size [H, W]")
    if predicted_HW.dtype != bool or truth_HW.dtype != bool:
        raise ValueError(f"masks must be bool, got {predicted_HW.dtype} and {truth_HW.dtype}")
