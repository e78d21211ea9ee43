"""What the dictionary of features and its labels add to a MoCo-v2 step: MLS over MoCo-v2, D = 4096, d_g = 2048.

    python tests/benchmarks/bench_mls.py [--network resnet50 --size 224 --batch 256 --rounds 20 --device cuda]

Rounds of both alternate, so that a noisy machine bends both; the ratio is that of the medians. A step is forward,
backward, SGD, EMA and enqueue on the same batch, without a loader. Memory is the method's own buffers; on a GPU also
the allocator's peak.
"""

import argparse
import platform
import statistics
import sys
import time

import torch

from fgssl.data.batch import Batch
from fgssl.methods.mls import MLS
from fgssl.nn.backbones import Backbone
from fgssl.nn.teacher import ema_update


class Step:
    """One variant's training step, both dictionaries full."""

    def __init__(self, variant: str, options):
        torch.manual_seed(0)
        self.method = MLS(Backbone(options.network), variant=variant).to(options.device).train()
        images = torch.randn(options.batch, 3, options.size, options.size, device=options.device)
        rows = torch.arange(options.batch, device=options.device)
        self.batch = Batch([images, images], rows, rows, rows, rows)
        self.optimiser = torch.optim.SGD(self.method.query.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
        memory = self.method.memory
        keys = torch.nn.functional.normalize(torch.randn_like(memory.keys_KD), dim=1)
        memory.enqueue(keys, memory.labels_K.clone(), memory.index_K.clone())

    def __call__(self) -> None:
        self.optimiser.zero_grad()
        result = self.method.step(self.batch)
        result.loss.backward()
        self.optimiser.step()
        ema_update(self.method.query, self.method.key, self.method.momentum)
        self.method.memory.enqueue(*result.enqueue["memory"])


def seconds(step: Step, sync) -> float:
    sync()
    began = time.perf_counter()
    step()
    sync()
    return time.perf_counter() - began


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--size", type=int, default=224 if cuda else 96)
    parser.add_argument("--batch", type=int, default=256 if cuda else 32)
    parser.add_argument("--rounds", type=int, default=20 if cuda else 5)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    options = parser.parse_args()
    sync = torch.cuda.synchronize if options.device == "cuda" else lambda: None

    steps = {"MoCo-v2": Step("moco_v2", options), "MLS": Step("mls", options)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    peak: dict[str, float] = {}
    for _ in range(options.rounds + 1):
        for name, step in steps.items():
            if options.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            times[name].append(seconds(step, sync))
            if options.device == "cuda":
                peak[name] = torch.cuda.max_memory_allocated() / 2**20
    median = {name: statistics.median(rounds[1:]) for name, rounds in times.items()}  # the first warms up
    held = {name: step.method.memory.keys_KD.nbytes / 2**20 for name, step in steps.items()}
    print(f"\nMLS step, {options.network}, {options.size} px, batch {options.batch}, {options.rounds} rounds")
    for name in steps:
        shown = f"   peak {peak[name]:8.0f} MiB, both methods loaded" if peak else ""
        print(f"  {name:8} {median[name] * 1e3:9.1f} ms   dictionaries {held[name]:5.1f} MiB{shown}")
    print(f"  extra time {100 * (median['MLS'] / median['MoCo-v2'] - 1):+.2f} %   (aim: below 3 %)")
    if peak:
        print(f"  extra memory {100 * (peak['MLS'] / peak['MoCo-v2'] - 1):+.2f} %   (aim: below 3 %)")
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"  {hardware}; torch {torch.__version__}, Python {platform.python_version()}, {sys.platform}")


if __name__ == "__main__":
    main()
