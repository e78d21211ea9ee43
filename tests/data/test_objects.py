"""Data sets of objects and their batches: boxes lie where the picture shows them, and mistakes are named."""

import json

import numpy as np
import pytest
import torch

from fgssl.data.datasets import ALL
from fgssl.data.datasets.objects import ObjectIndex
from fgssl.data.detection import DetectionData, mask_of, training_target
from fgssl.data.images import read_image
from fgssl.data.protocols import Protocol
from fgssl.errors import UserError
from tests import trees

MAKE = {"voc0712": trees.make_voc0712, "coco_instances": trees.make_coco_instances}
COLOUR_OF = {"red": "red", "blue": "blue", "aeroplane": "red", "bird": "blue", "car": "green"}


@pytest.fixture(params=MAKE)
def dataset(request, tmp_path):
    return ALL[request.param](str(MAKE[request.param](tmp_path)), partial=True)


def read(dataset) -> ObjectIndex:
    with pytest.warns(UserWarning, match="published"):
        return dataset.index()


def shows(image_3HW, box, name: str) -> bool:
    """Whether a box is filled with its class's colour, to the last pixel, and its surroundings are not."""
    colour = torch.tensor(trees.COLOURS[COLOUR_OF[name]])[:, None, None]
    x0, y0, x1, y1 = (int(side) for side in box)
    near_HW = ((image_3HW.int() - colour).abs() < 60).all(dim=0)
    return bool(near_HW[y0:y1, x0:x1].float().mean() > 0.95) and not near_HW[y1 + 1 :, x0:x1].any()


def test_boxes_lie_where_the_picture_shows_the_objects(dataset):
    index = read(dataset)
    for row in range(len(index)):
        image_3HW = torch.from_numpy(np.array(read_image(index.paths[row]))).permute(2, 0, 1)
        for place in index.objects.of(row):
            name = index.fine_names[index.objects.labels[place]]
            assert shows(image_3HW, index.objects.boxes[place], name)
            assert index.targets[row, index.objects.labels[place]] == (255 if index.objects.ignored[place] else 1)
    assert (index.targets > 0).sum() == len(index.objects.labels)


def test_voc_trains_on_difficult_objects_and_coco_not_on_crowds(dataset):
    objects = read(dataset).objects
    assert objects.ignored.any()
    assert (objects.trained == (~objects.ignored | (dataset.name == "voc0712"))).all()


def test_coco_leaves_out_training_images_without_objects_and_orders_classes_by_id(tmp_path):
    index = read(ALL["coco_instances"](str(trees.make_coco_instances(tmp_path)), partial=True))
    assert index.fine_names == ("red", "blue")
    assert (len(index.rows("train")), len(index.rows("test"))) == (4, 5)
    crowd = int(np.flatnonzero(index.objects.ignored)[0])
    for row in range(len(index)):
        for place in index.objects.of(row):
            assert mask_area(index, row, place) == pytest.approx(index.objects.areas[place])
    assert "counts" in index.objects.outline(crowd)


def mask_area(index, row, place) -> float:
    from pycocotools import mask as rle

    return float(rle.area(mask_of(index, row, place)))


def batches(dataset, **options) -> list:
    data = DetectionData(dataset, batch_size=2, num_workers=0, **options)
    with pytest.warns(UserWarning, match="published"):
        loader = data.train_loader(epoch=0)
    return [(loader.dataset.index, batch) for batch in loader]


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_batch_shows_boxes_and_masks_on_the_flipped_image(dataset, flip):
    for index, batch in batches(dataset, flip=flip):
        for image, target, row in zip(batch.images, batch.targets, batch.index.tolist(), strict=True):
            original = torch.from_numpy(np.array(read_image(index.paths[row]))).permute(2, 0, 1)
            assert image.equal(original.flip(-1) if flip else original)
            assert len(target["boxes"]) == len(index.objects.of(row))
            assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
            for number, (box, label) in enumerate(zip(target["boxes"], target["labels"], strict=True)):
                assert shows(image, box, index.fine_names[label - 1])
                assert ("masks" in target) == (dataset.name == "coco_instances")
                if "masks" in target:
                    x0, y0, x1, y1 = (int(side) for side in box)
                    assert target["masks"][number].sum() == (x1 - x0) * (y1 - y0)
                    assert target["masks"][number, y0:y1, x0:x1].all()


