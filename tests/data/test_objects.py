"""Data sets of objects and their batches: boxes lie where the picture shows them, and mistakes are named."""

import io
import json
import re

import numpy as np
import pytest
import torch
from rich.console import Console

from fgssl.data.check import check
from fgssl.data.datasets import ALL
from fgssl.data.datasets.objects import ObjectIndex
from fgssl.data.detection import DetectionData, Jitter, jittered, mask_of, training_target
from fgssl.data.images import read_image
from fgssl.data.protocols import Protocol
from fgssl.errors import UserError
from tests import trees

MAKE = {"voc0712": trees.make_voc0712, "coco_instances": trees.make_coco_instances}
COLOUR_OF = {"red": "red", "blue": "blue", "aeroplane": "red", "bird": "blue", "car": "green"}
UAVDT_COLOURS = {"car": "red", "truck": "green", "bus": "blue"}


@pytest.fixture(params=MAKE)
def dataset(request, tmp_path):
    return ALL[request.param](str(MAKE[request.param](tmp_path)), partial=True)


def read(dataset) -> ObjectIndex:
    with pytest.warns(UserWarning, match="published"):
        return dataset.index()


def shows(image_3HW, box, name: str, colour_of: dict[str, str] = COLOUR_OF) -> bool:
    """Whether a box is filled with its class's colour, to the last pixel, and its surroundings are not."""
    colour = torch.tensor(trees.COLOURS[colour_of[name]])[:, None, None]
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


def test_uavdt_reads_the_frames_with_an_object_and_the_ignored_areas(tmp_path):
    index = read(ALL["uavdt"](str(trees.make_uavdt(tmp_path)), partial=True))
    objects, (width, height) = index.objects, trees.SIZE
    assert (objects.sizes == trees.SIZE).all()
    assert [path[-24:] for path in index.paths[:1]] == ["rk-M/M0101/img000002.jpg"]  # the first shows nothing
    for row in range(len(index)):
        image_3HW = torch.from_numpy(np.array(read_image(index.paths[row]))).permute(2, 0, 1)
        shown = [place for place in objects.of(row) if not objects.ignored[place]]
        assert len(shown) == 3
        for place in shown:
            name = index.fine_names[objects.labels[place]]
            assert shows(image_3HW, objects.boxes[place], name, UAVDT_COLOURS)
        areas = [place for place in objects.of(row) if objects.ignored[place]]
        expected = [[0, height - 6, width, height]] if index.split[row] == "test" else []
        assert objects.boxes[areas].tolist() == expected
        assert not objects.trained[areas].any()
        assert len(training_target(index, row, masks=False)["boxes"]) == 3


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("whole", "1,1,2,2,3,3,1,1,4\n", "M0203_gt_whole.txt: category '4' is not in the list"),
        ("whole", "1,1,2,2,3,3\n", "M0203_gt_whole.txt is not an annotation of UAVDT: 6 columns, not 9"),
        ("whole", "1,1,a,2,3,3,1,1,1\n", "M0203_gt_whole.txt is not an annotation of UAVDT .could not convert"),
        ("whole", "2,1,90,2,3,3,1,1,1\n", "img000002.jpg: an annotated box .* lies outside of the image of 40 x 32"),
        ("whole", "9,1,2,2,3,3,1,1,1\n", "img000009.jpg"),
        ("ignore", None, "uavdt: not found: .*M0203_gt_ignore.txt"),
    ],
    ids=["class", "columns", "letters", "outside", "no_image", "no_areas"],
)
def test_mistakes_in_uavdt_annotations_are_named(kind, text, said, tmp_path):
    path = trees.make_uavdt(tmp_path) / f"UAV-benchmark-MOTD_v1.0/GT/M0203_gt_{kind}.txt"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=said):
        ALL["uavdt"](str(tmp_path), partial=True).index()


