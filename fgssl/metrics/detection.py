"""Average precision of detected boxes and masks: COCO (by pycocotools), Pascal VOC and UAVDT."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_iou

IOUS = np.linspace(0.5, 0.95, 10)  # IoU thresholds
NAMES = ("ap", "ap50", "ap75", "aps", "apm", "apl")  # the first six of pycocotools' statistics


def coco_average_precision(
    truth: dict[str, Any], detections: list[dict[str, Any]], kind: Literal["box", "mask"]
) -> dict[str, float]:
    """COCO average precision (Lin et al., 2014): mean over ten IoU thresholds, 101 recalls and the classes.

    Args:
        truth: ``images``, ``annotations`` and ``categories`` as in COCO's annotation files; annotation ids start at 1.
        detections: COCO results: ``image_id``, ``category_id``, ``score``, and ``bbox`` (x, y, width, height) or
            ``segmentation`` (run-length encoding). At most 100 detections per image are used.
        kind: compare boxes or masks.

    Returns:
        For boxes, as fractions: ``ap_box``, ``ap50_box``, ``ap75_box``, and ``aps_box``, ``apm_box``, ``apl_box`` for
        small, medium and large objects; for masks the same with ``_mask``. Sizes without objects are left out.

    Raises:
        ValueError: the annotations have no object.
    """
    if not any(not item["iscrowd"] for item in truth["annotations"]):
        raise ValueError("the annotations have no object to detect")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints a table
        asked = COCO()
        asked.dataset = truth
        asked.createIndex()
        found = asked.loadRes(detections) if detections else _nothing(truth)
        evaluation = COCOeval(asked, found, "bbox" if kind == "box" else "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = zip(NAMES, evaluation.stats[:6].tolist(), strict=True)
    return {f"{name}_{kind}": value for name, value in figures if value >= 0}  # -1: no object of this size


def _nothing(truth: dict[str, Any]) -> COCO:
    """An empty result; ``COCO.loadRes`` does not accept an empty list."""
    empty = COCO()
    empty.dataset = {**truth, "annotations": []}
    empty.createIndex()
    return empty


class Boxes(NamedTuple):
    """The n objects or detections of one class in all images.

    Attributes:
        image: [n] int64 image numbers.
        box: [n, 4] float x0, y0, x1, y1 in pixels.
        value: [n] scores of detections (float), or flags of difficult objects and ignored areas (bool).
    """

    image: np.ndarray
    box: np.ndarray
    value: np.ndarray


def voc_average_precision(truth: Sequence[Boxes], detections: Sequence[Boxes]) -> dict[str, float]:
    """Pascal VOC average precision of boxes (Everingham et al., IJCV 2010), over ten IoU thresholds.

    Each detection is assigned to the object of its class and image with the largest IoU. It is a true positive if the
    IoU reaches the threshold and no detection with a higher score is assigned to that object. Detections of difficult
    objects are ignored. Average precision is the 11-point form of VOC 2007, as in Detectron2's VOC 2007 evaluation,
    which the tables of MoCo and MLS use.

    Args:
        truth: objects of each class.
        detections: detections of each class, in the same order of classes.

    Returns:
        Means over classes with at least one object that is not difficult, as fractions: ``ap_box`` (mean over IoU 0.5
        to 0.95), ``ap50_box`` and ``ap75_box``.

    Raises:
        ValueError: no class has such an object, or the two have different numbers of classes.
    """
    classes = [
        _class_precisions(asked, found)
        for asked, found in zip(truth, detections, strict=True)
        if (~asked.value.astype(bool)).any()
    ]
    if not classes:
        raise ValueError("the annotations have no object to detect")
    ap_T = np.mean(classes, axis=0)
    return {"ap_box": float(ap_T.mean()), "ap50_box": float(ap_T[0]), "ap75_box": float(ap_T[5])}


def _class_precisions(truth: Boxes, detections: Boxes) -> np.ndarray:
    """Average precision of one class at each IoU threshold [10]."""
    order = np.argsort(-detections.value, kind="stable")
    detections = Boxes(*(column[order] for column in detections))
    iou_n, object_n = _nearest(truth, detections)
    difficult = truth.value.astype(bool)
    total = int((~difficult).sum())
    return np.array([_eleven_point(*_hits(iou_n >= iou, object_n, difficult), total) for iou in IOUS])


def _nearest(truth: Boxes, detections: Boxes) -> tuple[np.ndarray, np.ndarray]:
    """Largest IoU of each detection [n] and the position of that object [n]; 0 in images without objects."""
    best, place = np.zeros(len(detections.image)), np.zeros(len(detections.image), dtype=np.int64)
    for image in np.unique(detections.image):
        found, asked = np.flatnonzero(detections.image == image), np.flatnonzero(truth.image == image)
        if len(asked):
            iou = box_iou(torch.from_numpy(detections.box[found]), torch.from_numpy(truth.box[asked])).numpy()
            best[found], place[found] = iou.max(axis=1), asked[iou.argmax(axis=1)]
    return best, place


def _hits(near_n: np.ndarray, object_n: np.ndarray, difficult: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives, bool [m] each, by descending score; ignored detections are removed."""
    counted = ~(near_n & difficult[object_n])
    near, place = near_n[counted], object_n[counted]
    right = np.zeros(len(near), dtype=bool)
    _, first = np.unique(place[near], return_index=True)  # the first detection of an object has the highest score
    right[np.flatnonzero(near)[first]] = True
    return right, ~right


