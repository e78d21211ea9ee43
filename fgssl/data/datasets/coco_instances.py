"""COCO 2017, boxes and outlines of its 80 classes (Lin et al., 2014)."""

import json
from pathlib import Path
from typing import Any

from fgssl.data.datasets.base import Published
from fgssl.data.datasets.object_dataset import ObjectDataSet
from fgssl.data.datasets.objects import Annotation, ObjectIndex, Scene, finite, known_class, object_index, outline_fault
from fgssl.errors import UserError


class COCOInstances(ObjectDataSet):
    """Boxes and outlines of 80 classes; train2017 is the training part, val2017 the test part.

    Crowds are left out of training and ignored in evaluation. The 1,021 training images without another object are left
    out, as in Detectron2.
    """

    name = "coco_instances"
    folder = "coco"
    layout = tuple(part for half in ("train2017", "val2017") for part in (half, f"annotations/instances_{half}.json"))
    published = Published({"train": 117_266, "test": 5000}, fine=80)
    source = "train2017.zip, val2017.zip, annotations_trainval2017.zip from https://cocodataset.org/#download"
    licence = "images from Flickr, each under its own licence; annotations CC BY 4.0"

    def annotation_files(self) -> list[Path]:
        return [self.root / part for part in self.layout if part.endswith(".json")]

    def _parse(self) -> ObjectIndex:
        halves = {part: self._load(half) for half, part in (("train2017", "train"), ("val2017", "test"))}
        names, *others = ({c["id"]: c["name"] for c in half["categories"]} for half in halves.values())
        if others != [names]:
            raise UserError(f"coco under {self.root}: the categories of the two files in annotations/ differ.")
        ids = sorted(names)
        scenes = []
        for part, half in halves.items():
            folder = self.root / {"train": "train2017", "test": "val2017"}[part]
            scenes += _scenes(half, folder, part, {number: label for label, number in enumerate(ids)})
        # Named as the data set of the papers' tables: the same images and parts as COCO's, with their annotations.
        return object_index("coco", tuple(names[number] for number in ids), scenes)

    def _load(self, half: str) -> dict[str, Any]:
        path = self.root / "annotations" / f"instances_{half}.json"
        try:
            content = json.loads(path.read_text())
        except ValueError as fault:
            raise UserError(f"{path} is not JSON ({fault}).") from None
        missing = {"images", "annotations", "categories"} - (content.keys() if isinstance(content, dict) else set())
        if missing:
            raise UserError(f"{path} is not of COCO's form: no {', '.join(sorted(missing))} in it.")
        return content


def _scenes(half: dict[str, Any], folder: Path, part: str, label_of: dict[int, int]) -> list[Scene]:
    """The images of one annotation file, in its order."""
    where = str(folder.parent / "annotations" / f"instances_{folder.name}.json")
    try:
        scenes = {}
        for image in half["images"]:
            width, height = (
                finite(image[side], f"{where}, image {image['id']}: {side}") for side in ("width", "height")
            )
            size = int(width), int(height)
            if image["id"] in scenes:  # its annotations would go to the other image
                raise UserError(f"{where}: image id {image['id']} is given twice. Number the images anew.")
            scenes[image["id"]] = Scene(str(folder / image["file_name"]), part, size, [])
        for item in half["annotations"]:
            here = f"{where}, annotation {item['id']}"
            if item["image_id"] not in scenes:
                raise UserError(f"{here}: there is no image {item['image_id']}.")
            label = known_class(item["category_id"], label_of, here)
            x, y, width, height = (finite(side, f"{here}: bbox") for side in item["bbox"])
            if width < 0 or height < 0:
                raise UserError(f"{here}: bbox is {item['bbox']}; x, y, width and height are expected.")
            crowd = bool(item.get("iscrowd", 0))
            area, outline = finite(item.get("area", width * height), f"{here}: area"), item.get("segmentation")
            scene = scenes[item["image_id"]]
            if fault := outline_fault(outline, scene.size):
                outline = (
                    f"{here}: its outline (segmentation) {fault}. Mend it, or train boxes alone with "
                    "--model.masks false."
                )
            box = (x, y, x + width, y + height)
            scene.objects.append(Annotation(box, label, crowd, not crowd, area, outline))
    except (KeyError, TypeError, ValueError) as fault:
        raise UserError(f"{where} is not of COCO's form ({type(fault).__name__}: {fault}).") from None
    return list(scenes.values())
