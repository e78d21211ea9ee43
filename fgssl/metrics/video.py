"""Metrics of video object segmentation: region similarity J and contour accuracy F of DAVIS.

Perazzi et al., A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation, CVPR 2016, Sec. 5; for
several objects: Pont-Tuset et al., The 2017 DAVIS Challenge.

Shapes: H x W pixels, T frames. Masks are bool.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.spatial import KDTree

TOLERANCE = 0.008  # distance at which contour pixels match, as a fraction of the image diagonal
RECALLED = 0.5  # recall is the share of frames with J or F above this


def region_similarity(predicted_HW: np.ndarray, truth_HW: np.ndarray) -> float:
    """Region similarity J: intersection over union of two masks; 1 if both are empty.

    Args:
        predicted_HW: predicted mask.
        truth_HW: true mask.

    Returns:
        J in [0, 1].

    Raises:
        ValueError: the masks are not bool matrices of the same size.
    """
    _check(predicted_HW, truth_HW)
    union = np.count_nonzero(predicted_HW | truth_HW)
    return np.count_nonzero(predicted_HW & truth_HW) / union if union else 1.0


def contour_accuracy(predicted_HW: np.ndarray, truth_HW: np.ndarray, *, tolerance: float = TOLERANCE) -> float:
    """Contour accuracy F: harmonic mean of precision and recall of contour pixels.

    A contour pixel matches if the other contour has a pixel within the tolerance, rounded up to whole pixels. This
    equals dilating the other contour by a disk.

    Args:
        predicted_HW: predicted mask.
        truth_HW: true mask.
        tolerance: matching distance as a fraction of the image diagonal.

    Returns:
        F in [0, 1]; 1 if neither mask has a contour, 0 if only one of them has.

    Raises:
        ValueError: the masks are not bool matrices of the same size.
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
    """Contour pixels [H, W] bool: they differ from the right, lower or lower right neighbour; image edges are none."""
    padded = np.pad(mask_HW, ((0, 1), (0, 1)), mode="edge")
    here, right, below, across = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (here != right) | (here != below) | (here != across)


def video_metrics(objects: Sequence[tuple[Sequence[float], Sequence[float]]]) -> dict[str, float]:
    """J and F, averaged over the frames of each object and then over all objects of all videos.

    Args:
        objects: J [T] and F [T] of each object, without the first frame (its mask is given) and the last frame.

    Returns:
        As fractions: ``j_mean``, ``f_mean``, their mean ``jf_mean``, and ``j_recall``, ``f_recall``: share of frames
        above 0.5.

    Raises:
        ValueError: no object, or an object without frames.
    """
    if not objects or not all(len(j_T) and len(j_T) == len(f_T) for j_T, f_T in objects):
        raise ValueError(
            "video metrics need at least one object, each with equally many J and F and at least one frame"
        )
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
        raise ValueError(f"masks must be [H, W] of the same size, got {predicted_HW.shape} and {truth_HW.shape}")
    if predicted_HW.dtype != bool or truth_HW.dtype != bool:
        raise ValueError(f"masks must be bool, got {predicted_HW.dtype} and {truth_HW.dtype}")