def test_the_protocol_holds_images_out_and_keeps_a_share(dataset):
    with pytest.warns(UserWarning, match="published"):
        parts = DetectionData(dataset, Protocol(val_fraction=0.25, label_fraction=0.5)).parts
    count = len(parts.index.rows("train"))
    assert len(parts.val) == count // 4
    assert len(parts.train) == round((count - count // 4) / 2)


def test_unreadable_images_are_named_or_skipped(tmp_path):
    dataset = ALL["voc0712"](str(trees.make_voc0712(tmp_path)), partial=True)
    (tmp_path / "VOC2012/JPEGImages/000100.jpg").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"unreadable image: .*000100.jpg"):
        batches(dataset)
    assert sum(len(batch.index) for _, batch in batches(ALL["voc0712"](str(tmp_path), True), on_error="skip")) == 8


# ---- mistakes -------------------------------------------------------------------------------------------------------


def change(root, half="train2017", **edits):
    """Change the first annotation of a COCO file; or an entry of the whole file where it has it."""
    path = root / "annotations" / f"instances_{half}.json"
    content = json.loads(path.read_text())
    content["annotations"][0] |= edits
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        (
            {"bbox": [50, 3, 5, 5]},
            r"000000.jpg: an annotated box \(50, 3, 55, 8.* lies outside of the image of 40 x 32",
        ),
        ({"category_id": 9}, r"train2017.json, annotation 1: category '9' is not in the list of categories \(3, 7\)"),
        ({"image_id": 77}, r"train2017.json, annotation 1: there is no image 77"),
        ({"bbox": [1, 2]}, r"train2017.json is not of COCO's form \(ValueError"),
    ],
)
def test_mistakes_in_coco_annotations_are_named(edits, said, tmp_path):
    change(trees.make_coco_instances(tmp_path), **edits)
    with pytest.raises(UserError, match=said):
        ALL["coco_instances"](str(tmp_path), partial=True).index()


def test_missing_and_broken_coco_files_are_named(tmp_path):
    path = trees.make_coco_instances(tmp_path) / "annotations/instances_val2017.json"
    path.write_text('{"images": []}')
    with pytest.raises(UserError, match=r"val2017.json is not of COCO's form: no annotations, categories"):
        ALL["coco_instances"](str(tmp_path), partial=True).index()
    path.write_text("{")
    with pytest.raises(UserError, match=r"val2017.json is not JSON"):
        ALL["coco_instances"](str(tmp_path), partial=True).index()
    path.unlink()
    with pytest.raises(UserError, match=r"(?s)not found under .*annotations/instances_val2017.json.*Where to get it"):
        ALL["coco_instances"](str(tmp_path), partial=True).index()


def test_broken_outlines_are_named(tmp_path):
    change(trees.make_coco_instances(tmp_path), segmentation={"size": [3]})
    index = read(ALL["coco_instances"](str(tmp_path), partial=True))
    with pytest.raises(UserError, match=r"000000.jpg: the outline"):
        training_target(index, 0, masks=True)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("aeroplane", "zeppelin", "000000.xml: category 'zeppelin' is not in the list"),
        ("<xmin>", "<xmin>9", r"000000.jpg: an annotated box .* outside of the image"),
        ("<ymin>", "<y>", "000000.xml is not an annotation of VOC"),
        ("<width>40</width>", "", r"000000.xml is not an annotation of VOC \(no size/width in <annotation>"),
    ],
)
def test_mistakes_in_voc_annotations_are_named(old, new, said, tmp_path):
    path = trees.make_voc0712(tmp_path) / "VOC2007/Annotations/000000.xml"
    text = path.read_text()
    path.write_text(text.replace(old, new))
    if new == "<xmin>9":
        path.write_text(text.replace(old, new).replace("<xmax>", "<xmax>9"))
    with pytest.raises(UserError, match=said):
        ALL["voc0712"](str(tmp_path), partial=True).index()
    path.unlink()
    with pytest.raises(UserError, match="voc0712: not found: .*000000.xml"):
        ALL["voc0712"](str(tmp_path), partial=True).index()


def test_an_image_of_another_size_than_its_annotation_is_named(tmp_path):
    dataset = ALL["voc0712"](str(trees.make_voc0712(tmp_path)), partial=True)
    trees.write_image(tmp_path / "VOC2007/JPEGImages/000001.jpg", size=(50, 32))
    with pytest.raises(UserError, match=r"000001.jpg has 50 x 32 px and its annotation 40 x 32"):
        batches(dataset)


def test_a_box_over_the_edge_is_cut_to_the_image_and_one_without_area_left_out(tmp_path):
    trees.make_coco_instances(tmp_path)
    change(tmp_path, bbox=[30, 20, 20, 20])
    index = read(ALL["coco_instances"](str(tmp_path), partial=True))
    assert training_target(index, 0, masks=False)["boxes"][0].tolist() == [30, 20, 40, 32]
    change(tmp_path, bbox=[3, 3, 0, 5])
    index = read(ALL["coco_instances"](str(tmp_path), partial=True))
    assert len(training_target(index, 0, masks=True)["boxes"]) == 1


def test_a_data_set_without_boxes_is_refused():
    with pytest.raises(UserError, match="Digits has no boxes of objects"):
        DetectionData(ALL["digits"]())
