"""What self-distillation adds to a training step: PSD and OBD-SD over the multi-similarity loss alone.

    python tests/benchmarks/bench_obd_sd.py [--network resnet50 --size 224 --batch 112 --rounds 20 --device cuda]

Rounds alternate, so that a noisy machine bends all; ratios are those of the medians. Time is that of the clock on a
GPU, of the processor on the CPU, which others may use too. A step is forward, backward and Adam on the same batch,
without a loader: what is added is the teacher's forward and, for OBD-SD, one solution of a B x B system. ``bf16`` is
OBD-SD with ``teacher_precision: bf16``. The paper's +5.3 % (PSD) and +17.4 % (OBD-SD) are of whole epochs on CUB,
loading and evaluation included, and its released code runs the teacher for the loss alone too; what OBD-SD adds to PSD
can be compared as it is. Peak memory is of a process of its own for each (host), or of the allocator (GPU).
"""

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time

import torch

from fgssl.data.batch import Batch
from fgssl.methods.obd_sd import OBDSD, Distillation
from fgssl.nn.backbones import Backbone

STEPS = 2  # a round
VARIANTS = {
    "MS": Distillation(teacher="none"),
    "PSD": Distillation(omega=0.0),
    "OBD-SD": Distillation(omega=0.3),
    "bf16": Distillation(omega=0.3, teacher_precision="bf16"),
}


class Step:
    """One variant's training step, in an epoch in which the teacher acts."""

    def __init__(self, variant: str, network: str, batch: Batch, device: str):
        torch.manual_seed(0)
        self.method = OBDSD(Backbone(network), distillation=VARIANTS[variant], train_classes=[0]).to(device).train()
        self.method.class_of = lambda fine: fine
        type(self.method).current_epoch = 1
        weights = [p for p in self.method.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(weights, lr=1e-5, weight_decay=4e-4)
        self.batch = batch

    def __call__(self) -> None:
        self.optimiser.zero_grad()
        self.method.step(self.batch).loss.backward()
        self.optimiser.step()


def make_batch(options) -> Batch:
    images = torch.randn(options.batch, 3, options.size, options.size, device=options.device)
    rows = torch.arange(options.batch, device=options.device)
    return Batch([images], rows // 2, rows // 2, rows, rows)


def seconds(step: Step, sync) -> float:
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    sync()
    began = clock()
    for _ in range(STEPS):
        step()
    sync()
    return (clock() - began) / STEPS


def peak_memory(variant: str, options) -> float:
    """MiB at most over two steps, in a process of its own."""
    flags = ["--network", options.network, "--size", str(options.size), "--batch", str(options.batch)]
    line = [sys.executable, __file__, *flags, "--device", options.device, "--memory-of", variant]
    return float(subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()[-1])


def print_memory(options) -> None:
    step = Step(options.memory_of, options.network, make_batch(options), options.device)
    for _ in range(2):
        step()
    on_host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(torch.cuda.max_memory_allocated() / 2**20 if options.device == "cuda" else on_host)


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet50" if cuda else "resnet18")
    parser.add_argument("--size", type=int, default=224 if cuda else 64)
    parser.add_argument("--batch", type=int, default=112)
    parser.add_argument("--rounds", type=int, default=20 if cuda else 4)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print_memory(options)
        return
    sync = torch.cuda.synchronize if options.device == "cuda" else lambda: None

    # First: on Linux a process starts with the peak of the one that starts it.
    memory = {variant: peak_memory(variant, options) for variant in VARIANTS}
    batch = make_batch(options)
    steps = {variant: Step(variant, options.network, batch, options.device) for variant in VARIANTS}
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(options.rounds + 1):
        for variant, step in steps.items():
            times[variant].append(seconds(step, sync))
    median = {variant: statistics.median(rounds[1:]) for variant, rounds in times.items()}  # the first warms up
    print(f"\nOBD-SD step, {options.network}, {options.size} px, batch {options.batch}, {options.rounds} rounds")
    for variant in VARIANTS:
        extra = 100 * (median[variant] / median["MS"] - 1)
        print(f"  {variant:7} {median[variant] * 1e3:9.1f} ms  {extra:+6.1f} %   peak {memory[variant]:8.0f} MiB")
    print(f"  OBD-SD over PSD {100 * (median['OBD-SD'] / median['PSD'] - 1):+.1f} %   (paper, of an epoch: +11.5 %)")
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"  {hardware}; torch {torch.__version__}, Python {platform.python_version()}, {sys.platform}")


if __name__ == "__main__":
    main()
