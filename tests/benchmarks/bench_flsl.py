"""Mean-shift by fused attention against the plain formula, and FLSL's step against DINO's on the same crops.

    python tests/benchmarks/bench_flsl.py [--network vit_small_patch16_224 --size 224 --batch 64 --rounds 20]

Rounds of both alternate, so that a noisy machine bends both; a ratio is that of the medians. Time is that of the clock
on a GPU, of the processor on the CPU, which others may use too. A step is forward, backward, AdamW and EMA on the same
batch, without a loader, in the precision of training: bf16-mixed on a GPU, 32-true on the CPU. DINO is CMD with its
image-level term alone; FLSL's two symmetric pairs see as many views as its two crops: the student two, the teacher two.
On the CPU the network is ViT-S/16 too, at 128 px: beside a narrower one the head, which works on each query, would take
a larger share of the step than the paper's. Memory is what PyTorch's profiler counts as allocated inside (CPU), or the
allocator's peak (GPU). The paper: an epoch takes 1.19 times DINO's.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fgssl.data.batch import Batch
from fgssl.losses.flsl import mean_shift
from fgssl.methods.cmd import CMD
from fgssl.methods.flsl import FLSL, TOKENS
from fgssl.methods.self_distillation import SelfDistillation
from fgssl.nn.backbones import Backbone
from fgssl.nn.teacher import ema_update


class Step:
    """A method's training step on a fixed batch."""

    def __init__(self, method: SelfDistillation, views: list[Tensor], mixed: bool):
        self.method, self.mixed = method.to(views[0].device).train(), mixed
        rows = torch.arange(len(views[0]))
        self.batch = Batch(views, rows, rows, rows, rows)
        self.optimiser = torch.optim.AdamW((p for p in self.method.student.parameters() if p.requires_grad), lr=1e-4)

    def __call__(self) -> None:
        self.optimiser.zero_grad()
        with torch.autocast(self.batch.views[0].device.type, torch.bfloat16, enabled=self.mixed):
            loss = self.method.step(self.batch).loss
        loss.backward()
        self.optimiser.step()
        ema_update(self.method.student, self.method.teacher, 0.996)


def plain_mean_shift(queries: Tensor, keys: Tensor, *, temperature: float) -> Tensor:
    return (temperature * queries @ keys.mT).softmax(dim=-1) @ keys


def forward_backward(shift: Callable[..., Tensor], queries: Tensor, keys: Tensor) -> None:
    queries.grad = keys.grad = None
    shift(queries, keys, temperature=0.1 / keys.shape[-1] ** 0.5).sum().backward()


def medians(works: dict[str, Callable[[], None]], rounds: int, cuda: bool) -> dict[str, float]:
    """Seconds of each, by alternating rounds; the first warms up."""
    clock = time.perf_counter if cuda else time.process_time
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            if cuda:
                torch.cuda.synchronize()
            began = clock()
            work()
            if cuda:
                torch.cuda.synchronize()
            times[name].append(clock() - began)
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def allocated(work: Callable[[], None], cuda: bool) -> float:
    """MiB: on a GPU the peak above what was there, on the CPU the sum of what was asked for."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    return sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages()) / 2**20


def shown(title: str, ours: str, theirs: str, seconds: dict[str, float], mib: dict[str, float], aim: str) -> None:
    print(f"\n{title}")
    for name in seconds:
        print(f"  {name:8} {seconds[name] * 1e3:9.1f} ms   {mib[name]:8.0f} MiB")
    print(f"  time {seconds[ours] / seconds[theirs]:.2f}, memory {mib[ours] / mib[theirs]:.2f} times   ({aim})")


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="vit_small_patch16_224")
    parser.add_argument("--size", type=int, default=224 if cuda else 128)
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64 if cuda else 4)
    parser.add_argument("--prototypes", type=int, default=4096, help="of both methods")
    parser.add_argument("--rounds", type=int, default=20 if cuda else 5)
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="bf16-mixed" if cuda else "32-true")
    options = parser.parse_args()
    mixed = options.precision == "bf16-mixed"
    device = torch.device("cuda" if cuda else "cpu")
    vit = {"img_size": options.size, "patch_size": options.patch}

    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(options.batch, 3, options.size, options.size, generator=generator).to(device)] * 4
    torch.manual_seed(0)
    flsl = FLSL(Backbone(options.network, options=TOKENS | vit), prototypes=options.prototypes, teacher_views=2)
    dino = CMD(Backbone(options.network, options=vit), l_i=1, l_r=0, l_s=0, l_t=0, prototypes=options.prototypes)

    for tokens in (196, 784):  # of ViT-S/16 and of ViT-S/8; every fourth is asked
        keys = torch.randn(options.batch, tokens, 384, generator=generator).to(device).requires_grad_()
        queries = keys.detach()[:, ::4].clone().requires_grad_()
        both = {"fused": mean_shift, "plain": plain_mean_shift}
        shifts = {name: partial(forward_backward, shift, queries, keys) for name, shift in both.items()}
        seconds, mib = medians(shifts, 10 * options.rounds, cuda), {n: allocated(w, cuda) for n, w in shifts.items()}
        of = f"{options.batch} images, {tokens // 4} queries, {tokens} tokens, 384 channels, with backward"
        shown(f"Mean-shift: {of}", "fused", "plain", seconds, mib, "the plain formula stores its weights")

    steps: dict[str, Callable[[], None]] = {"DINO": Step(dino, views[:2], mixed), "FLSL": Step(flsl, views, mixed)}
    seconds, mib = medians(steps, options.rounds, cuda), {name: allocated(work, cuda) for name, work in steps.items()}
    of = f"{options.network}, {options.size} px by {options.patch}, batch {options.batch}, K {options.prototypes}"
    shown(f"A step: {of}, {options.precision}", "FLSL", "DINO", seconds, mib, "aim: at most 1.15 in time; paper: 1.19")
    hardware = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"  {hardware}; torch {torch.__version__}, Python {platform.python_version()}, {sys.platform}")


if __name__ == "__main__":
    main()
