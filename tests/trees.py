"""Tiny copies of each data set in its official layout, for the tests.

``make_<name>(root)`` writes the tree and returns ``root``. The counts are not the published ones: read with
``partial=True``. Every class has ``PER_CLASS`` training and as many test images (where the data set has both).
"""

import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

PER_CLASS = 3
SIZE = (40, 32)  # width, height
SPECIES = ("Laysan_Albatross", "Sooty_Albatross", "Bobolink", "Fox_Sparrow")
CARS = (
    "AM General Hummer SUV 2000",
    "Acura RL Sedan 2012",
    "Acura TL Sedan 2012",
    "Aston Martin V8 Vantage Coupe 2012",
)


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> None:
    """Write a small picture of blurred noise; its format follows the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    image.save(path, format="JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else None)


def write_lines(path: Path, lines) -> None:
    """Write a text file, one item a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def make_cub(root: Path) -> Path:
    """Four species, three of them albatrosses or sparrows; with bounding boxes."""
    images, labels, split, boxes = [], [], [], []
    for label, species in enumerate(SPECIES, start=1):
        for number in range(2 * PER_CLASS):
            key = len(images) + 1
            file = f"{label:03d}.{species}/{species}_{number:04d}.jpg"
            write_image(root / "images" / file, seed=key)
            images.append(f"{key} {file}")
            labels.append(f"{key} {label}")
            split.append(f"{key} {int(number < PER_CLASS)}")
            boxes.append(f"{key} 4.0 2.0 20.0 10.0")
    write_lines(root / "images.txt", images)
    write_lines(root / "image_class_labels.txt", labels)
    write_lines(root / "train_test_split.txt", split)
    write_lines(root / "bounding_boxes.txt", boxes)
    write_lines(root / "classes.txt", (f"{label} {label:03d}.{name}" for label, name in enumerate(SPECIES, start=1)))
    return root


def make_cars(root: Path, layout: str = "original") -> Path:
    """Four models; ``layout`` is ``original``, ``nested`` (as re-hosted) or ``combined`` (car_ims, cars_annos.mat)."""
    root.mkdir(parents=True, exist_ok=True)
    rows = {"train": [], "test": []}
    for listed in rows.values():
        for label in range(1, len(CARS) + 1):
            listed += [(4, 2, 24, 12, label, f"{len(listed) + number + 1:05d}.jpg") for number in range(PER_CLASS)]
    if layout == "combined":
        fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "relative_im_path", "test")
        table = []
        for *numbers, _ in rows["train"] + rows["test"]:
            file = f"car_ims/{len(table) + 1:06d}.jpg"
            write_image(root / file, seed=len(table))
            table.append((*numbers, file, int(len(table) >= len(rows["train"]))))
        savemat(root / "cars_annos.mat", {"annotations": _struct(table, fields), "class_names": _cells(CARS)})
        return root

    fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
    devkit = root / ("car_devkit/devkit" if layout == "nested" else "devkit")
    devkit.mkdir(parents=True)
    savemat(devkit / "cars_meta.mat", {"class_names": _cells(CARS)})
    savemat(devkit / "cars_train_annos.mat", {"annotations": _struct(rows["train"], fields)})
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": _struct(rows["test"], fields)})
    for part, listed in rows.items():
        folder = root / f"cars_{part}" / (f"cars_{part}" if layout == "nested" else "")
        for seed, row in enumerate(listed):
            write_image(folder / row[-1], seed=seed)
    return root


def _struct(rows: list[tuple], fields: tuple[str, ...]) -> np.ndarray:
    """A MATLAB struct array of one struct a row."""
    return np.array(rows, dtype=[(field, object) for field in fields])


def _cells(names: tuple[str, ...]) -> np.ndarray:
    """A MATLAB cell array of strings."""
    return np.array(names, dtype=object)


