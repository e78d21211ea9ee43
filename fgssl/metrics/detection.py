"""Average precision of boxes and masks: COCO's, by its own library, and Pascal VOC's."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_iou

IOUS = np.linspace(0.5, 0.95, 10)  # the thresholds that AP is the mean over
NAMES = ("ap", "ap50", "ap75", "aps", "apm", "apl")  # of pycocotools' first twelve figures, these six


def coco_average_precision(
    truth: dict[str, Any], detections: list[dict[str, Any]], kind: Literal["box", "mask"]
) -> dict[str, float]:
    """COCO's average precision (Lin et al., 2014): the mean over ten IoUs, 101 recalls and the classes.

    Args:
        truth: ``images``, ``annotations`` and ``categories`` in the form of COCO's files; ids of annotations from 1 on.
        detections: in the form of COCO's results: ``image_id``, ``category_id``, ``score``, and ``bbox`` (x, y, width,
            height) or ``segmentation`` (run-length code), at most 100 of an image are looked at.
        kind: what is compared.

    Returns:
        Fractions: ``ap_box``, ``ap50_box``, ``ap75_box``, and of small, medium and large objects ``aps_box``,
        ``apm_box``, ``apl_box``; or the same of masks. A size that no object has is left out.

    Raises:
        ValueError: no object to find.
    """
    if not any(not item["iscrowd"] for item in truth["annotations"]):
        raise ValueError("there is no object to find")
    with contextlib.redirect_stdout(io.StringIO()):  # the library prints its own table
        asked = COCO()
        asked.dataset = truth
        asked.createIndex()
        found = asked.loadRes(detections) if detections else _nothing(truth)
        evaluation = COCOeval(asked, found, "bbox" if kind == "box" else "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = zip(NAMES, evaluation.stats[:6].tolist(), strict=True)
    return {f"{name}_{kind}": value for name, value in figures if value >= 0}  # -1: no such object


def _nothing(truth: dict[str, Any]) -> COCO:
    """An empty result, which the library's own reader does not take."""
    empty = COCO()
    empty.dataset = {**truth, "annotations": []}
    empty.createIndex()
    return empty


class Boxes(NamedTuple):
    """Objects or detections of one class over all images, n in all.

    Attributes:
        image: [n] int64 number of the image.
        box: [n, 4] float x0, y0, x1, y1, px.
        value: [n] the score of a detection (float), or whether an object is difficult (bool).
    """

    image: np.ndarray
    box: np.ndarray
    value: np.ndarray


def voc_average_precision(truth: Sequence[Boxes], detections: Sequence[Boxes]) -> dict[str, float]:
    """Pascal VOC's average precision of boxes (Everingham et al., IJCV 2010), at one or ten IoUs.

    A detection belongs to the object of its class and image that it overlaps most. It is right if their IoU reaches the
    threshold and no detection of a higher score has taken that object; one that belongs to a difficult object in this
    way counts neither way. The precision is the 11-point one of VOC 2007, as Detectron2 takes it for VOC2007's test
    part, and so MoCo's and MLS's tables.

    Args:
        truth, detections: one a class, in the same order.

    Returns:
        Fractions: ``ap_box``, the mean over IoUs of 0.5 to 0.95, ``ap50_box``, ``ap75_box``: means over the classes
        that have an object that is not difficult.

    Raises:
        ValueError: no class has.
    """
    classes = [
        _class_precisions(asked, found)
        for asked, found in zip(truth, detections, strict=True)
        if (~asked.value.astype(bool)).any()
    ]
    if not classes:
        raise ValueError("there is no object to find")
    ap_T = np.mean(classes, axis=0)
    return {"ap_box": float(ap_T.mean()), "ap50_box": float(ap_T[0]), "ap75_box": float(ap_T[5])}


def _class_precisions(truth: Boxes, detections: Boxes) -> np.ndarray:
    """[10] average precisions of one class, one a threshold."""
    order = np.argsort(-detections.value, kind="stable")
    detections = Boxes(*(column[order] for column in detections))
    iou_n, object_n = _nearest(truth, detections)
    difficult = truth.value.astype(bool)
    total = int((~difficult).sum())
    return np.array([_eleven_point(*_hits(iou_n >= iou, object_n, difficult), total) for iou in IOUS])


def _nearest(truth: Boxes, detections: Boxes) -> tuple[np.ndarray, np.ndarray]:
    """[n] IoU of each detection with the object that it overlaps most, and its place; 0 where there is none."""
    best, place = np.zeros(len(detections.image)), np.zeros(len(detections.image), dtype=np.int64)
    for image in np.unique(detections.image):
        found, asked = np.flatnonzero(detections.image == image), np.flatnonzero(truth.image == image)
        if len(asked):
            iou = box_iou(torch.from_numpy(detections.box[found]), torch.from_numpy(truth.box[asked])).numpy()
            best[found], place[found] = iou.max(axis=1), asked[iou.argmax(axis=1)]
    return best, place


def _hits(near_n: np.ndarray, object_n: np.ndarray, difficult: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[m] bool each: right and wrong detections in the order of their scores; those that count neither way are out."""
    counted = ~(near_n & difficult[object_n])
    near, place = near_n[counted], object_n[counted]
    right = np.zeros(len(near), dtype=bool)
    _, first = np.unique(place[near], return_index=True)  # the first of each object has the highest score
    right[np.flatnonzero(near)[first]] = True
    return right, ~right


def _eleven_point(right: np.ndarray, wrong: np.ndarray, total: int) -> float:
    """Mean over the recalls 0, 0.1 .. 1 of the highest precision at that recall or more; 0 at a recall not reached."""
    found, missed = right.cumsum(), wrong.cumsum()
    precision = found / (found + missed)
    points = [precision[10 * found >= tenth * total] for tenth in range(11)]  # in integers: 3 / 10 is 0.3
    return float(np.mean([point.max() if len(point) else 0.0 for point in points]))
