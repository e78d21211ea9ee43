"""Speed and memory on the GPU of this machine, written to docs/benchmarks.md.

    python -m tests.benchmarks.bench_gpu [--out docs/benchmarks.md] [--smoke]

Without a GPU nothing is measured: the page says "not run", and a page with figures is kept. ``--smoke`` runs one step
of everything with tiny networks on the CPU, to show that the command works; its figures mean nothing.
"""

import argparse
import gc
import os
import platform
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer

from fgssl.callbacks.monitor import Monitor
from fgssl.data.batch import Batch
from fgssl.data.datamodule import DataModule
from fgssl.data.datasets.base import DataSet, Published
from fgssl.data.index import Index
from fgssl.data.views import MultiCrop, NestedCrops, PairViews, Views
from fgssl.evaluation.search import search
from fgssl.loggers import MetricsLogger
from fgssl.methods.base import Method
from fgssl.methods.cmd import CMD
from fgssl.methods.flsl import FLSL, TOKENS
from fgssl.methods.maskcon import MaskCon
from fgssl.metrics.retrieval import retrieval_metrics
from fgssl.nn.backbones import Backbone
from fgssl.nn.compiled import compile_networks, to_channels_last
from fgssl.nn.teacher import ema_update
from tests.benchmarks.bench_input import Files, make_pictures
from tests.gpu.on_gpu import Waits

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
WARM, STEPS = 10, 30  # steps before the clock starts, and on it
PICTURES = 1024  # different files of 500 x 375 px; each has several names
SPARE = 8  # batches that the loader may prepare beyond the last step
DASH = "-"


class Small(DataSet):
    """Images of 32 px held in memory, like CIFAR."""

    def __init__(self, count: int):
        self.name, self.partial, self._index = "small", False, None
        self.published = Published({"train": count}, fine=1)

    def _read(self) -> Index:
        count = self.published.splits["train"]
        pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        names, fine, split = np.array([str(n) for n in range(count)]), np.zeros(count, dtype=np.int64), "train"
        return Index(self.name, names, fine, ("picture",), np.full(count, split), pixels=pixels)


@dataclass(frozen=True)
class Case:
    """A training to measure.

    Attributes:
        method: builds it, from the options of a tiny network in a smoke test, else from none.
        views: builds its views, from the side of the images in a smoke test, else from none.
        batch: images of a step.
        tiny: options of the backbone in a smoke test.
        files: images are JPEG files; false: arrays in memory.
    """

    method: Callable[..., Method]
    views: Callable[..., Views]
    batch: int
    tiny: dict[str, Any]
    files: bool = True


def maskcon(name: str, small_input: bool, smoke: dict[str, Any] | None) -> Method:
    network = Backbone(name, small_input=small_input, options=smoke or {})
    return MaskCon(network, variant="selfcon", memory=64 if smoke else 8192)


def cmd(smoke: dict[str, Any] | None) -> Method:
    network = Backbone("swin_tiny_patch4_window7_224", options={"strict_img_size": False, **(smoke or {})})
    return CMD(network, **({"prototypes": 16, "hidden": 16, "bottleneck": 8} if smoke else {}))


def flsl(smoke: dict[str, Any] | None) -> Method:
    network = Backbone("vit_small_patch16_224", options={**TOKENS, "drop_path_rate": 0.1, **(smoke or {})})
    return FLSL(network, **({"prototypes": 16, "hidden": 16, "bottleneck": 8} if smoke else {}))


def sized(views: Callable[..., Views], full: dict[str, Any], tiny: dict[str, Any], smoke: bool) -> Views:
    return views(**(tiny if smoke else full))


