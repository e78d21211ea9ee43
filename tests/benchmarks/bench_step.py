"""The training step through the whole Trainer loop, over the bare forward and backward of the same networks.

    python tests/benchmarks/bench_step.py [--size 64 --batch 64 --rounds 8 --device cpu]

Bare: the query encoder's forward and backward, the key encoder's forward, and SGD's step, on the same batch in a plain
loop. Ours: MaskCon by ``Trainer.fit`` with its teacher, queue (K = 8192), logging to ``metrics.csv`` and progress bar.
Rounds of both alternate, so that a noisy machine bends both; the ratio is that of the medians. Time is that of the
clock on a GPU, of the processor on the CPU, which others may use too.
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader

from fgssl.callbacks.monitor import Monitor
from fgssl.callbacks.progress import ProgressBar
from fgssl.data.batch import Batch
from fgssl.loggers import MetricsLogger
from fgssl.methods.maskcon import MaskCon
from fgssl.nn.backbones import Backbone

STEPS = 4  # a round


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


def bare_round(device: str, sync, clock):
    """A function that runs STEPS bare steps and gives the seconds of one."""
    method = MaskCon(Backbone("resnet18"), num_coarse=8).to(device)
    optimiser = torch.optim.SGD(method.query.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)

    def run(batch: Batch) -> float:
        sync()
        began = clock()
        with torch.enable_grad():
            for _ in range(STEPS):
                q_BD = method.query(batch.views[0])
                with torch.no_grad():
                    k_BD = method.key(batch.views[1])
                loss = F.mse_loss(q_BD, k_BD)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        sync()
        return (clock() - began) / STEPS

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    sync = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    clock = time.perf_counter if options.device == "cuda" else time.process_time

    images = torch.randn(options.batch, 3, options.size, options.size)
    rows = torch.arange(options.batch)
    batch = Batch([images, images], rows % 40, rows % 8, rows, rows)
    steps = (options.rounds + 2) * STEPS + 1
    loader = DataLoader([batch] * steps, batch_size=None, collate_fn=lambda b: b)
    method = MaskCon(Backbone("resnet18"), num_coarse=8)
    monitor = Monitor()
    rounds = Rounds(bare_round(options.device, sync, clock), sync, clock)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            max_epochs=1, accelerator="gpu" if options.device == "cuda" else "cpu", devices=1, log_every_n_steps=10,
            logger=MetricsLogger(Path(folder)), enable_checkpointing=False, enable_model_summary=False,
            callbacks=[rounds, monitor, ProgressBar(monitor.throughput)],
        ).fit(method, loader)  # fmt: skip
    ours, bare = (statistics.median(times[1:]) for times in (rounds.ours_s, rounds.bare_s))  # the first warms up
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"\nMaskCon step, ResNet18, {options.size} px, batch {options.batch}, K 8192, {len(rounds.ours_s) - 1} rounds"
    )
    print(f"  bare forward/backward {bare * 1e3:8.1f} ms\n  through the Trainer   {ours * 1e3:8.1f} ms")
    print(f"  ratio                 {ours / bare:8.3f}   (aim: at most 1.03)")
    print(f"  {hardware}; torch {torch.__version__}, Python {platform.python_version()}, {sys.platform}")


if __name__ == "__main__":
    main()