def make_aircraft(root: Path) -> Path:
    """Three variants in two families of one manufacturer, in train, val and test."""
    variants = {"707-320": "Boeing 707", "727-200": "Boeing 727", "737-200 F/X": "Boeing 727"}
    data = root / "data"
    write_lines(data / "variants.txt", variants)
    write_lines(data / "families.txt", ("Boeing 707", "Boeing 727"))
    write_lines(data / "manufacturers.txt", ("Boeing",))
    key = 1000
    boxes = []
    for part in ("train", "val", "test"):
        rows = []
        for variant in variants:
            for _ in range(PER_CLASS):
                key += 1
                rows.append((f"{key:07d}", variant))
                boxes.append(f"{key:07d} 4 2 24 12")
                write_image(data / "images" / f"{key:07d}.jpg", seed=key)
        write_lines(data / f"images_variant_{part}.txt", (f"{key} {variant}" for key, variant in rows))
        write_lines(data / f"images_family_{part}.txt", (f"{key} {variants[variant]}" for key, variant in rows))
        write_lines(data / f"images_manufacturer_{part}.txt", (f"{key} Boeing" for key, _ in rows))
    write_lines(data / "images_box.txt", boxes)
    return root


def make_sop(root: Path) -> Path:
    """Two products a super-class in train and two others in test, super-classes bicycle and kettle."""
    class_id = image_id = 0
    for part in ("train", "test"):
        lines = ["image_id class_id super_class_id path"]
        for super_id, super_class in ((1, "bicycle"), (6, "kettle")):
            for _ in range(2):
                class_id += 1
                for number in range(PER_CLASS):
                    image_id += 1
                    file = f"{super_class}_final/{111000 + class_id}_{number}.JPG"
                    write_image(root / file, seed=image_id)
                    lines.append(f"{image_id} {class_id} {super_id} {file}")
        write_lines(root / f"Ebay_{part}.txt", lines)
    return root


def make_imagenet(root: Path) -> Path:
    """A fish, a bird and a dog; two boxes for the first training image of each and for the first val image."""
    for part in ("train", "val"):
        for wnid in ("n01440764", "n01514668", "n02085620"):
            for number in range(PER_CLASS):
                stem = f"{wnid}_{number}" if part == "train" else f"ILSVRC2012_val_{wnid[1:]}{number}"
                write_image(root / part / wnid / f"{stem}.JPEG", seed=number)
                if number == 0:
                    annotation = root / "Annotations" / (wnid if part == "train" else "val") / f"{stem}.xml"
                    write_lines(annotation, [_boxes_xml((1, 1, 5, 5), (4, 2, 24, 12))])
    return root


def _boxes_xml(*boxes: tuple[int, int, int, int]) -> str:
    sides = ("xmin", "ymin", "xmax", "ymax")
    inner = ("".join(f"<{side}>{value}</{side}>" for side, value in zip(sides, box, strict=True)) for box in boxes)
    return f"<annotation>{''.join(f'<object><bndbox>{box}</bndbox></object>' for box in inner)}</annotation>"


def make_imagenet32(root: Path) -> Path:
    """One training and one val image of each of the 1,000 classes."""
    for number in range(1, 11):
        labels = range(100 * number - 99, 100 * number + 1)
        write_batch(root / f"train_data_batch_{number}", seed=number, labels=list(labels))
    write_batch(root / "val_data", seed=0, labels=list(range(1, 1001)))
    return root


def make_cifar10(root: Path) -> Path:
    """The pickled batches, two images a class in each."""
    for number in range(1, 6):
        write_batch(root / f"data_batch_{number}", seed=number, labels=2 * list(range(10)))
    write_batch(root / "test_batch", seed=0, labels=2 * list(range(10)))
    return root


def make_cifar10_folders(root: Path) -> Path:
    """The images of CIFAR-10 as files, ``train/<class>/0000.jpg``."""
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    for part in ("train", "test"):
        for seed, name in enumerate(names):
            for number in range(PER_CLASS):
                write_image(root / part / name / f"{number:04d}.jpg", seed=10 * seed + number, size=(32, 32))
    return root


