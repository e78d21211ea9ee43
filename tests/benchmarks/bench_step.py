"""The training step through the whole Trainer loop, over the bare networks of the same method: a row for each method.

    python tests/benchmarks/bench_step.py [--methods MAE SimCLR --size 64 --batch 64 --rounds 4 --device cpu]

Bare: all networks that the method's step runs (backbone, heads, the dense head of DenseCL, MAE's decoder, and a teacher
without gradient) on the same images, with a mean of squares in place of the loss, backward, and the same optimiser, in
a plain loop. LCR's attention and GradCAM are not bare. Ours: the method by ``Trainer.fit`` with its loss, random draws,
teacher's update, a full memory, logging to ``metrics.csv`` and progress bar. The networks are a ResNet18 with heads of
128 to 512 channels, and for MAE a small ViT: at its published width of 8192 channels a loss of correlations alone is as
much work as a ResNet18 at 64 px.

Rounds of both alternate, so that a noisy machine bends both; the ratio is that of the medians. Time is that of the
clock on a GPU, of the processor on the CPU, which others may use too. With glibc, set ``MALLOC_MMAP_MAX_=0
MALLOC_TRIM_THRESHOLD_=20000000000``: memory that is returned and taken anew bends a ratio by up to a tenth.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from fgssl import methods
from fgssl.callbacks.collapse import Collapse
from fgssl.callbacks.monitor import Monitor
from fgssl.callbacks.progress import ProgressBar
from fgssl.data.batch import Batch
from fgssl.loggers import MetricsLogger
from fgssl.methods.base import Method
from fgssl.nn.backbones import Backbone
from fgssl.nn.dml import Spec

STEPS = 4  # a round
AIM = 1.05  # largest ratio of any method
COARSE, FINE = 8, 40  # classes
RESNET = Backbone("resnet18")
Outputs = list[Tensor]


class Case(NamedTuple):
    """A method to measure.

    Attributes:
        options: of its constructor; the backbone is a ResNet18 where none is named.
        bare: what its networks make of the views, by the method with these networks and the views.
        views: views of an image.
    """

    options: dict[str, Any]
    bare: Callable[[Any, list[Tensor]], Outputs]
    views: int = 2


@torch.no_grad()
def constant(network: Callable, images: Tensor) -> Tensor:
    return network(images)


def masked(method: Any, views: list[Tensor]) -> Outputs:
    """MAE's encoder on the first quarter of the patches, and its decoder."""
    numbers = torch.arange(method.patches, device=views[0].device).expand(len(views[0]), -1)
    return [method.predict(views[0], *numbers.tensor_split([method.visible], dim=1))]


def projected(encoder: Any, views: list[Tensor]) -> Outputs:
    return [encoder.head(encoder.features(images)) for images in views]


def with_parts(method: Any, views: list[Tensor]) -> Outputs:
    """LEWEL's projections and parts with their predictors, and those of the target."""
    outputs: Outputs = []
    for images in views:
        z_BD, a_BPD, _ = method.online.outputs(images)
        outputs += [method.predictor(z_BD), method.part_predictor(a_BPD.flatten(0, 1))]
        outputs += constant(method.target.outputs, images)[:2]
    return outputs


def predicted(method: Any, views: list[Tensor]) -> Outputs:
    """BYOL's predictions of both views, and the target's projections."""
    targets = [constant(lambda x: method.target.head(method.target.features(x)), images) for images in views]
    return [*(method.predictor(z_BD) for z_BD in projected(method.online, views)), *targets]


HEAD = {"dim": 128, "hidden": 512}
WIDE = {"dim": 512, "hidden": 512}
VIT = {"patch_size": 8, "depth": 6, "embed_dim": 192, "num_heads": 3}
CASES: dict[str, Case] = {
    "MaskCon": Case({"num_coarse": COARSE}, lambda m, v: [m.query(v[0]), constant(m.key, v[1])]),
    "MLS": Case({"variant": "moco_v2", **HEAD}, lambda m, v: [m.query(v[0]), constant(m.key, v[1])]),
    "LCR": Case({"memory": 4096, **HEAD}, lambda m, v: [m.query(v[0]), constant(m.key, v[1])]),
    "DenseCL": Case(
        {"memory": 4096, **HEAD}, lambda m, v: [*m.query.outputs(v[0])[:2], *constant(m.key.outputs, v[1])[:2]]
    ),
    "SimCLR": Case(HEAD, lambda m, v: [m.encoder(torch.cat(v))]),
    "BYOL": Case(HEAD, predicted),
    "BYOLLCR": Case(HEAD, predicted),
    "LEWEL": Case(HEAD, with_parts),
    "SimSiam": Case(
        {"dim": 512, "hidden": 128}, lambda m, v: [m.predictor(z) for z in projected(m.encoder, v)]
    ),
    "BarlowTwins": Case(WIDE, lambda m, v: projected(m.encoder, v)),
    "VICReg": Case(WIDE, lambda m, v: projected(m.encoder, v)),
    "SwAV": Case({"prototypes": 512, **HEAD}, lambda m, v: [m.project(v) @ m.c_KD.T]),
    "MetricLearning": Case(
        {"dml_loss": Spec("ProxyAnchor"), "train_classes": list(range(FINE))}, lambda m, v: [m.student(v[0])], views=1
    ),
    "MAE": Case(
        {"backbone": Backbone("vit_tiny_patch16_224", options=VIT), "decoder_dim": 96, "decoder_depth": 2,
         "decoder_heads": 3},
        masked,
        views=1,
    ),
}  # fmt: skip


