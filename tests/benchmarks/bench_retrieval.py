"""Retrieval metrics on a set of the size of Stanford Online Products' test images, beside a plain search.

    python tests/benchmarks/bench_retrieval.py [--small]

Each row runs in a process of its own, so that its peak memory is its own. The target is at most 1.2 times the time of
the search alone, and less than 1 GiB beside the embeddings. On a machine that others use, the ratio of CPU seconds is
the one to read.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time

import faiss
import pytorch_metric_learning
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch import Tensor

from fgssl.metrics import retrieval_metrics

KS = (1, 10, 100, 1000)
FULL = {"rows": 60_502, "dim": 512, "classes": 11_316}
SMALL = {"rows": 6_000, "dim": 128, "classes": 1_122}


def embeddings(rows: int, dim: int, classes: int) -> tuple[Tensor, Tensor]:
    """Unit vectors around a random centre for each class, [N, D] float32, and labels [N]; as much noise as signal."""
    generator = torch.Generator().manual_seed(0)
    labels_N = torch.randint(classes, (rows,), generator=generator)
    centre_CD = torch.randn(classes, dim, generator=generator)
    z_ND = torch.randn(rows, dim, generator=generator)
    for some in torch.arange(rows).split(1024):
        z_ND[some] += centre_CD[labels_N[some]]
        z_ND[some] /= z_ND[some].norm(dim=1, keepdim=True)
    return z_ND, labels_N


def matrix_product(z_ND: Tensor, labels_N: Tensor) -> None:
    for some in z_ND.split(1024):
        some @ z_ND.T


def faiss_flat(z_ND: Tensor, labels_N: Tensor) -> None:
    index = faiss.IndexFlatIP(z_ND.shape[1])
    index.add(z_ND.numpy())
    index.search(z_ND.numpy(), max(KS) + 1)


def ours(z_ND: Tensor, labels_N: Tensor) -> None:
    retrieval_metrics(z_ND, labels_N, ks=KS)


def accuracy_calculator(z_ND: Tensor, labels_N: Tensor) -> None:
    """Its mAP sees only these neighbours: the whole list would be an N x N matrix."""
    wanted = ("precision_at_1", "r_precision", "mean_average_precision", "mean_average_precision_at_r")
    AccuracyCalculator(include=wanted, k=max(KS), device=torch.device("cpu")).get_accuracy(z_ND, labels_N)


ROWS = {
    "float32 matrix product, nothing kept": matrix_product,
    "faiss flat, top 1001": faiss_flat,
    "fgssl: Recall@1 to 1000, mAP@R, full mAP": ours,
    "AccuracyCalculator, k = 1000": accuracy_calculator,
}


def measure(name: str, size: dict[str, int]) -> dict[str, float]:
    """Seconds, seconds of all processors and extra GiB of one row, in this process."""
    z_ND, labels_N = embeddings(**size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu_start = time.perf_counter(), time.process_time()
    ROWS[name](z_ND, labels_N)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "gib": (after - before) / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="6,000 x 128, a few seconds")
    parser.add_argument("--row", choices=ROWS, help="measure this row alone and print JSON")
    args = parser.parse_args()
    size = SMALL if args.small else FULL
    if args.row:
        print(json.dumps(measure(args.row, size)))
        return

    print(
        f"{size['rows']:,} x {size['dim']}, {size['classes']:,} classes | {_processor()}, "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} | Python {platform.python_version()}, "
        f"torch {torch.__version__}, faiss {faiss.__version__}, "
        f"pytorch-metric-learning {pytorch_metric_learning.__version__}"
    )
    print(f"{'':42}{'seconds':>9}{'x faiss':>9}{'CPU s':>9}{'x faiss':>9}{'extra GiB':>11}")
    results = {}
    for name in ROWS:
        command = [sys.executable, __file__, "--row", name] + ["--small"] * args.small
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results[name] = json.loads(out.splitlines()[-1])
    faiss_row = results["faiss flat, top 1001"]
    for name, result in results.items():
        ratio, cpu_ratio = (result[unit] / faiss_row[unit] for unit in ("seconds", "cpu_seconds"))
        print(
            f"{name:42}{result['seconds']:9.1f}{ratio:9.2f}{result['cpu_seconds']:9.1f}{cpu_ratio:9.2f}"
            f"{result['gib']:11.2f}"
        )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