def make_cifar100(root: Path) -> Path:
    """The pickled batches and ``meta``; coarse labels are the published ones."""
    from fgssl.data.hierarchies import label_map

    coarse = label_map("cifar100_fine_to_coarse.json")
    write_batch(root / "train", seed=1, fine_labels=2 * list(range(100)), coarse_labels=2 * coarse)
    write_batch(root / "test", seed=2, fine_labels=list(range(100)), coarse_labels=coarse)
    names = {
        "fine_label_names": [f"fine {label}" for label in range(100)],
        "coarse_label_names": [f"coarse {label}" for label in range(20)],
    }
    (root / "meta").write_bytes(pickle.dumps(names, protocol=2))
    return root


def write_batch(path: Path, seed: int, **labels: list[int]) -> None:
    """Write a pickled batch of random 32 x 32 px images with the given label lists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(labels.values())))
    data = np.random.default_rng(seed).integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)
    path.write_bytes(pickle.dumps({"data": data, **labels}, protocol=2))


def make_coco(root: Path) -> Path:
    """Five unlabelled images."""
    for number in range(5):
        write_image(root / "train2017" / f"{number:012d}.jpg", seed=number)
    return root


def make_flowers(root: Path) -> Path:
    """Four classes; images in no order of class, one part or split."""
    labels = np.array([1, 2, 3, 4] * 3 * PER_CLASS)
    parts = np.arange(1, len(labels) + 1).reshape(3, -1)
    for number in range(1, len(labels) + 1):
        write_image(root / "jpg" / f"image_{number:05d}.jpg", seed=number)
    savemat(root / "imagelabels.mat", {"labels": labels})
    savemat(root / "setid.mat", {"trnid": parts[0], "valid": parts[1], "tstid": parts[2]})
    return root


def make_pets(root: Path) -> Path:
    """Two cats and a dog; class ids 1, 2 and 10, to see them sorted by number."""
    breeds = (("Abyssinian", 1, 1, 1), ("american_bulldog", 2, 2, 1), ("Birman", 10, 1, 2))
    for offset, part in ((0, "trainval"), (PER_CLASS, "test")):
        lines = []
        for breed, *ids in breeds:
            for number in range(offset + 1, offset + PER_CLASS + 1):
                write_image(root / "images" / f"{breed}_{number}.jpg", seed=number)
                lines.append(f"{breed}_{number} {' '.join(map(str, ids))}")
        write_lines(root / "annotations" / f"{part}.txt", lines)
    return root


def make_dtd(root: Path) -> Path:
    """Two textures, partitions 1 and 2."""
    for number, part in enumerate(("train", "val", "test")):
        files = [
            f"{texture}/{texture}_{number * PER_CLASS + image:04d}.jpg"
            for texture in ("banded", "zigzagged")
            for image in range(PER_CLASS)
        ]
        for seed, file in enumerate(files):
            write_image(root / "images" / file, seed=seed)
        for partition in (1, 2):
            write_lines(root / "labels" / f"{part}{partition}.txt", files)
    return root


def make_indoor67(root: Path) -> Path:
    """Two scenes."""
    for part, offset in (("TrainImages", 0), ("TestImages", PER_CLASS)):
        files = [
            f"{scene}/{scene} {number}.jpg"
            for scene in ("bar", "casino")
            for number in range(offset, offset + PER_CLASS)
        ]
        for seed, file in enumerate(files):
            write_image(root / "Images" / file, seed=seed)
        write_lines(root / f"{part}.txt", files)
    return root


def make_voc2007(root: Path) -> Path:
    """One image a class and part, which shows this class and, difficult to see, the next."""
    from fgssl.data.datasets.voc2007 import CLASSES

    lists = root / "ImageSets/Main"
    for part, offset in (("trainval", 0), ("test", len(CLASSES))):
        ids = [f"{offset + number:06d}" for number in range(len(CLASSES))]
        write_lines(lists / f"{part}.txt", ids)
        for label, class_name in enumerate(CLASSES):
            values = {label: " 1", (label - 1) % len(CLASSES): " 0"}
            write_lines(
                lists / f"{class_name}_{part}.txt", (f"{key} {values.get(row, '-1')}" for row, key in enumerate(ids))
            )
        for key in ids:
            write_image(root / "JPEGImages" / f"{key}.jpg", seed=int(key))
    return root


def make_folder(root: Path, parts: tuple[str, ...] = ("train", "test")) -> Path:
    """Three classes of PNG and JPEG files."""
    for part in parts:
        for name in ("cat", "dog", "horse"):
            for number in range(PER_CLASS):
                write_image(root / part / name / f"{number}.{'png' if number else 'jpg'}", seed=number)
    return root


# ---- objects in boxes -----------------------------------------------------------------------------------------------

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 30)}


def write_scene(path: Path, objects, seed: int, size: tuple[int, int] = SIZE) -> None:
    """A dim noisy picture with coloured rectangles; objects are (colour, x0, y0, x1, y1)."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(60, 120, (size[1], size[0], 3), dtype=np.uint8)
    for colour, x0, y0, x1, y1 in objects:
        pixels[y0:y1, x0:x1] = COLOURS[colour]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95, subsampling=0)  # sharp edges in colour too


