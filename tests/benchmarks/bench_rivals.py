"""What the loss of a rival adds to its networks: a training step over forward, backward and SGD of the same encoder.

    python tests/benchmarks/bench_rivals.py [--network resnet18 --size 96 --batch 32 --rounds 5 --device cpu]

Bare: the mean square of the projections of the same views. Rounds of both alternate, so that a noisy machine bends
both; the ratio is that of the medians. Time is that of the clock on a GPU, of the processor on the CPU.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch

from fgssl.data.batch import Batch
from fgssl.methods import BYOL, BarlowTwins, SimCLR, SimSiam, SwAV, VICReg
from fgssl.methods.base import Method
from fgssl.nn.backbones import Backbone

Encode = Callable[[Method, list[torch.Tensor]], torch.Tensor]


def encoder_and_predictor(method: Method, views: list[torch.Tensor]) -> torch.Tensor:
    """SimSiam's predictions of both views."""
    return torch.stack([method.predictor(method.encoder.head(method.encoder.features(view))) for view in views])


def online_and_target(method: Method, views: list[torch.Tensor]) -> torch.Tensor:
    """BYOL's predictions of both views, and the target's projections."""
    with torch.no_grad():
        targets = torch.stack([method.target.head(method.target.features(view)) for view in views])
    return torch.stack([method.predictor(method.online.head(method.online.features(view))) for view in views]) - targets


def view_by_view(method: Method, views: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([method.encoder(view) for view in views])


# name -> class, its arguments, number of small views, the networks alone
RIVALS: dict[str, tuple[type[Method], dict, int, Encode]] = {
    "SimCLR": (SimCLR, {}, 0, lambda method, views: method.encoder(torch.cat(views))),
    "BYOL": (BYOL, {}, 0, online_and_target),
    "SimSiam": (SimSiam, {}, 0, encoder_and_predictor),
    "Barlow Twins": (BarlowTwins, {}, 0, view_by_view),
    "VICReg": (VICReg, {}, 0, view_by_view),
    "SwAV": (SwAV, {"queue_start": 0}, 6, lambda method, views: method.project(views)),
}


class Step:
    """Training steps of a rival on one batch, whole or bare."""

    def __init__(self, name: str, options):
        kind, arguments, small, self.encode = RIVALS[name]
        if kind is SwAV:
            arguments = {**arguments, "queue": 15 * options.batch}  # as the released command
        torch.manual_seed(0)
        self.method = kind(Backbone(options.network), **arguments).to(options.device).train()
        sizes = [options.size] * 2 + [options.size * 3 // 7] * small  # 224 and 96
        views = [torch.randn(options.batch, 3, size, size, device=options.device) for size in sizes]
        rows = torch.arange(options.batch, device=options.device)
        self.batch = Batch(views, rows, rows, rows, rows)
        self.optimiser = torch.optim.SGD(self.method.parameters(), lr=1e-4, momentum=0.9)
        for memory in self.method.memories().values():
            keys = torch.nn.functional.normalize(torch.randn_like(memory.keys_KD), dim=1)
            memory.enqueue(keys, memory.labels_K.clone(), memory.index_K.clone())

    def whole(self) -> None:
        result = self.method.step(self.batch)
        self.update(result.loss)
        for name, rows in result.enqueue.items():
            self.method.get_submodule(name).enqueue(*rows)

    def bare(self) -> None:
        self.update(self.encode(self.method, self.batch.views).square().mean())

    def update(self, loss: torch.Tensor) -> None:
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet50" if cuda else "resnet18")
    parser.add_argument("--size", type=int, default=224 if cuda else 112)
    parser.add_argument("--batch", type=int, default=128 if cuda else 32)
    parser.add_argument("--rounds", type=int, default=20 if cuda else 5)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--only", choices=RIVALS, nargs="*", default=list(RIVALS))
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    sync = torch.cuda.synchronize if on_gpu else lambda: None
    clock = time.perf_counter if on_gpu else time.process_time

    print(
        f"\nSteps of the rivals, {options.network}, {options.size} px, batch {options.batch}, {options.rounds} rounds"
    )
    for name in options.only:
        step = Step(name, options)
        times: dict[str, list[float]] = {"whole": [], "bare": []}
        for _ in range(options.rounds + 1):
            for kind, seconds in times.items():
                sync()
                began = clock()
                getattr(step, kind)()
                sync()
                seconds.append(clock() - began)
        whole, bare = (statistics.median(seconds[1:]) for seconds in times.values())  # the first warms up
        print(f"  {name:14} {whole * 1e3:9.1f} ms, networks {bare * 1e3:9.1f} ms: x {whole / bare:.3f}   (aim: 1.05)")
    hardware = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"  {hardware}; torch {torch.__version__}, Python {platform.python_version()}, {sys.platform}")


if __name__ == "__main__":
    main()
