"""J and F of DAVIS: answers known by hand, and contours matched by dilation with a disk, the other way to do it."""

import math

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from fgssl.metrics.video import contour, contour_accuracy, region_similarity, video_metrics


def square(top: int, left: int, side: int = 20, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return mask


EMPTY = np.zeros((60, 80), bool)


def test_video_metrics_of_identical_and_empty_masks():
    for mask in (square(10, 10), EMPTY, ~EMPTY):
        assert region_similarity(mask, mask) == contour_accuracy(mask, mask) == 1
    for pair in ((square(10, 10), EMPTY), (EMPTY, square(10, 10))):
        assert region_similarity(*pair) == contour_accuracy(*pair) == 0


def test_video_metrics_of_a_shifted_square():
    """20 x 20 moved by 5 columns: 15 x 20 in common of 25 x 20; by 20 columns: nothing."""
    assert region_similarity(square(10, 10), square(10, 15)) == 300 / 500
    assert region_similarity(square(10, 10), square(10, 30)) == 0


def test_contours_match_within_the_tolerance_only():
    """0.008 of the diagonal of 60 x 80, which is 100, is 0.8: one pixel."""
    truth = square(20, 20)
    assert contour_accuracy(square(20, 21), truth) == 1
    assert contour_accuracy(square(20, 22), truth, tolerance=0.02) == 1
    assert contour_accuracy(square(20, 22), truth) < 1
    assert contour_accuracy(square(2, 50, side=8), truth) == 0


def test_precision_and_recall_of_contours():
    """Both squares predicted where one is true: half of the contour is right, all of the true one is found."""
    one, other = square(5, 5), square(30, 50)
    assert contour(one | other).sum() == 2 * contour(one).sum()
    assert contour_accuracy(one | other, one) == contour_accuracy(one, one | other) == pytest.approx(2 / 3)


def test_contour_pixels_differ_from_right_or_lower_neighbours():
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True
    expected = ["###.", "#.#.", "###.", "...."]
    assert ["".join(".#"[pixel] for pixel in row) for row in contour(mask).astype(int)] == expected
    whole_rows = np.zeros((4, 4), bool)
    whole_rows[2:] = True  # the image's own edge is no contour
    assert contour(whole_rows).sum(axis=1).tolist() == [0, 4, 0, 0]


def test_contour_matching_equals_dilation_by_a_disk():
    generator = np.random.default_rng(0)
    radius = 3
    disk = np.hypot(*np.mgrid[-radius : radius + 1, -radius : radius + 1]) <= radius
    for _ in range(5):
        one, other = (binary_dilation(generator.random((40, 50)) < 0.004, iterations=4) for _ in range(2))
        edge, other_edge = contour(one), contour(other)
        precision = (edge & binary_dilation(other_edge, disk)).sum() / edge.sum()
        recall = (other_edge & binary_dilation(edge, disk)).sum() / other_edge.sum()
        tolerance = (radius - 0.5) / math.hypot(40, 50)  # rounded up
        expected = 2 * precision * recall / (precision + recall)
        assert 0 < expected < 1
        assert contour_accuracy(one, other, tolerance=tolerance) == pytest.approx(expected, rel=1e-12)


def test_video_metrics_average_frames_then_objects():
    figures = video_metrics([([1, 0.5, 0.6], [1, 1, 1]), ([0.2], [0.4])])
    assert figures == pytest.approx(
        {
            "j_mean": (0.7 + 0.2) / 2,
            "f_mean": (1 + 0.4) / 2,
            "jf_mean": (0.45 + 0.7) / 2,
            "j_recall": (2 / 3 + 0) / 2,  # 0.5 itself is not above it
            "f_recall": (1 + 0) / 2,
        }
    )


def test_video_metrics_reject_invalid_input():
    with pytest.raises(ValueError, match="same size"):
        region_similarity(EMPTY, EMPTY[:5])
    with pytest.raises(ValueError, match="bool"):
        contour_accuracy(EMPTY.astype(int), EMPTY)
    for objects in ([], [([], [])], [([1.0], [1.0, 1.0])]):
        with pytest.raises(ValueError, match="at least one"):
            video_metrics(objects)