def random_objects(colours: tuple[str, ...], seed: int, size: tuple[int, int] = SIZE) -> list[tuple]:
    """One rectangle of each colour, side by side."""
    rng = np.random.default_rng(seed)
    step = size[0] // len(colours)
    objects = []
    for number, colour in enumerate(rng.permutation(colours).tolist()):
        x0, y0 = number * step + int(rng.integers(0, 3)), int(rng.integers(0, size[1] // 3))
        objects.append((colour, x0, y0, x0 + step - 4, y0 + size[1] // 2))
    return objects


def make_coco_instances(root: Path, images: int = 4, size: tuple[int, int] = SIZE) -> Path:
    """Red and blue rectangles as categories 3 and 7; in train one image without objects, in val one crowd."""
    categories = [{"id": 7, "name": "blue"}, {"id": 3, "name": "red"}]
    ids = {"red": 3, "blue": 7}
    for offset, half in ((0, "train2017"), (100, "val2017")):
        rows, annotations = [], []
        for number in range(offset, offset + images + 1):
            empty = half == "train2017" and number == offset + images
            objects = [] if empty else random_objects(("red", "blue"), number, size)
            write_scene(root / half / f"{number:012d}.jpg", objects, number, size)
            rows.append({"id": number, "file_name": f"{number:012d}.jpg", "width": size[0], "height": size[1]})
            for colour, x0, y0, x1, y1 in objects:
                annotations.append({
                    "id": len(annotations) + 1, "image_id": number, "category_id": ids[colour], "iscrowd": 0,
                    "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0),
                    "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                })  # fmt: skip
        if half == "val2017":  # the last object becomes a crowd: runs of 0 and 1 down the columns
            crowd = annotations[-1]
            x0, y0, w, h = crowd["bbox"]
            mask = np.zeros((size[1], size[0]), dtype=np.uint8)
            mask[y0 : y0 + h, x0 : x0 + w] = 1
            runs = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel()])))
            counts = np.diff(np.concatenate([[0], runs, [mask.size]])).tolist()
            crowd |= {"iscrowd": 1, "segmentation": {"counts": counts, "size": [size[1], size[0]]}}
        path = root / "annotations" / f"instances_{half}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"images": rows, "annotations": annotations, "categories": categories}))
    return root


def make_voc0712(root: Path, images: int = 4, size: tuple[int, int] = SIZE) -> Path:
    """Rectangles as aeroplanes, birds and, difficult to see, cars; the last test image shows a difficult one alone."""
    names = {"red": "aeroplane", "blue": "bird", "green": "car"}
    for offset, (year, part) in enumerate((("VOC2007", "trainval"), ("VOC2012", "trainval"), ("VOC2007", "test"))):
        keys = [f"{100 * offset + number:06d}" for number in range(images)]
        write_lines(root / year / f"ImageSets/Main/{part}.txt", keys)
        for key in keys:
            colours = ("green",) if part == "test" and key == keys[-1] else ("red", "blue", "green")
            objects = random_objects(colours, int(key), size)
            write_scene(root / year / "JPEGImages" / f"{key}.jpg", objects, int(key), size)
            boxes = "".join(
                f"<object><name>{names[colour]}</name><difficult>{int(colour == 'green')}</difficult>"
                f"<bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>"
                "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
                for colour, x0, y0, x1, y1 in objects
            )
            sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
            write_lines(root / year / "Annotations" / f"{key}.xml", [f"<annotation>{sides}{boxes}</annotation>"])
    return root


def make_uavdt(root: Path, images: int = 4, size: tuple[int, int] = SIZE) -> Path:
    """A video to train and one to test; the first frame shows nothing, and the test frames have an ignored area."""
    numbers = {"red": 1, "green": 2, "blue": 3}
    for offset, video in ((0, "M0101"), (100, "M0203")):
        truth = root / "UAV-benchmark-MOTD_v1.0" / "GT"
        rows, areas = [], []
        for frame in range(1, images + 2):
            objects = [] if frame == 1 else random_objects(tuple(numbers), offset + frame, size)
            write_scene(root / "UAV-benchmark-M" / video / f"img{frame:06d}.jpg", objects, offset + frame, size)
            for colour, x0, y0, x1, y1 in objects:
                rows.append(f"{frame},1,{x0},{y0},{x1 - x0},{y1 - y0},1,1,{numbers[colour]}")
            areas.append(f"{frame},9,0,{size[1] - 6},{size[0]},6,1,-1,-1")
        write_lines(truth / f"{video}_gt_whole.txt", rows)
        write_lines(truth / f"{video}_gt_ignore.txt", areas if video == "M0203" else [])
    return root


def make_ade20k(root: Path, images: int = 4, size: tuple[int, int] = SIZE) -> Path:
    """Red, blue and green rectangles as classes 1 to 3 of the masks; the rest is 0, which is none."""
    names = tuple(COLOURS)
    rows = (f"{number}\t0.1\t4\t4\t1\t{name}, hue " for number, name in enumerate(names, start=1))
    write_lines(root / "objectInfo150.txt", ["Idx\tRatio\tTrain\tVal\tStuff\tName", *rows])
    for offset, (part, prefix) in enumerate((("training", "train"), ("validation", "val"))):
        for number in range(images):
            seed, key = 100 * offset + number, f"ADE_{prefix}_{number + 1:08d}"
            objects = random_objects(names, seed, size)
            write_scene(root / "images" / part / f"{key}.jpg", objects, seed, size)
            mask = np.zeros((size[1], size[0]), dtype=np.uint8)
            for colour, x0, y0, x1, y1 in objects:
                mask[y0:y1, x0:x1] = 1 + names.index(colour)
            path = root / "annotations" / part / f"{key}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    return root


def make_cityscapes(root: Path, images: int = 4, size: tuple[int, int] = (48, 24), train_ids: bool = False) -> Path:
    """Red, blue and green rectangles as road, car and bicycle on unlabelled ground, in two cities a part.

    Masks are ``*_labelIds.png``; with ``train_ids`` there are ``*_labelTrainIds.png`` too. Beside them lie the other
    files of the download, which are not read.
    """
    label_ids, numbers = {"red": 7, "blue": 26, "green": 33}, {"red": 0, "blue": 13, "green": 18}
    for offset, (part, cities) in enumerate((("train", ("aachen", "zurich")), ("val", ("frankfurt", "munster")))):
        for number in range(images):
            seed, city = 100 * offset + number, cities[number % 2]
            key = f"{city}_{number:06d}_000019"
            objects = random_objects(tuple(label_ids), seed, size)
            write_scene(root / "leftImg8bit" / part / city / f"{key}_leftImg8bit.png", objects, seed, size)
            formats = [("labelIds", label_ids, 0), ("instanceIds", label_ids, 0)]
            formats += [("labelTrainIds", numbers, 255)] if train_ids else []
            for name, values, ground in formats:
                mask = np.full((size[1], size[0]), ground, dtype=np.uint8)
                for colour, x0, y0, x1, y1 in objects:
                    mask[y0:y1, x0:x1] = values[colour]
                path = root / "gtFine" / part / city / f"{key}_gtFine_{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(path)
    return root