RESNET: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}
SWIN: dict[str, Any] = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
VIT: dict[str, Any] = {"embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 32, "patch_size": 8}
CROPS = {"size": 64, "local_size": 32, "local_crops": 2}
CASES = {
    "MaskCon, ResNet18, 32 px": Case(
        partial(maskcon, "resnet18", True), partial(sized, PairViews, {"recipe": "moco", "size": 32}, {"size": 32}),
        512, RESNET, files=False,
    ),
    "MaskCon, ResNet18, 224 px": Case(
        partial(maskcon, "resnet18", False), partial(sized, PairViews, {"recipe": "cars"}, {"size": 32}), 256, RESNET
    ),
    "MaskCon, ResNet50, 224 px": Case(
        partial(maskcon, "resnet50", False), partial(sized, PairViews, {"recipe": "cars"}, {"size": 32}), 128, RESNET
    ),
    "CMD, Swin-T, 2 x 224 and 8 x 96 px": Case(cmd, partial(sized, MultiCrop, {}, CROPS), 32, SWIN),
    "FLSL, ViT-S/16, 3 x 224 px": Case(
        flsl, partial(sized, NestedCrops, {"local_crops": 0}, {"local_crops": 0, "size": 32}), 128, VIT
    ),
}  # fmt: skip

# name -> precision, TF32, channels-last, compiled
SETTINGS: dict[str, tuple[Any, bool, bool, bool]] = {
    "float32": ("32-true", False, False, False),
    "TF32": ("32-true", True, False, False),
    "bfloat16": ("bf16-mixed", True, False, False),
    "bfloat16, channels-last": ("bf16-mixed", True, True, False),
    "bfloat16, channels-last, compiled": ("bf16-mixed", True, True, True),
}
SMOKE = "bfloat16, channels-last"
COLUMNS = (
    "setting", "bare step, images/s", "Trainer, images/s", "end to end, images/s", "end to end / bare",
    "in next(loader)", "augmentation, ms", "waits a step", "peak memory, GB",
)  # fmt: skip


class Clock(Callback):
    """Times the steps after the first ``warm``; the time of the device's work is included."""

    def __init__(self, warm: int, steps: int):
        self.warm, self.steps = warm, steps

    def on_train_batch_start(self, trainer, method, batch, batch_idx) -> None:
        if trainer.global_step == self.warm:
            synchronise()
            self.began, self.waited = time.perf_counter(), getattr(trainer.train_dataloader, "waited", 0.0)

    def on_train_batch_end(self, trainer, method, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.warm + self.steps:
            synchronise()
            self.step_s = (time.perf_counter() - self.began) / self.steps
            waited = getattr(trainer.train_dataloader, "waited", 0.0) - self.waited
            self.in_next = waited / self.steps / self.step_s
            trainer.should_stop = True


class Resident:
    """A loader that gives one batch on the device, again and again."""

    def __init__(self, batch: Batch, steps: int):
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):
        return (self.batch for _ in range(self.steps))


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(case: Case, setting: str, paths: list[Path], smoke: bool) -> list[str]:
    """One row of a case's table."""
    precision, tf32, channels_last, compiled = SETTINGS[setting]
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    device = torch.device("cpu" if smoke else "cuda")
    warm, steps, size = (0, 1, 4) if smoke else (WARM, STEPS, case.batch)

    def build() -> Method:
        torch.manual_seed(0)
        method = case.method(case.tiny if smoke else None)
        if channels_last:
            to_channels_last(method)
        if compiled:
            compile_networks(method)
        return method

    def data() -> DataModule:
        count = size * (warm + steps + SPARE)
        images = Files("pictures", paths[:count]) if case.files else Small(count)
        workers = 0 if smoke else max(1, min(16, os.cpu_count() or 1))
        return DataModule(images, views=case.views(smoke), batch_size=size, num_workers=workers)

    def fit(method: Method, clock: Clock, **given: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                max_epochs=1, accelerator="cpu" if smoke else "gpu", devices=1, precision=precision,
                logger=MetricsLogger(Path(folder)), log_every_n_steps=10, enable_checkpointing=False,
                enable_model_summary=False, enable_progress_bar=False, use_distributed_sampler=False,
                callbacks=[Monitor(), clock, Waits()], limit_val_batches=0,
            )  # fmt: skip
            trainer.fit(method, **given)

    gc.collect()  # of the last row: a method and its trainer hold each other
    if not smoke:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    Waits.count = 0
    whole, through = Clock(warm, steps), Clock(warm, steps)
    fit(build(), whole, datamodule=data())
    peak = 0.0 if smoke else torch.cuda.max_memory_allocated() / 1e9
    waits = Waits.count / 4
    raw, batch = batches(data(), device)  # after the peak, of which they are no part
    fit(build(), through, train_dataloaders=Resident(batch, warm + steps + 1))
    bare_s = bare_step(build().to(device), batch, precision, warm, steps)
    return [
        setting, f"{size / bare_s:,.0f}", f"{size / through.step_s:,.0f}", f"{size / whole.step_s:,.0f}",
        f"{bare_s / whole.step_s:.2f}", f"{whole.in_next:.0%}",
        f"{1e3 * augmentation(data(), raw, warm, steps):.1f}", f"{waits:g}", f"{peak:.1f}",
    ]  # fmt: skip


def pictures(folder: Path, smoke: bool) -> list[Path]:
    """Enough names of JPEG files for the steps of the largest batch."""
    made = make_pictures(folder, 8 if smoke else PICTURES)
    largest = max(case.batch for case in CASES.values() if case.files)
    count = 4 * (1 + SPARE) if smoke else largest * (WARM + STEPS + SPARE)
    names = [folder / f"name_{number}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        name.hardlink_to(made[number % len(made)])
    return names


def batches(data: DataModule, device: torch.device) -> tuple[Batch, Batch]:
    """A training batch on the device as the loader gives it, and augmented."""
    data.setup("fit")
    raw = data.transfer_batch_to_device(next(iter(data.train_loader(epoch=0))), device, 0)
    return raw, data.on_after_batch_transfer(raw, 0)


def bare_step(method: Method, batch: Batch, precision: str, warm: int, steps: int) -> float:
    """Seconds of the method's step, backward pass, optimiser and teacher in a plain loop."""
    optimiser = method.optim.build(method, len(batch.index))
    enabled, device = precision == "bf16-mixed", batch.index.device.type
    for memory in method.memories().values():
        keys = torch.nn.functional.normalize(torch.randn_like(memory.keys_KD), dim=1)
        rows = torch.zeros(len(keys), dtype=torch.int64, device=batch.index.device)
        memory.enqueue(keys, rows, rows)
    times = []
    for number in range(warm + steps):
        if number == warm:
            synchronise()
            times.append(time.perf_counter())
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            loss = method.step(batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for student, teacher, every in method.teachers():
            if every == "step":
                ema_update(student, teacher, 0.99)
    synchronise()
    return (time.perf_counter() - times[0]) / steps


def augmentation(data: DataModule, raw: Batch, warm: int, steps: int) -> float:
    """Seconds of the work on the device that makes the views of a batch."""
    for _ in range(warm):
        data.on_after_batch_transfer(raw, 0)
    synchronise()
    began = time.perf_counter()
    for _ in range(steps):
        data.on_after_batch_transfer(raw, 0)
    synchronise()
    return (time.perf_counter() - began) / steps


# ---- retrieval ------------------------------------------------------------------------------------------------------

# queries, gallery rows (0: among the queries), dimensions
RETRIEVAL = {
    "60 k x 512, all metrics": (60_000, 0, 512),
    "50 k in 1.28 M x 384, top 20": (50_000, 1_281_167, 384),
    "50 k in 1.28 M x 2,048, top 20": (50_000, 1_281_167, 2048),
}
RETRIEVAL_COLUMNS = ("task", "torch, s", "torch, peak GB", "FAISS-GPU, s", "FAISS-GPU, peak GB")


def measure_retrieval(task: str, smoke: bool) -> list[str]:
    queries, rows, dim = (60, 300 if RETRIEVAL[task][1] else 0, 16) if smoke else RETRIEVAL[task]
    device = "cpu" if smoke else "cuda"
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(queries, dim, device=device, generator=generator)
    row = [task]
    for backend in ("torch", "faiss"):
        if not rows and backend == "faiss":
            return [*row, DASH, DASH]  # ranks of all relevant items: no search
        if rows:
            gallery = torch.randn(rows, dim, device=device, generator=generator)
            work = partial(search, x, gallery, 20, backend=backend)
        else:
            work = partial(retrieval_metrics, x, torch.arange(queries, device=device) % (queries // 5), ks=(1, 10, 100))
        row += timed(work, smoke)
        gallery = None
    return row


def timed(work: Callable[[], Any], smoke: bool) -> list[str]:
    """Seconds (median of three) and peak memory of the GPU, by its own count: FAISS does not allocate through torch."""
    if smoke:
        work()
        return [DASH, DASH]
    torch.cuda.empty_cache()
    seconds = []
    with LowestFree() as free:
        for _ in range(3):
            synchronise()
            began = time.perf_counter()
            work()
            synchronise()
            seconds.append(time.perf_counter() - began)
    total = torch.cuda.mem_get_info()[1]
    return [f"{statistics.median(seconds):.2f}", f"{(total - free.lowest) / 1e9:.1f}"]


class LowestFree:
    """Watches the free memory of the GPU in a thread."""

    def __enter__(self) -> "LowestFree":
        self.lowest, self._end = torch.cuda.mem_get_info()[0], threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._end.wait(0.005):
            self.lowest = min(self.lowest, torch.cuda.mem_get_info()[0])

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


# ---- page -----------------------------------------------------------------------------------------------------------

HEAD = """# Benchmarks on a GPU

Made by `make bench-gpu`. {hardware}

## Training

*Bare step*: forward and backward passes, optimiser and teacher in a plain loop on one batch that stays on the GPU.
*Trainer*: the same batch through `Trainer.fit` with all callbacks and loggers. *End to end*: from JPEG files of
500 x 375 px (32 px: from memory) through loader, augmentation and Trainer; the aim is 0.9 of the bare step with 16
cores. *In next(loader)*: share of the time end to end. *Waits*: times that the host waits for the GPU in a step; what
they cost is the difference between bare step and Trainer. Images are those of the data set, each with all its views.
"""
RETRIEVAL_HEAD = """
## Retrieval

Exact search of fgssl, the same result from both backends. The memory includes the embeddings.
"""


def page(hardware: str | None, training: dict[str, list[list[str]]], retrieval: list[list[str]]) -> str:
    """The page; with ``hardware`` None it says that nothing was run."""
    text = HEAD.format(hardware=hardware or "**Not run**: no CUDA GPU was at hand.")
    for name, case in CASES.items():
        rows = training.get(name) or [[setting, *["not run"] * (len(COLUMNS) - 1)] for setting in SETTINGS]
        text += f"\n### {name}, batch {case.batch}\n\n{table(COLUMNS, rows)}"
    rows = retrieval or [[task, *["not run"] * (len(RETRIEVAL_COLUMNS) - 1)] for task in RETRIEVAL]
    return text + RETRIEVAL_HEAD + "\n" + table(RETRIEVAL_COLUMNS, rows)


def table(columns: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def described(smoke: bool) -> str:
    if smoke:
        return "A smoke test with tiny networks on a CPU: **the figures mean nothing**."
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    return (
        f"{torch.cuda.get_device_name()} ({memory:.0f} GB), {os.cpu_count()} cores; torch {torch.__version__}, CUDA "
        f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, Python {platform.python_version()}. "
        f"{STEPS} steps after {WARM} of warm-up."
    )


def attempt(row: Callable[[], list[str]], name: str, columns: int) -> list[str]:
    """A row, or why there is none."""
    print(name, flush=True)
    try:
        return row()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return [name.rpartition(": ")[2], "out of memory", *[DASH] * (columns - 2)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PAGE)
    parser.add_argument("--smoke", action="store_true", help="one step with tiny networks on the CPU, for the tests")
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore", module="lightning")
    if options.smoke and options.out == PAGE:
        parser.error("--smoke needs another --out: its figures mean nothing")
    if not (torch.cuda.is_available() or options.smoke):
        if not options.out.exists():
            options.out.write_text(page(None, {}, []))
        print(f"no CUDA GPU here: nothing is measured, {options.out} stays as it is")
        return
    training: dict[str, list[list[str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = pictures(Path(folder), options.smoke)
        for name, case in CASES.items():
            training[name] = [
                attempt(partial(measure, case, setting, paths, options.smoke), f"{name}: {setting}", len(COLUMNS))
                for setting in ([SMOKE] if options.smoke else SETTINGS)
            ]
    retrieval = [
        attempt(partial(measure_retrieval, task, options.smoke), task, len(RETRIEVAL_COLUMNS)) for task in RETRIEVAL
    ]
    options.out.write_text(page(described(options.smoke), training, retrieval))
    print(options.out)


if __name__ == "__main__":
    main()