def _eleven_point(right: np.ndarray, wrong: np.ndarray, total: int) -> float:
    """Mean over recalls 0, 0.1, ..., 1 of the maximum precision at that recall or more; 0 for recalls not reached."""
    found, missed = right.cumsum(), wrong.cumsum()
    precision = found / (found + missed)
    points = [precision[10 * found >= tenth * total] for tenth in range(11)]  # compared as integers, exactly
    return float(np.mean([point.max() if len(point) else 0.0 for point in points]))


# ---- UAVDT ----------------------------------------------------------------------------------------------------------


def uavdt_average_precision(truth: Boxes, detections: Boxes) -> dict[str, float]:
    """UAVDT's average precision of boxes, all classes together (Du et al., ECCV 2018; FLSL, Table 3).

    As the official toolkit: detections that lie strictly inside an ignored area are dropped. In descending order of
    their scores the others take, each, the object with the largest IoU of those in their image that are not yet taken,
    if the IoU reaches the threshold; the toolkit's is 0.7. Average precision is the area below the precision-recall
    curve, whose precision at each recall is the largest at that recall or more (VOC 2010 and later).

    Args:
        truth: objects and ignored areas; ``value`` is true for the areas.
        detections: detections.

    Returns:
        ``ap70_box`` (the toolkit's) and ``ap50_box``, as fractions.

    Raises:
        ValueError: there is no object.
    """
    ignored = truth.value.astype(bool)
    objects, areas = (Boxes(*(column[chosen] for column in truth)) for chosen in (~ignored, ignored))
    if not len(objects.image):
        raise ValueError("the annotations have no object to detect")
    order = np.argsort(-detections.value, kind="stable")
    detections = Boxes(*(column[order] for column in detections))
    counted = ~_inside(detections, areas)
    detections = Boxes(*(column[counted] for column in detections))
    found = {name: _taken(objects, detections, iou) for name, iou in (("ap70_box", 0.7), ("ap50_box", 0.5))}
    return {name: _area_below(right, len(objects.image)) for name, right in found.items()}


def _rows_of_images(boxes: Boxes) -> dict[int, np.ndarray]:
    """Positions of the boxes of each image, ascending."""
    order = np.argsort(boxes.image, kind="stable")
    images, starts = np.unique(boxes.image[order], return_index=True)
    return dict(zip(images.tolist(), np.split(order, starts[1:]), strict=True)) if len(images) else {}


def _inside(detections: Boxes, areas: Boxes) -> np.ndarray:
    """Whether each detection lies strictly inside an area of its image, bool [n]."""
    inside, areas_of = np.zeros(len(detections.image), dtype=bool), _rows_of_images(areas)
    for image, rows in _rows_of_images(detections).items():
        if image in areas_of:
            box_n14, area_m4 = detections.box[rows][:, None], areas.box[areas_of[image]]
            within = (box_n14[..., :2] > area_m4[:, :2]) & (box_n14[..., 2:] < area_m4[:, 2:])
            inside[rows] = within.all(axis=2).any(axis=1)
    return inside


def _taken(objects: Boxes, detections: Boxes, threshold: float) -> np.ndarray:
    """Whether each detection, in descending order of scores, takes an object, bool [n]."""
    right, objects_of = np.zeros(len(detections.image), dtype=bool), _rows_of_images(objects)
    for image, rows in _rows_of_images(detections).items():
        if image not in objects_of:
            continue
        boxes = (torch.from_numpy(one) for one in (detections.box[rows], objects.box[objects_of[image]]))
        iou_nm = box_iou(*boxes).numpy()
        for row, iou_m in zip(rows, iou_nm, strict=True):
            best = int(iou_m.argmax())
            right[row] = iou_m[best] >= threshold
            if right[row]:
                iou_nm[:, best] = -1  # taken
    return right


def _area_below(right: np.ndarray, total: int) -> float:
    """Area below the precision-recall curve of detections in descending order of scores.

    Args:
        right: bool [n], whether each detection is right.
        total: number of objects.
    """
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    largest = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or more
    return float(largest[right].sum() / total)
