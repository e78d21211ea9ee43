"""COCO's and VOC's average precision: numbers worked out by hand, a second reading of VOC's, and torchmetrics."""

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from torchmetrics.detection import MeanAveragePrecision

from fgssl.metrics.detection import IOUS, Boxes, coco_average_precision, uavdt_average_precision, voc_average_precision

SIDE = 10


def coco_truth(boxes: list, crowds: tuple[int, ...] = ()) -> dict:
    """One image of 100 px and one class; boxes are (x, y) corners of squares."""
    objects = [
        {
            "id": number + 1, "image_id": 0, "category_id": 0, "bbox": [x, y, SIDE, SIDE], "area": SIDE**2,
            "iscrowd": int(number in crowds), "segmentation": mask(x, y),
        }
        for number, (x, y) in enumerate(boxes)
    ]  # fmt: skip
    images, categories = [{"id": 0, "width": 100, "height": 100}], [{"id": 0, "name": "square"}]
    return {"images": images, "annotations": objects, "categories": categories}


def coco_found(boxes: list, kind: str) -> list[dict]:
    shapes = [{"bbox": [x, y, SIDE, SIDE]} if kind == "box" else {"segmentation": mask(x, y)} for x, y in boxes]
    scores = np.linspace(0.9, 0.5, len(shapes)).tolist()
    return [{"image_id": 0, "category_id": 0, "score": s, **shape} for s, shape in zip(scores, shapes, strict=True)]


def mask(x: int, y: int) -> dict:
    drawn = np.zeros((100, 100), dtype=np.uint8, order="F")
    drawn[y : y + SIDE, x : x + SIDE] = 1
    return rle.encode(drawn)


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_coco_ap_of_perfect_shifted_and_missing_detections(kind):
    objects = [(0, 0), (30, 30), (60, 60)]
    truth = coco_truth(objects)
    perfect = coco_average_precision(truth, coco_found(objects, kind), kind)
    assert perfect == {name: pytest.approx(1) for name in (f"ap_{kind}", f"ap50_{kind}", f"ap75_{kind}", f"aps_{kind}")}

    # 2 of 10 px aside: IoU 80 / 120, which reaches four of the ten thresholds
    shifted = coco_average_precision(truth, coco_found([(x + 2, y) for x, y in objects], kind), kind)
    assert (shifted[f"ap_{kind}"], shifted[f"ap50_{kind}"], shifted[f"ap75_{kind}"]) == pytest.approx((0.4, 1, 0))
    assert coco_average_precision(truth, [], kind)[f"ap_{kind}"] == 0


def test_coco_ap_ignores_crowds_and_needs_an_object():
    objects = [(0, 0), (30, 30)]
    found = coco_found([(30, 30), (0, 0)], "box")  # the crowd's has the higher score
    assert coco_average_precision(coco_truth(objects, crowds=(1,)), found, "box")["ap_box"] == pytest.approx(1)
    with pytest.raises(ValueError, match="no object"):
        coco_average_precision(coco_truth(objects, crowds=(0, 1)), found, "box")


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.uniform(0, 60, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(5, 40, (count, 2))], axis=1)


def random_case(seed: int, objects: int, found: int, share: float, noise: tuple[float, float]) -> tuple[Boxes, Boxes]:
    """Objects on 8 images, and detections near them, some on an image without an object.

    Args:
        seed: of the random numbers.
        objects: number of objects.
        found: number of detections; of the first ``objects``, each is of its own object.
        share: of the objects that are difficult or ignored.
        noise: standard deviation of the corners, px: of all detections, and of those first ones.
    """
    rng = np.random.default_rng(seed)
    truth = Boxes(rng.integers(0, 8, objects), random_boxes(rng, objects), rng.random(objects) < share)
    near = truth.box[rng.integers(0, objects, found)] + rng.normal(0, noise[0], (found, 4))
    image = np.where(rng.random(found) < 0.8, truth.image[rng.integers(0, objects, found)], 9)
    near[:objects], image[:objects] = truth.box + rng.normal(0, noise[1], (objects, 4)), truth.image
    return truth, Boxes(image, near, rng.random(found))