def build(name: str, size: int) -> Method:
    """A method with all its memories full of random keys."""
    torch.manual_seed(0)
    options = {"backbone": RESNET, **CASES[name].options}
    if "vit" in options["backbone"].name:
        network = options["backbone"]
        options["backbone"] = Backbone(network.name, options={**network.options, "img_size": size})
    method = getattr(methods, name)(**options)
    for memory in method.memories().values():
        rows = torch.arange(memory.length)
        memory.enqueue(F.normalize(torch.randn_like(memory.keys_KD), dim=1), rows % COARSE, rows)
    return method


class Rounds(Callback):
    """Inside one fit: times rounds of ours, and runs a round of the bare loop after each."""

    def __init__(self, bare, sync, clock):
        self.bare, self.sync, self.clock, self.ours_s, self.bare_s = bare, sync, clock, [], []

    def on_train_batch_start(self, trainer, method, batch, batch_idx):
        if batch_idx % STEPS == 0:
            if batch_idx:
                self.sync()
                self.ours_s.append((self.clock() - self.began) / STEPS)
                self.bare_s.append(self.bare(batch))
            self.sync()
            self.began = self.clock()


def bare_round(name: str, options, sync, clock) -> Callable[[Batch], float]:
    """A function that runs STEPS bare steps and gives the seconds of one."""
    method = build(name, options.size).to(options.device)
    optimiser = method.optim.build(method, options.batch)

    def run(batch: Batch) -> float:
        sync()
        began = clock()
        with torch.enable_grad():
            for _ in range(STEPS):
                outputs = CASES[name].bare(method, batch.views)
                loss = torch.stack([output.square().mean() for output in outputs]).sum()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        sync()
        return (clock() - began) / STEPS

    return run


def measure(name: str, options, sync, clock) -> tuple[float, float]:
    """Seconds of a bare step and of one through the Trainer; the first round warms up."""
    images = torch.randn(options.batch, 3, options.size, options.size)
    rows = torch.arange(options.batch)
    batch = Batch([images] * CASES[name].views, rows % FINE, rows % COARSE, rows, rows)
    loader = DataLoader([batch] * ((options.rounds + 1) * STEPS + 1), batch_size=None, collate_fn=lambda b: b)
    # Of 512 images an epoch, whose cost depends on the epoch's length: here of the last batch, which is on no clock.
    unmeasured = Collapse(images=2)
    monitor, rounds = Monitor(), Rounds(bare_round(name, options, sync, clock), sync, clock)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            max_epochs=1, accelerator="gpu" if options.device == "cuda" else "cpu", devices=1, log_every_n_steps=10,
            logger=MetricsLogger(Path(folder)), enable_checkpointing=False, enable_model_summary=False,
            callbacks=[rounds, monitor, unmeasured, ProgressBar(monitor.throughput)],
        ).fit(build(name, options.size), loader)  # fmt: skip
    return statistics.median(rounds.bare_s[1:]), statistics.median(rounds.ours_s[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=tuple(CASES), default=list(CASES), metavar="NAME")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    sync = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    clock = time.perf_counter if options.device == "cuda" else time.process_time

    found = {name: measure(name, options, sync, clock) for name in options.methods}
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"\nStep at {options.size} px, batch {options.batch}, {options.rounds} rounds of {STEPS} steps\n")
    print(f"{'method':<16}{'bare, ms':>10}{'Trainer, ms':>13}{'ratio':>8}   (aim: at most {AIM})")
    for name, (bare, ours) in found.items():
        print(f"{name:<16}{bare * 1e3:>10.1f}{ours * 1e3:>13.1f}{ours / bare:>8.3f}")
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"\n{hardware}, load {load}; torch {torch.__version__}, Python {platform.python_version()}, {sys.platform}")


if __name__ == "__main__":
    main()
