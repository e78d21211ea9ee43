"""Average precision of the detections of all ranks."""

from typing import Any

import numpy as np
import torch.distributed as dist
from pycocotools import mask as rle
from torch import Tensor

from fgssl.data.datasets.objects import ObjectIndex
from fgssl.data.detection import mask_of
from fgssl.distributed import is_distributed
from fgssl.metrics.detection import Boxes, coco_average_precision, uavdt_average_precision, voc_average_precision

Found = dict[int, dict[str, Any]]  # data-set row -> boxes [n, 4], scores [n], labels [n] from 0, masks


def compact(output: dict[str, Tensor]) -> dict[str, Any]:
    """Detections of one image as arrays; masks are thresholded at 0.5 and run-length encoded."""
    found: dict[str, Any] = {
        "boxes": output["boxes"].double().cpu().numpy(),
        "scores": output["scores"].double().cpu().numpy(),
        "labels": output["labels"].cpu().numpy() - 1,  # 0 is torchvision's background
    }
    if "masks" in output:
        masks_HWn = (output["masks"][:, 0] >= 0.5).permute(1, 2, 0).byte().cpu().numpy()
        found["masks"] = rle.encode(np.asfortranarray(masks_HWn))
    return found


def gather(found: Found) -> Found:
    """Detections of all ranks in ascending order of rows; rows that pad a rank are counted once."""
    parts = [found]
    if is_distributed():
        parts = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, found)
    together = {row: detections for part in parts for row, detections in part.items()}
    return dict(sorted(together.items()))


def average_precision(index: ObjectIndex, found: Found, masks: bool) -> dict[str, float]:
    """Average precision of the rows in ``found``: VOC's or UAVDT's of boxes, or COCO's of boxes and masks."""
    if index.name == "voc0712":
        return voc_average_precision(*voc_form(index, found))
    if index.name == "uavdt":
        return uavdt_average_precision(*all_boxes(index, found)[:2])
    truth = coco_truth(index, found, masks)
    metrics = coco_average_precision(truth, coco_results(found, masks=False), "box")
    return metrics | (coco_average_precision(truth, coco_results(found, masks=True), "mask") if masks else {})


def voc_form(index: ObjectIndex, found: Found) -> tuple[list[Boxes], list[Boxes]]:
    """Objects and detections, each as a list over classes."""
    truth, detections, labels, guesses = all_boxes(index, found)
    classes = range(len(index.fine_names))
    return (
        [Boxes(*(column[labels == label] for column in truth)) for label in classes],
        [Boxes(*(column[guesses == label] for column in detections)) for label in classes],
    )


def all_boxes(index: ObjectIndex, found: Found) -> tuple[Boxes, Boxes, np.ndarray, np.ndarray]:
    """Objects and detections of all classes, and the label of each."""
    objects = index.objects
    places = np.concatenate([objects.of(row) for row in found])
    image = np.concatenate([np.full(len(objects.of(row)), row) for row in found])
    truth = Boxes(image, objects.boxes[places], objects.ignored[places])
    columns = {key: np.concatenate([one[key] for one in found.values()]) for key in ("boxes", "scores", "labels")}
    rows = np.concatenate([np.full(len(one["scores"]), row) for row, one in found.items()])
    detections = Boxes(rows, columns["boxes"], columns["scores"])
    return truth, detections, objects.labels[places], columns["labels"]


def coco_truth(index: ObjectIndex, found: Found, masks: bool) -> dict[str, Any]:
    """Annotations of the rows in COCO's format; image ids are rows, category ids are labels."""
    objects, images, annotations = index.objects, [], []
    for row in found:
        width, height = objects.sizes[row].tolist()
        images.append({"id": row, "width": width, "height": height})
        for place in objects.of(row).tolist():
            x0, y0, x1, y1 = objects.boxes[place].tolist()
            item = {
                "id": place + 1, "image_id": row, "category_id": int(objects.labels[place]),
                "bbox": [x0, y0, x1 - x0, y1 - y0], "area": float(objects.areas[place]),
                "iscrowd": int(objects.ignored[place]),
            }  # fmt: skip
            annotations.append(item | ({"segmentation": mask_of(index, row, place)} if masks else {}))
    categories = [{"id": label, "name": name} for label, name in enumerate(index.fine_names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_results(found: Found, masks: bool) -> list[dict[str, Any]]:
    """Detections in COCO's result format; masks are given without boxes, so that COCO uses the area of the mask."""
    results = []
    for row, one in found.items():
        for n, ((x0, y0, x1, y1), score, label) in enumerate(
            zip(one["boxes"].tolist(), one["scores"].tolist(), one["labels"].tolist(), strict=True)
        ):
            shape = {"segmentation": one["masks"][n]} if masks else {"bbox": [x0, y0, x1 - x0, y1 - y0]}
            results.append({"image_id": row, "category_id": label, "score": score, **shape})
    return results