def test_coco_ap_equals_torchmetrics():
    rng, images, classes = np.random.default_rng(0), 6, 3
    # its own recalls are of 32 bits, so that a recall of 3 / 10 misses that of 0.3
    recalls = np.linspace(0, 1, 101).tolist()
    peer = MeanAveragePrecision(backend="pycocotools", iou_thresholds=IOUS.tolist(), rec_thresholds=recalls)
    truth = {"images": [], "annotations": [], "categories": [{"id": c, "name": str(c)} for c in range(classes)]}
    results = []
    for image in range(images):
        boxes, labels = random_boxes(rng, 4), rng.integers(0, classes, 4)
        near = np.concatenate([boxes + rng.normal(0, 2, boxes.shape), random_boxes(rng, 3)])
        guesses, scores = np.concatenate([labels, rng.integers(0, classes, 3)]), rng.random(7)
        truth["images"].append({"id": image, "width": 100, "height": 100})
        for box, label in zip(boxes, labels.tolist(), strict=True):
            bbox = [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]
            number = len(truth["annotations"]) + 1
            truth["annotations"].append(
                {"id": number, "image_id": image, "category_id": label, "bbox": bbox, "area": bbox[2] * bbox[3]}
                | {"iscrowd": 0}
            )
        for box, label, score in zip(near, guesses.tolist(), scores.tolist(), strict=True):
            bbox = [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]
            results.append({"image_id": image, "category_id": label, "bbox": bbox, "score": score})
        found = {"boxes": torch.tensor(near), "labels": torch.tensor(guesses), "scores": torch.tensor(scores)}
        peer.update([found], [{"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)}])
    theirs, ours = peer.compute(), coco_average_precision(truth, results, "box")
    assert 0.1 < ours["ap_box"] < 0.9
    for name, their in (("ap", "map"), ("ap50", "map_50"), ("ap75", "map_75"), ("aps", "map_small")):
        assert ours[f"{name}_box"] == pytest.approx(float(theirs[their]), abs=1e-5)


# ---- Pascal VOC -----------------------------------------------------------------------------------------------------


def boxes(rows: list) -> Boxes:
    """Rows of (image, x, value): squares of 10 px at (x, 0)."""
    image, x, value = (np.array(column) for column in zip(*rows, strict=True)) if rows else (np.zeros(0),) * 3
    box = np.stack([x, 0 * x, x + SIDE, 0 * x + SIDE], axis=1).astype(np.float64)
    return Boxes(image.astype(np.int64), box, value)


def test_voc_ap_of_perfect_and_shifted_detections():
    truth = boxes([(0, 0, False), (0, 40, False), (1, 0, False)])
    perfect = voc_average_precision([truth], [boxes([(0, 0, 0.9), (0, 40, 0.8), (1, 0, 0.7)])])
    assert perfect == {"ap_box": 1, "ap50_box": 1, "ap75_box": 1}
    shifted = voc_average_precision([truth], [boxes([(0, 2, 0.9), (0, 42, 0.8), (1, 2, 0.7)])])
    assert shifted == {"ap_box": pytest.approx(0.4), "ap50_box": 1, "ap75_box": 0}


def test_voc_ap_counts_an_iou_of_the_threshold_itself():
    truth = boxes([(0, 0, False)])
    twice_as_wide = Boxes(np.array([0]), np.array([[0.0, 0, 2 * SIDE, SIDE]]), np.array([0.9]))  # an IoU of 1 / 2
    assert voc_average_precision([truth], [twice_as_wide]) == {
        "ap_box": pytest.approx(0.1),
        "ap50_box": 1,
        "ap75_box": 0,
    }


def test_voc_ap_counts_duplicates_as_false_and_ignores_difficult_objects():
    truth = boxes([(0, 0, False), (0, 40, False), (0, 80, True)])
    twice = boxes([(0, 0, 0.9), (0, 1, 0.8), (0, 40, 0.7)])
    eleven = (6 * 1 + 5 * 2 / 3) / 11  # recalls 0 to 0.5 at precision 1, 0.6 to 1 at 2 / 3
    assert voc_average_precision([truth], [twice])["ap50_box"] == pytest.approx(eleven)
    difficult = boxes([(0, 80, 0.99), (0, 81, 0.98), (0, 0, 0.9), (0, 40, 0.7)])
    assert voc_average_precision([truth], [difficult])["ap50_box"] == 1
    elsewhere = boxes([(1, 0, 0.99), (0, 0, 0.9), (0, 40, 0.7)])  # another image, without objects
    assert voc_average_precision([truth], [elsewhere])["ap50_box"] == pytest.approx(2 / 3)


def test_voc_ap_is_the_mean_over_classes_with_objects():
    one, none, difficult = boxes([(0, 0, False)]), boxes([]), boxes([(0, 0, True)])
    found = boxes([(0, 0, 0.9)])
    assert voc_average_precision([one, one, none, difficult], [found, none, found, found])["ap_box"] == 0.5
    with pytest.raises(ValueError, match="no object"):
        voc_average_precision([none, difficult], [found, found])
    with pytest.raises(ValueError, match="zip"):
        voc_average_precision([one, one], [found])


def slow_voc(truth: Boxes, detections: Boxes, threshold: float) -> float:
    """VOC's development kit, read line by line."""
    taken, right, wrong = set(), [], []
    total = sum(not difficult for difficult in truth.value)
    for n in np.argsort(-detections.value):
        best, match = -1.0, None
        for m in range(len(truth.image)):
            if truth.image[m] != detections.image[n]:
                continue
            a, b = truth.box[m], detections.box[n]
            inner = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
            iou = inner / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner)
            if iou > best:
                best, match = iou, m
        if best >= threshold and truth.value[match]:
            continue
        hit = best >= threshold and match not in taken
        taken |= {match} if hit else set()
        right.append(hit)
        wrong.append(not hit)
    recall, precision = np.cumsum(right) / total, np.cumsum(right) / np.arange(1, len(right) + 1)
    points = [precision[recall >= tenth / 10 - 1e-9] for tenth in range(11)]
    return float(np.mean([max(point, default=0.0) for point in points]))


def test_voc_ap_equals_a_slow_implementation_on_random_boxes():
    truth, detections = random_case(1, 40, 120, share=0.3, noise=(3, 2))
    expected = [slow_voc(truth, detections, iou) for iou in IOUS]
    ours = voc_average_precision([truth], [detections])
    assert 0.1 < ours["ap50_box"] < 0.9
    assert ours["ap50_box"] == pytest.approx(expected[0], rel=1e-9)
    assert ours["ap75_box"] == pytest.approx(expected[5], rel=1e-9)
    assert ours["ap_box"] == pytest.approx(np.mean(expected), rel=1e-9)


# ---- UAVDT ----------------------------------------------------------------------------------------------------------


def test_uavdt_ap_at_both_thresholds():
    truth = boxes([(0, 0, False), (0, 40, False), (1, 0, False)])
    perfect = uavdt_average_precision(truth, boxes([(0, 0, 0.9), (0, 40, 0.8), (1, 0, 0.7)]))
    assert perfect == {"ap70_box": 1, "ap50_box": 1}
    # 2 of 10 px aside: IoU 80 / 120; the object of image 1 is found at 90 / 110
    shifted = uavdt_average_precision(truth, boxes([(0, 2, 0.9), (0, 42, 0.8), (1, 1, 0.7)]))
    assert shifted == {"ap70_box": pytest.approx(1 / 3 * 1 / 3), "ap50_box": 1}
    assert uavdt_average_precision(truth, boxes([])) == {"ap70_box": 0, "ap50_box": 0}
    with pytest.raises(ValueError, match="no object"):
        uavdt_average_precision(boxes([(0, 0, True)]), boxes([(0, 0, 0.9)]))


def test_uavdt_ap_is_the_area_below_the_whole_curve():
    truth = boxes([(0, 0, False), (0, 40, False), (1, 0, False)])
    found = boxes([(0, 0, 0.9), (0, 80, 0.8), (0, 40, 0.7)])  # right, wrong, right; the third object is not found
    assert uavdt_average_precision(truth, found)["ap70_box"] == pytest.approx((1 + 2 / 3) / 3)


def test_uavdt_ap_drops_detections_strictly_inside_an_ignored_area_of_their_image():
    """A square of 10 px from 70 to 80; what touches the area's edge, or is in another image, counts."""
    truth = boxes([(0, 0, False), (1, 0, False), (0, 70, True)])
    truth.box[2] = [60, -5, 90, 15]
    right = [(0, 0, 0.5), (1, 0, 0.4)]
    for x, image, expected in ((70, 0, 1), (60, 0, 2 / 3), (80, 0, 2 / 3), (85, 0, 2 / 3), (70, 1, 2 / 3)):
        found = boxes([(image, x, 0.9), *right])
        assert uavdt_average_precision(truth, found)["ap70_box"] == pytest.approx(expected), (x, image)


def test_uavdt_ap_keeps_an_object_inside_an_ignored_area():
    """The toolkit drops the detection alone: the object is then missed."""
    truth = boxes([(0, 0, False), (0, 0, True)])
    truth.box[1] = [-1, -1, 11, 11]
    assert uavdt_average_precision(truth, boxes([(0, 0, 0.9)])) == {"ap70_box": 0, "ap50_box": 0}


def test_uavdt_ap_gives_a_second_detection_the_next_object():
    """Where VOC calls it a duplicate: its nearest object is taken, and the one beside it has IoU 90 / 110."""
    truth = boxes([(0, 0, False), (0, 1, False)])
    twice = boxes([(0, 0, 0.9), (0, 0, 0.8)])
    assert uavdt_average_precision(truth, twice)["ap70_box"] == 1
    assert voc_average_precision([truth], [twice])["ap50_box"] < 1
    thrice = boxes([(0, 0, 0.9), (0, 0, 0.8), (0, 1, 0.85)])  # the third is left with nothing
    assert uavdt_average_precision(truth, thrice)["ap70_box"] == 1


def slow_uavdt(truth: Boxes, detections: Boxes, threshold: float) -> float:
    """The toolkit, read line by line: drop, match image by image, sort, add up the area."""
    areas = [(i, b) for i, b, ignored in zip(*truth, strict=True) if ignored]
    objects = [(i, b) for i, b, ignored in zip(*truth, strict=True) if not ignored]
    scores, rights = [], []
    for image in range(10):
        found = [(s, b) for i, b, s in zip(*detections, strict=True) if i == image]
        found = [
            (s, b)
            for s, b in found
            if not any(i == image and (b[:2] > a[:2]).all() and (b[2:] < a[2:]).all() for i, a in areas)
        ]
        asked, taken = [b for i, b in objects if i == image], set()
        for score, box in sorted(found, key=lambda pair: -pair[0]):
            best, match = threshold, None
            for m, other in enumerate(asked):
                inner = np.clip(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0, None).prod()
                iou = inner / ((box[2:] - box[:2]).prod() + (other[2:] - other[:2]).prod() - inner)
                if m not in taken and iou >= best:
                    best, match = iou, m
            taken |= set() if match is None else {match}
            scores.append(score)
            rights.append(match is not None)
    right = np.array(rights)[np.argsort(-np.array(scores))]
    recall = np.concatenate([[0], right.cumsum() / len(objects)])
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    return float(sum((recall[n + 1] - recall[n]) * precision[n:].max() for n in range(len(right))))


def test_uavdt_ap_equals_a_slow_implementation_on_random_boxes():
    truth, detections = random_case(2, 60, 160, share=0.2, noise=(2, 1.5))
    ours = uavdt_average_precision(truth, detections)
    assert 0.05 < ours["ap70_box"] < ours["ap50_box"] < 0.95
    assert ours["ap70_box"] == pytest.approx(slow_uavdt(truth, detections, 0.7), rel=1e-9)
    assert ours["ap50_box"] == pytest.approx(slow_uavdt(truth, detections, 0.5), rel=1e-9)
