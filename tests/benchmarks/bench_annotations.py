"""COCO's annotations: seconds and memory of the first process of a machine, and of each further one.

    python tests/benchmarks/bench_annotations.py [--small]

The first parses the files and keeps the arrays on the disk; the others map them. Each row is a process of its own. The
annotations are made here: 147,000 polygons of 25 points in 21,000 images, 83 MB; COCO 2017 has six times as many.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROWS = ("first process", "further process")


def make_annotations(root: Path, images: int, objects: int) -> None:
    """Annotation files in COCO's format; the images are not needed."""
    draw = random.Random(0).random
    for half, share in (("train2017", 20), ("val2017", 1)):
        (root / half).mkdir()
        (root / "annotations").mkdir(exist_ok=True)
        count = images * share // 21
        shown = [{"id": n, "file_name": f"{n:012d}.jpg", "width": 640, "height": 480} for n in range(count)]
        annotations = [
            {
                "id": n + 1, "image_id": n % count, "category_id": 1 + n % 80, "iscrowd": 0, "area": 15_000.0,
                "bbox": [round(500 * draw(), 2), round(300 * draw(), 2), 100.5, 150.25],
                "segmentation": [[round(400 * draw(), 2) for _ in range(50)]],
            }
            for n in range(objects * share // 21)
        ]  # fmt: skip
        categories = [{"id": number, "name": str(number)} for number in range(1, 81)]
        content = {"images": shown, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{half}.json").write_text(json.dumps(content))


def measure(root: str) -> dict[str, float]:
    """Seconds, seconds of the processor and MB at the peak of this process, which reads the index."""
    from fgssl.data.datasets import COCOInstances, kept

    kept.LARGE = 1  # of --small too
    warnings.simplefilter("ignore")  # fewer images than COCO has
    began, worked = time.perf_counter(), time.process_time()
    COCOInstances(root, partial=True).index()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - worked
    return {"seconds": seconds, "cpu": cpu_seconds, "mb": peak_memory()}


def peak_memory() -> float:
    """Largest resident memory of this process, MB; Linux. getrusage would count the parent's before exec."""
    status = Path("/proc/self/status").read_text()
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="7,000 objects, a second")
    parser.add_argument("--root", help="measure one process that reads this folder, and print JSON")
    args = parser.parse_args()
    if args.root:
        print(json.dumps(measure(args.root)))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "coco")
        root.mkdir()
        make_annotations(root, *((1050, 7000) if args.small else (21_000, 147_000)))
        os.environ["FGSSL_CACHE"] = str(Path(folder, "cache"))
        print(f"{'':18}{'seconds':>9}{'CPU s':>9}{'peak MB':>9}")
        results = []
        for name in ROWS:
            command = [sys.executable, __file__, "--root", str(root)]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results.append(json.loads(out))
            print(f"{name:18}{results[-1]['seconds']:9.2f}{results[-1]['cpu']:9.2f}{results[-1]['mb']:9.0f}")
        first, further = results
        print(f"A further process takes {first['cpu'] / further['cpu']:.0f} times less of a processor.")


if __name__ == "__main__":
    main()
