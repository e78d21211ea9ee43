"""Scenes of several CIFAR-10 photographs with known boxes: a dense task that a small ViT learns on a CPU.

A scene is 64 x 64 px: three photographs of different classes, 24 to 32 px wide, each in a quarter of its own at a
random place, before a strongly blurred fourth one. The first is the labelled object, whose box ``scenes.csv`` has; the
others are what a feature of the whole image confuses with it. No photograph is an object twice; training scenes are
made of training photographs, test scenes of test photographs. The same seed gives the same scenes::

    python experiments/evidence/scenes.py cifar10-jpeg.tar data/scenes
    fgssl data check folder --root data/scenes/scenes.csv

``cifar10-jpeg.tar`` holds ``train/<class>/*.jpg`` and ``test/<class>/*.jpg``.
"""

import argparse
import csv
import io
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

SIDE = 64  # of a scene, px
OBJECTS = 3
SIZES = (24, 32)  # smallest and largest side of an object, px
BLUR = 8  # px; standard deviation
QUALITY = 95  # of the JPEG files


class Photograph(NamedTuple):
    """A JPEG file in memory and its class."""

    label: str
    content: bytes

    def open(self) -> Image.Image:
        return Image.open(io.BytesIO(self.content)).convert("RGB")


def read_photographs(archive: Path) -> dict[str, list[Photograph]]:
    """The photographs of each part, in the order of their names."""
    found: dict[str, dict[str, Photograph]] = {"train": {}, "test": {}}
    with tarfile.open(archive) as tar:
        for member in tar:
            part, *names = Path(member.name).parts
            file = tar.extractfile(member) if part in found and len(names) == 2 else None
            if file is not None:
                found[part]["/".join(names)] = Photograph(names[0], file.read())
    return {part: [photograph for _, photograph in sorted(files.items())] for part, files in found.items()}


def draw_scene(
    objects: list[Photograph], background: Photograph, generator: np.random.Generator
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A scene, and the box (x0, y0, x1, y1) of its first object."""
    scene = background.open().resize((SIDE, SIDE), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(BLUR))
    boxes = []
    for quarter, photograph in zip(generator.permutation(4), objects, strict=False):
        side = int(generator.integers(SIZES[0], SIZES[1] + 1))
        x0, y0 = generator.integers(0, SIDE // 2 - side + 1, 2) + SIDE // 2 * np.array([quarter % 2, quarter // 2])
        scene.paste(photograph.open().resize((side, side), Image.Resampling.BICUBIC), (int(x0), int(y0)))
        boxes.append((int(x0), int(y0), int(x0) + side, int(y0) + side))
    return scene, boxes[0]


def groups_of(photographs: list[Photograph], count: int, generator: np.random.Generator) -> list[list[Photograph]]:
    """``count`` groups of photographs of different classes; the first of each are balanced over the classes."""
    by_class: dict[str, list[Photograph]] = {}
    for place in generator.permutation(len(photographs)):
        by_class.setdefault(photographs[place].label, []).append(photographs[place])
    names = sorted(by_class)
    groups = []
    for number in range(count):
        first = names[number % len(names)]
        # the classes with the most photographs left, so that none runs out; equal ones in a random order
        others = [names[place] for place in generator.permutation(len(names)) if names[place] != first]
        others.sort(key=lambda name: -len(by_class[name]))
        chosen = [first, *others[: OBJECTS - 1]]
        if not all(by_class[name] for name in chosen):
            sys.exit(f"scenes: {count} scenes need {OBJECTS * count} photographs, balanced over the classes.")
        groups.append([by_class[name].pop() for name in chosen])
    return groups


def write_scenes(archive: Path, folder: Path, counts: dict[str, int], seed: int) -> Path:
    """Write ``<part>/<number>.jpg`` and ``scenes.csv``; returns the path of the latter."""
    photographs = read_photographs(archive)
    rows = []
    for stream, (part, count) in enumerate(counts.items()):
        generator = np.random.default_rng([seed, stream])
        (folder / part).mkdir(parents=True, exist_ok=True)
        for number, objects in enumerate(groups_of(photographs[part], count, generator)):
            background = photographs[part][generator.integers(len(photographs[part]))]
            scene, box = draw_scene(objects, background, generator)
            name = f"{part}/{number:05d}.jpg"
            scene.save(folder / name, quality=QUALITY, subsampling=0)
            rows.append([name, objects[0].label, part, *box])
    with (folder / "scenes.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["path", "label", "part", "x0", "y0", "x1", "y1"], *rows])
    return folder / "scenes.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("archive", type=Path, help="tar file of train/<class>/*.jpg and test/<class>/*.jpg")
    parser.add_argument("folder", type=Path, help="folder to write to")
    parser.add_argument("--train", type=int, default=5000, help="number of training scenes")
    parser.add_argument("--test", type=int, default=1000, help="number of test scenes")
    parser.add_argument("--seed", type=int, default=0, help="seed of all choices")
    args = parser.parse_args()
    path = write_scenes(args.archive, args.folder, {"train": args.train, "test": args.test}, args.seed)
    print(f"{args.train} training and {args.test} test scenes: {path}")


if __name__ == "__main__":
    main()
