"""What CMD adds to its networks: a step over the bare forward and backward of the same crops, and the peak memory.

    python tests/benchmarks/bench_cmd.py [--network swin_tiny_patch4_window7_224 --batch 32 --rounds 20 --device cuda]

1. Time. Rounds of all alternate, so that a noisy machine bends them alike; ratios are of medians. Bare: the student's
   backbone forward and backward over all crops, the teacher's forward over the two image crops. On the CPU a narrow
   network at 64 and 32 px and few prototypes, on a GPU the paper's sizes.
2. Memory at batch 32 and K = 65536, 2 crops of 49 instances and 8 of 9: all region logits are 1.43 GB in float32, and
   2 + 8 crops of Swin-T add their own. Each variant in a process of its own; on the CPU its resident peak, with a
   network so narrow that the heads and losses are nearly all of it.
"""

import argparse
import multiprocessing
import platform
import resource
import statistics
import sys
import time

import torch

from fgssl.data.batch import Batch
from fgssl.methods.cmd import CMD
from fgssl.nn.backbones import Backbone
from fgssl.nn.feature_map import last_features
from fgssl.nn.teacher import ema_update

VARIANTS = {
    "DINO": {"l_i": 1, "l_r": 0, "l_s": 0, "l_t": 0},
    "EsViT": {"l_s": 0, "l_t": 0},
    "CMD": {},
    "CMD, 90 pairs": {"teacher_crops": "all"},
}
NARROW = {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64], "stem_width": 8}  # stride 32, as Swin's
MIDDLE = {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256], "stem_width": 32, "output_stride": 16}


def crops_of(batch: int, size: int, local: int, device: str) -> Batch:
    views = [torch.randn(batch, 3, s, s, device=device) for s in [size] * 2 + [local] * 8]
    rows = torch.arange(batch, device=device)
    return Batch(views, rows, rows, rows, rows)


class Step:
    """One variant's training step: forward, backward, SGD, EMA."""

    def __init__(self, backbone: Backbone, batch: Batch, prototypes: int, device: str, **variant):
        torch.manual_seed(0)
        self.method, self.batch = CMD(backbone, prototypes=prototypes, **variant).to(device).train(), batch
        self.optimiser = torch.optim.SGD(self.method.student.parameters(), lr=1e-3)

    def __call__(self) -> None:
        self.optimiser.zero_grad()
        self.method.step(self.batch).loss.backward()
        self.optimiser.step()
        ema_update(self.method.student, self.method.teacher, 0.996)


class Bare(Step):
    """The networks alone."""

    def __call__(self) -> None:
        self.optimiser.zero_grad()
        views = self.batch.views
        images, regions = torch.cat(views[:2]), torch.cat(views[2:])
        with torch.no_grad():
            last_features(self.method.teacher.backbone, images)
        pooled = [last_features(self.method.student.backbone, x)[0] for x in (images, regions)]
        torch.cat(pooled).square().mean().backward()


def seconds(step: Step, device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - began


def times(options) -> None:
    backbone = Backbone(options.network, options=options.settings)
    batch = crops_of(options.batch, options.size, options.local, options.device)
    steps: dict[str, Step] = {"bare": Bare(backbone, batch, options.prototypes, options.device)}
    steps |= {n: Step(backbone, batch, options.prototypes, options.device, **v) for n, v in VARIANTS.items()}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds + 1):
        for name, step in steps.items():
            taken[name].append(seconds(step, options.device))
    median = {name: statistics.median(rounds[1:]) for name, rounds in taken.items()}  # the first warms up
    print(f"step, {options.network}, {options.size} and {options.local} px, 2 + 8 crops, batch {options.batch}, "
          f"K = {options.prototypes}, {options.rounds} rounds")  # fmt: skip
    for name, value in median.items():
        speed = f"{value / median['bare']:5.2f} x bare   {options.batch / value:6.1f} images/s"
        print(f"  {name:14} {value * 1e3:9.1f} ms   {speed}")


def one_peak(variant: str, network: str, settings: dict, device: str, answer) -> None:
    """Peak in MiB: the process's, less what it was before, or the allocator's on a GPU."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = Step(Backbone(network, options=settings), crops_of(32, 224, 96, device), 65536, device, **VARIANTS[variant])
    took = seconds(step, device)
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    answer.put((peak, took))


def peaks(options) -> None:
    network, settings = ("resnet18", NARROW) if options.device == "cpu" else (options.network, options.settings)
    print(f"peak of one step, {network}, 224 and 96 px, 2 + 8 crops, batch 32, K = 65536 (all region logits: 1360 MiB)")
    context = multiprocessing.get_context("spawn")
    for variant in options.variants:
        answer = context.Queue()
        process = context.Process(target=one_peak, args=(variant, network, settings, options.device, answer))
        process.start()
        peak, took = answer.get()
        process.join()
        print(f"  {variant:14} {peak:7.0f} MiB   {took:6.1f} s")


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="swin_tiny_patch4_window7_224" if cuda else "resnet18")
    parser.add_argument("--batch", type=int, default=32 if cuda else 16)
    parser.add_argument("--rounds", type=int, default=20 if cuda else 5)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--variants", nargs="*", default=["DINO", "CMD"], choices=VARIANTS, help="whose memory")
    options = parser.parse_args()
    options.size, options.local, options.prototypes = (224, 96, 65536) if cuda else (64, 32, 4096)
    options.settings = {"strict_img_size": False} if "swin" in options.network else {} if cuda else MIDDLE
    times(options)
    peaks(options)
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"  {hardware}; torch {torch.__version__}, Python {platform.python_version()}, {sys.platform}")


if __name__ == "__main__":
    main()
