"""Input pipeline: images per second of one CPU core, beside the torchvision pipelines that one would write.

    python tests/benchmarks/bench_input.py [--small]

The views are MaskCon's pair (appendix A.1, cars) and DINO's multi-crop. torchvision's v2 transforms do them on float
tensors (ToTensor first), on uint8 tensors decoded by torchvision, and on PIL images with PIL's blur. Ours is counted
twice: *loader*, what the worker processes do (decode, crop, resize), and *whole*, with the photometric work, which
belongs on the device but runs on the same core here. All rows take turns in one run, on one thread; the figure is
images over CPU seconds, median of the rounds. The targets are 5 times the pipeline on tensors for the pair and 4 times
for the multi-crop.

Pictures: 500 x 375 px made here, and the photographs of CUB-200-2011 where FGSSL_DATA has them.
"""

import argparse
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image, ImageFilter
from torchvision.transforms import v2

from fgssl.data.augment import IMAGENET_MEAN, IMAGENET_STD
from fgssl.data.datamodule import DataModule, Loader
from fgssl.data.datasets.base import DataSet, Published
from fgssl.data.index import Index
from fgssl.data.views import Crop, MultiCrop, PairViews, Views

VIEWS: dict[str, tuple[Views, float]] = {
    "strong/weak pair": (PairViews("cars"), 5.0),
    "multi-crop 2+8": (MultiCrop(), 4.0),
}


class Files(DataSet):
    """Pictures in a list, all of them for training."""

    def __init__(self, name: str, paths: list[Path]):
        self.name, self.paths, self.partial = name, paths, False
        self._index = None
        self.published = Published({"train": len(paths)}, fine=1)

    def _read(self) -> Index:
        count = len(self.paths)
        paths = np.array([str(path) for path in self.paths])
        return Index(self.name, paths, np.zeros(count, dtype=np.int64), ("picture",), np.full(count, "train"))


def make_pictures(folder: Path, count: int) -> list[Path]:
    """JPEG files of 500 x 375 px, 60 to 70 kB each like photographs: coarse shapes with fine grain."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for path in paths:
        shapes = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375), Image.BICUBIC)
        grain = rng.normal(0, 7, (375, 500, 1))
        pixels = np.clip(np.asarray(shapes) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=90)
    return paths


def cub_photographs(count: int) -> list[Path]:
    root = Path(os.environ.get("FGSSL_DATA", "data")) / "CUB_200_2011" / "images"
    return sorted(root.rglob("*.jpg"))[:: max(1, len(list(root.rglob("*.jpg"))) // count)][:count]


# ---- torchvision's pipelines ----------------------------------------------------------------------------------------

AS_FLOAT = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
NORMALISE = v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)


class PilBlur(torch.nn.Module):
    """The blur of MoCo v2 and DINO on PIL images."""

    def forward(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def photometric(crop: Crop, kind: str) -> list:
    p, steps = crop.photometric, []
    if p.perspective:
        steps.append(v2.RandomPerspective(0.5, p.perspective))
    if p.jitter:
        jitter = v2.ColorJitter(p.brightness, p.contrast, p.saturation, p.hue)
        steps += [v2.RandomApply([jitter], p.jitter), v2.RandomGrayscale(p.grey)]
    if p.blur:
        blur = PilBlur() if kind == "PIL" else v2.GaussianBlur(23, (0.1, 2.0))
        steps.append(v2.RandomApply([blur], p.blur))
    if p.solarise:
        steps.append(v2.RandomSolarize(128 / 255 if kind == "float" else 128, p.solarise))
    return steps


def chain(crop: Crop, kind: str) -> v2.Compose:
    mode = v2.InterpolationMode(crop.resample)
    first = [v2.RandomResizedCrop(crop.size, crop.scale, interpolation=mode), v2.RandomHorizontalFlip(crop.flip)]
    steps = first + photometric(crop, kind)
    return v2.Compose([*AS_FLOAT, *steps, NORMALISE] if kind == "float" else [*steps, *AS_FLOAT, NORMALISE])


def theirs(chains: list[v2.Compose], paths: list[Path], kind: str) -> None:
    for path in paths:
        if kind == "uint8":
            image = torchvision.io.decode_image(str(path), mode="RGB")
        else:
            image = Image.open(path).convert("RGB")
        for transform in chains:
            transform(image)


# ---- measuring ------------------------------------------------------------------------------------------------------


def ours(data: DataModule, loader: Loader, whole: bool) -> None:
    for batch in loader:
        if whole:
            data.on_after_batch_transfer(batch, 0)


def rates(jobs: dict[str, Callable[[], None]], images: int, rounds: int) -> dict[str, float]:
    """Images per CPU second of each job, median over rounds in which all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - start)
    return {name: images / float(np.median(values)) for name, values in seconds.items()}


def measure(name: str, paths: list[Path], folder: Path, rounds: int) -> None:
    for kind, (views, target) in VIEWS.items():
        jobs = {
            f"torchvision, {on}": partial(theirs, [chain(crop, on) for crop in views.crops], paths, on)
            for on in ("float", "uint8", "PIL")
        }
        for source, cache in (("files", None), ("cache", str(folder))):
            data = DataModule(Files(name, paths), views=views, batch_size=len(paths) // 2, num_workers=0, cache=cache)
            data.setup("fit")
            loader = data.train_loader(epoch=0)
            jobs[f"{source}, loader"] = partial(ours, data, loader, whole=False)
            jobs[f"{source}, whole"] = partial(ours, data, loader, whole=True)
        found = rates(jobs, len(paths), rounds)
        columns = [row for row in found if row.startswith("torchvision")]
        print(f"\n{kind}, {name} ({len(paths)} images; target {target:g} times tensors)")
        print(" " * 22 + "images/s" + "".join(f"{column.split(', ')[1]:>9}" for column in columns))
        for row, rate in found.items():
            ratios = "".join(f"{rate / found[column]:7.1f} x" for column in columns)
            print(f"  {row:<20}{rate:8.1f}{ratios}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="fewer images and rounds")
    small = parser.parse_args().small
    torch.set_num_threads(1)
    count, rounds = (16, 2) if small else (64, 5)
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, Python {platform.python_version()}"
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, one used; {versions}")
    with tempfile.TemporaryDirectory() as folder:
        measure("made-500x375", make_pictures(Path(folder), count), Path(folder), rounds)
        photographs = cub_photographs(count)
        if photographs:
            measure("CUB-photographs", photographs, Path(folder), rounds)


if __name__ == "__main__":
    main()