def test_uavdt_without_annotations_says_what_is_expected(tmp_path):
    for folder in ("UAV-benchmark-M", "UAV-benchmark-MOTD_v1.0/GT"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(UserError, match=r"(?s)not found under .*gt_whole.txt.*Where to get it"):
        ALL["uavdt"](str(tmp_path), partial=True).index()


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


# ---- large-scale jitter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [(0.2, 0.9), (4.0, 5.0)], ids=["padded", "cut"])
def test_jitter_shows_boxes_and_masks_on_the_square_view(scale, tmp_path):
    """Of images of 40 x 32 px; boxes of cut objects end at the square's edge."""
    dataset = ALL["coco_instances"](str(trees.make_coco_instances(tmp_path)), partial=True)
    whole = cut = 0
    for index, batch in batches(dataset, jitter=64, jitter_scale=scale):
        for image, target, row in zip(batch.images, batch.targets, batch.index.tolist(), strict=True):
            assert (image.shape, image.dtype) == ((3, 64, 64), torch.uint8)
            assert target["masks"].shape == (len(target["boxes"]), 64, 64)
            for mask, box, label in zip(target["masks"], target["boxes"], target["labels"], strict=True):
                assert (box >= 0).all()
                assert (box <= 64).all()
                assert (box[2:] > box[:2]).all()
                colour = torch.tensor(trees.COLOURS[index.fine_names[label - 1]])[:, None]
                assert ((image[:, mask.bool()] - colour).abs() < 90).float().mean() > 0.7  # edges are blurred
                of_mask = torch.tensor([mask.any(0).nonzero().min(), mask.any(1).nonzero().min()])
                assert ((box[:2] - of_mask).abs() <= 1).all()
            whole, cut = whole + len(target["boxes"]), cut + len(index.objects.of(row)) - len(target["boxes"])
            if scale[1] < 1:  # the image ends before the square does, and the mean colour follows
                assert image[:, -1, -1].tolist() == [124, 116, 104]
    assert whole > 0
    assert (cut > 0) == (scale[1] > 1)


def scene() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A noisy image of 40 x 30 px with one object, an L of 20 x 20 px."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 30, 40), dtype=torch.uint8, generator=generator)
    mask = torch.zeros(1, 30, 40, dtype=torch.uint8)
    mask[0, 5:25, 10:13], mask[0, 22:25, 10:30] = 1, 1
    return image, {"boxes": torch.tensor([[10.0, 5, 30, 25]]), "labels": torch.tensor([3]), "masks": mask}


def test_jitter_scales_the_image_to_the_square_and_repeats_itself_by_its_seed():
    image, target = scene()
    once = Jitter(40, (1.0, 1.0), fill=(0.485, 0.456, 0.406))
    view, found = jittered(image, target, once, seed=7)
    assert view[:, :30].equal(image)
    assert (view[:, 30:] == torch.tensor([124, 116, 104])[:, None, None]).all()
    assert found["boxes"].equal(target["boxes"])
    assert found["masks"][:, :30].equal(target["masks"])
    twice, _ = jittered(image, target, once._replace(scale=(2.0, 2.0)), seed=7)
    assert twice.shape == (3, 40, 40)
    state = torch.get_rng_state()
    wide = once._replace(scale=(0.1, 2.0))
    views = [jittered(image, target, wide, seed)[0] for seed in (7, 7, 8)]
    assert views[0].equal(views[1])
    assert not views[0].equal(views[2])
    assert torch.get_rng_state().equal(state)


def test_the_box_of_a_cut_object_is_that_of_what_is_left_of_its_mask():
    """Where the lower bar of the L is cut off, its box is as narrow as the upright."""
    image, target = scene()
    twice = Jitter(40, (2.0, 2.0), fill=(0.5, 0.5, 0.5))
    views = [jittered(image, target, twice, seed)[1] for seed in range(200)]
    shown = [found for found in views if len(found["boxes"])]
    narrow = [found for found in shown if found["boxes"][0, 2] - found["boxes"][0, 0] <= 6]
    assert narrow
    for found in shown:
        rows, columns = (found["masks"][0].any(dim).nonzero() for dim in (1, 0))
        assert found["boxes"][0].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    without = [jittered(image, target | {"masks": target["masks"]}, twice, seed)[1]["labels"] for seed in range(3)]
    assert all(labels.tolist() in ([3], []) for labels in without)


def test_jitter_of_data_without_outlines_clips_boxes(tmp_path):
    dataset = ALL["voc0712"](str(trees.make_voc0712(tmp_path)), partial=True)
    for _, batch in batches(dataset, jitter=64, jitter_scale=(1.5, 2.0)):
        for image, target in zip(batch.images, batch.targets, strict=True):
            assert image.shape == (3, 64, 64)
            assert target.keys() == {"boxes", "labels"}
            assert ((target["boxes"] >= 0) & (target["boxes"] <= 64)).all()
            assert len(target["boxes"]) == len(target["labels"])


@pytest.mark.filterwarnings("ignore:voc0712")
def test_evaluation_shows_whole_images(tmp_path):
    dataset = ALL["voc0712"](str(trees.make_voc0712(tmp_path)), partial=True)
    data = DetectionData(dataset, jitter=64, batch_size=2, num_workers=0)
    assert {tuple(image.shape) for batch in data.test_dataloader() for image in batch.images} == {(3, 32, 40)}


@pytest.mark.parametrize(
    ("options", "said"), [({"jitter": 8}, "jitter is 8"), ({"jitter_scale": (0.0, 1.0)}, "data.jitter_scale is")]
)
def test_a_jitter_that_cannot_be_is_refused(options, said, tmp_path):
    with pytest.raises(UserError, match=said):
        DetectionData(ALL["voc0712"](str(tmp_path), True), **options)


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
        ({"bbox": [9, 3, -5, 5]}, r"train2017.json, annotation 1: bbox is \[9, 3, -5, 5\]; x, y, width and height are"),
        ({"bbox": [1, 2]}, r"train2017.json is not of COCO's form \(ValueError"),
        ({"bbox": [1, 2, float("nan"), 3]}, "train2017.json, annotation 1: bbox is NaN; a finite number is expected"),
        ({"area": None}, "train2017.json, annotation 1: area is null; a finite number is expected"),
    ],
)
def test_mistakes_in_coco_annotations_are_named(edits, said, tmp_path):
    change(trees.make_coco_instances(tmp_path), **edits)
    with pytest.raises(UserError, match=said):
        ALL["coco_instances"](str(tmp_path), partial=True).index()


def test_a_coco_image_without_a_width_is_named(tmp_path):
    path = trees.make_coco_instances(tmp_path) / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["images"][1]["width"] = None
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"val2017.json, image 101: width is null; a finite number is expected"):
        ALL["coco_instances"](str(tmp_path), partial=True).index()


def test_a_coco_image_id_given_twice_is_named(tmp_path):
    """As in two files that were joined: the annotations of both images went to the second one."""
    path = trees.make_coco_instances(tmp_path) / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["images"][1]["id"] = 100
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"val2017.json: image id 100 is given twice\. Number the images anew"):
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


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        (None, "is missing"),
        ([], "is missing"),
        ([[1, 2, 3, 4]], "has no polygon of three points"),
        ([[1, 2, 3, 4, 5, float("nan")]], "has no polygon of three points"),  # COCO's library would not come back
        ({"size": [3]}, r"is of size \[3\]"),
        ({"size": [32, 41], "counts": [32 * 41]}, r"is of size \[32, 41\] \(height, width\), its image of \[32, 40\]"),
        ({"size": [32, 40], "counts": [7]}, "has runs that do not fill its image"),
    ],
    ids=["none", "empty", "line", "nan", "no_counts", "size", "short"],
)
def test_broken_outlines_are_named_and_not_drawn_for_boxes_alone(segmentation, said, tmp_path):
    """Before training, and by ``fgssl data check``."""
    change(trees.make_coco_instances(tmp_path), "val2017", segmentation=segmentation)
    dataset = ALL["coco_instances"](str(tmp_path), partial=True)
    objects = read(dataset).objects
    (place,) = objects.undrawable
    named = f"val2017.json, annotation 1: its outline .segmentation. {said}"
    with pytest.raises(UserError, match=named):
        mask_of(dataset.index(), int(dataset.index().rows("test")[0]), place)
    (fault,) = check(dataset, Console(file=io.StringIO())).faults
    assert re.search(named, fault)
    assert not any(
        "masks" in target
        for batch in DetectionData(dataset, batch_size=2, num_workers=0).train_loader(0)
        for target in batch.targets
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("aeroplane", "zeppelin", "000000.xml: category 'zeppelin' is not in the list"),
        ("<xmax>", "<xmax>-", "000000.xml is not an annotation of VOC .* are no box"),
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


def test_a_test_image_of_another_size_than_its_annotation_is_named_before_training(tmp_path):
    dataset = ALL["voc0712"](str(trees.make_voc0712(tmp_path)), partial=True)
    trees.write_image(tmp_path / "VOC2007/JPEGImages/000201.jpg", size=(50, 32))
    said = "000201.jpg has 50 x 32 px and its annotation 40 x 32"
    with pytest.warns(UserWarning, match="published"), pytest.raises(UserError, match=said):
        DetectionData(dataset, batch_size=2, num_workers=0).setup("fit")
    (fault,) = check(dataset, Console(file=io.StringIO())).faults
    assert said in fault
    DetectionData(dataset, batch_size=2, num_workers=0, on_error="skip").setup("fit")


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
