"""Reading run folders: configuration, data and results. Imports neither torch nor Lightning."""

import csv
import json
import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from fgssl.errors import UserError
from fgssl.run import status_of

# Options that change neither the weights nor the measurement; runs that differ only in these share a row.
IRRELEVANT = (
    "seed_everything", "run.", "logger", "checkpoint.", "ckpt_path", "quiet", "weights_only", "verbose",
    "retrieval.ks", "retrieval.gallery", "retrieval.grid", "retrieval.extra", "retrieval.rerank",
    "return_predictions", "data.seed", "data.num_workers", "data.prefetch", "data.cache", "data.on_error",
    "data.eval_batch_size", "data.dataset.", "data.protocol.", "davis.name", "davis.root", "davis.run_root",
    "davis.save", "davis.partial", "davis.ckpt_path", "davis.config",
)  # fmt: skip
MEASUREMENT = ("data.eval_", "davis.", "retrieval.clusters")  # options that an evaluation has of its own
# Our callbacks, which change no weights -> the options that change what they measure.
CALLBACKS = {
    "BestOnTest": ("every_n_epochs",), "BoxKNN": ("k", "temperature", "clusters"), "Collapse": ("images",),
    "Neighbours": (), "OnlineKNN": ("k", "temperature"), "OnlineProbe": ("lr",),
}  # fmt: skip
LAST = "last.ckpt"  # the checkpoint of the last weights, with which a run is tested
# Options of the trainer that change the weights.
TRAINING = (
    "trainer.max_epochs", "trainer.max_steps", "trainer.precision", "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm", "trainer.limit_train_batches",
    "trainer.overfit_batches", "trainer.sync_batchnorm",
)  # fmt: skip


SHORT = 5  # epochs; the curves of shorter runs show their steps
# Options that may hold the checkpoint or run folder of another run.
STARTS = ("model.init_from", "model.backbone.weights")
TEACHER = "model.distillation.checkpoint"  # option that holds the checkpoint of a trained teacher
SECONDS = "seconds_an_epoch"  # metric that ``RunFolder.seconds_an_epoch`` computes
TASKS = ("Probe", "Finetune", "Detect", "Segment")  # what is done with a trained method


def label(method: str, variant: str | None) -> str:
    """Name of a method in tables: ``MaskCon``, or ``MaskCon/grafit`` for a variant.

    A variant with a capital letter is the name of a published method and stands alone: ``DINO``, ``MS+OBD-SD``. A task
    keeps its own name: ``Probe/DINO``.
    """
    if not variant or variant.lower() == method.lower():
        return method
    alone = variant != variant.lower() and method not in TASKS
    return variant if alone else f"{method}/{variant}"


def public_label(name: str, pretrained: bool, weights: str | None = None, whose: str | None = None) -> str:
    """``timm/resnet50``, ``timm/resnet50 (moco_v2.pth.tar)``, ``timm/resnet50 (random weights)``."""
    if weights:
        return f"timm/{name} ({Path(weights).name}{f', {whose}' if whose else ''})"
    return f"timm/{name}" + ("" if pretrained else " (random weights)")


@dataclass(frozen=True)
class RunFolder:
    """One finished run.

    Attributes:
        folder: The run folder.
        results: ``results.json``.
        config: ``config.yaml``, flat: ``{"model.tau": 0.1, ...}``, class paths as class names, no ``init_args``.
    """

    folder: Path
    results: dict[str, Any]
    config: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    @cached_property
    def origin(self) -> "RunFolder":
        """The fit that trained the weights: this run, or the run of the evaluated checkpoint."""
        if "epochs" in self.results:
            return self
        return run_of(self.results.get("ckpt_path"), self) or self

    @cached_property
    def start(self) -> "RunFolder | None":
        """The run whose weights a probe, a fine-tuned network or a detector started from, or None."""
        return run_of(self.start_path, self)

    @property
    def start_path(self) -> str | None:
        """The checkpoint or run folder of ``start``."""
        given = (self.config.get(option) for option in STARTS)
        return next((path for path in given if run_of(path, self)), None)

    @property
    def checkpoint(self) -> str:
        """File of the evaluated weights: its name, or its path where its run is not found."""
        path = self.results.get("ckpt_path")
        if "epochs" in self.results or not path:
            return LAST
        return str(path) if self.origin is self else checkpoint_name(path)

    @property
    def callbacks(self) -> dict[str, dict[str, Any]]:
        """Class names in ``trainer.callbacks`` and their options."""
        place = "trainer.callbacks"
        given = self.config.get(place)
        if isinstance(given, str):  # alone, without a list
            options = {name: value for name, value in self.config.items() if name.startswith(f"{place}.")}
            return {given: {name.removeprefix(f"{place}."): value for name, value in options.items()}}
        return {each["class_path"].rpartition(".")[2]: each.get("init_args") or {} for each in given or []}

    @property
    def seed(self) -> int:
        return self.origin.results.get("seed", self.results["seed"])

    @property
    def epochs(self) -> int | None:
        """Number of training epochs; None for a network that was not trained by a run of ours."""
        return self.origin.results.get("epochs")

    @property
    def began(self) -> str:
        """When the command started; of an older version, when its file was written, which a copy changes."""
        written = (self.folder / "results.json").stat().st_mtime
        return self.results.get("began") or datetime.fromtimestamp(written, UTC).isoformat(timespec="milliseconds")

    @property
    def machine(self) -> str:
        """Cores, GPUs and processes of the training, as far as ``results.json`` tells."""
        trained = self.origin.results
        return repr((trained.get("hardware"), trained.get("processes", 1)))

    @property
    def seconds_an_epoch(self) -> float | None:
        """Mean time of a training epoch in s, without validation; None where it was not measured.

        Where the teacher is a network that was trained for the run (BAR), the time of its training is included, spread
        over the epochs; None if that run is gone, or was on another machine.
        """
        trained = self.origin
        if not trained.results.get("timed_epochs") or not trained.epochs:
            return None
        own = trained.results["train_s"] / trained.results["timed_epochs"]
        if not trained.config.get(TEACHER):
            return own
        teacher = run_of(trained.config[TEACHER], trained)
        seconds = teacher and teacher.machine == trained.machine and teacher.seconds_an_epoch
        return own + seconds * (teacher.epochs or 0) / trained.epochs if teacher and seconds else None

    @property
    def method(self) -> str:
        """Name in tables: the label, with a mark if untrained; the timm name of a public network."""
        if self.results["method"] == "Frozen":
            keys = ("name", "pretrained", "weights", "weights_of")
            return public_label(*(self.config.get(f"model.backbone.{key}") for key in keys))  # type: ignore[arg-type]
        name = label(self.results["method"], self.results.get("variant"))
        known = "epochs" in self.results or self.results.get("ckpt_path")
        return name if known else f"{name} (untrained)"

    @property
    def protocol(self) -> dict[str, Any]:
        """Facts that runs of one table share: data set, rows, labels, gallery and re-ranking."""
        data = self.results["data"]
        options = {k.removeprefix("data.dataset."): v for k, v in self.config.items() if k.startswith("data.dataset.")}
        ignored = (
            ("root", "partial") if data["dataset"] != "folder" else ()
        )  # a folder of images is identified by its path
        facts = {
            "data set": data["dataset"],
            **{key: value for key, value in options.items() if key not in ignored and value is not None},
            **{key: data.get(key) for key in ("split", "val_fraction", "label_fraction", "label_noise")},
            "protocol seed": data.get("seed"),
            **{f"{part} {key}": data[part][key] for part in ("train", "test") for key in ("images", "rows_hash")},
            "flipped labels": data.get("flipped_hash"),
            "gallery": self.results.get("gallery", "evaluated"),
            "re-ranking": self.results.get("reranking", "none"),
        }
        limit = self.config.get("trainer.limit_test_batches")
        return facts | ({"limit_test_batches": limit} if limit not in (None, 1.0) else {})

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Options that distinguish runs of one table, except the seed: of the training, then of the measurement."""
        measurement = {
            name: value
            for name, value in (self.origin.config | self.config).items()
            if name.startswith(MEASUREMENT) and not name.startswith(IRRELEVANT)
        }
        for name, options in self.callbacks.items():
            measured_by = CALLBACKS.get(name, ())
            measurement |= {f"callbacks.{name}.{o}": value for o, value in options.items() if o in measured_by}
        return self.origin.training | measurement | {"checkpoint": self.checkpoint}

    @cached_property
    def training(self) -> dict[str, Any]:
        """Options that distinguish the weights of this run, which trained them, except the seed."""
        kept = {
            name: value
            for name, value in self.config.items()
            if not name.startswith((*IRRELEVANT, *MEASUREMENT))
            and (not name.startswith("trainer.") or name in TRAINING)
        }
        if self.epochs is None:  # not trained: options of the training have no effect
            kept = {name: v for name, v in kept.items() if not name.startswith(("trainer.", "model.optim"))}
        if self.start:  # the settings of that run instead of its path, which differs from seed to seed
            kept = {name: value for name, value in kept.items() if name not in STARTS}
            kept |= {f"start.{name}": value for name, value in self.start.training.items()}
            kept["start.checkpoint"] = checkpoint_name(self.start_path)
        others = {name: options for name, options in self.callbacks.items() if name not in CALLBACKS}
        kept |= {f"callbacks.{name}.{o}": value for name, options in others.items() for o, value in options.items()}
        return kept | {
            "callbacks": sorted(others),
            "processes": self.results.get("processes", 1),
            "epochs": self.epochs,
        }

    def metric(self, name: str) -> float | None:
        """A metric by name; of the test rows if the name has no prefix such as ``val/``."""
        if name == SECONDS:
            return self.seconds_an_epoch
        metrics = self.results["metrics"]
        return metrics.get(name, metrics.get(f"test/{name}"))

    def history(self) -> dict[str, list[tuple[float, float]]]:
        """Curves of ``metrics.csv``: metric -> [(epoch, counted from 1, mean over the epoch)].

        Curves of the training of a run of fewer than ``SHORT`` epochs have a point for each logged step, at fractions
        of an epoch: 0.5 is the middle of the first one.
        """
        sums: dict[str, dict[float, list[float]]] = {}
        path = self.folder / "metrics.csv"
        if not path.is_file():
            return {}
        epochs, steps = self.results.get("epochs"), self.results.get("steps")
        of_epoch = steps / epochs if epochs and steps and epochs < SHORT else 0.0
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name not in ("epoch", "step", None) and value and row.get("epoch"):
                        place = float(row["epoch"]) + 1
                        if of_epoch and name.startswith("train/"):
                            place = (float(row["step"]) + 1) / of_epoch
                        sums.setdefault(name, {}).setdefault(place, []).append(float(value))
        return {
            name: [(epoch, sum(values) / len(values)) for epoch, values in sorted(by_epoch.items())]
            for name, by_epoch in sums.items()
        }


def checkpoint_name(path: str | None) -> str:
    """File name of a checkpoint; of a run folder, the last checkpoint is taken."""
    return Path(path).name if path and path.endswith(".ckpt") else LAST


def run_of(path: str | None, reader: RunFolder | None = None) -> RunFolder | None:
    """The run of a checkpoint file or run folder; None if it does not exist or is not one of ours.

    Args:
        path: the file or folder.
        reader: the run that names it; both may have been moved or copied since, and the path may be relative to
            another working directory.
    """
    if not path:
        return None
    folder = Path(path)
    folder = folder.parent.parent if folder.suffix == ".ckpt" else folder
    for place in _places(folder, reader) if reader else [folder]:
        if (place / "results.json").is_file() and (place / "config.yaml").is_file():
            return RunFolder(place, _read_json(place / "results.json"), read_config(place / "config.yaml"))
    return None


def _places(folder: Path, reader: RunFolder) -> Iterator[Path]:
    """Where a run may be that another one names, the likeliest place first.

    That is where it was from the other one, as both are in a copied or renamed folder; then the path itself; then its
    experiment and name in the other one's folder of all runs.
    """
    here, told = Path(os.path.abspath(reader.folder)), reader.results
    root, experiment, name = reader.config.get("run.root"), told.get("experiment"), told.get("run")
    if root and experiment and name:
        yield Path(os.path.normpath(here / os.path.relpath(folder, Path(root, experiment, name))))
    yield folder
    last = folder.parts[-2:]
    if len(last) == 2 and last != here.parts[-2:] and ".." not in last:  # a name alone may be another run's
        yield here.parent.parent.joinpath(*last)


def read_runs(paths: Iterable[str]) -> tuple[list[RunFolder], list[str]]:
    """Read every run folder at or below the paths.

    Returns:
        The finished runs, and a message for each broken or unfinished one.

    Raises:
        UserError: a path does not exist, or there is no run below the paths.
    """
    runs, faults = [], []
    for folder in sorted(set(_folders(paths))):
        try:
            run = read_run(folder)
            if run is not None:
                runs.append(run)
        except UserError as fault:
            faults.append(str(fault))
    return runs, faults


def _folders(paths: Iterable[str]) -> Iterator[Path]:
    for path in paths:
        if not Path(path).is_dir():
            raise UserError(f"no folder at {path}. Give run folders, or a folder above them (runs/).")
        found = False
        for folder, below, files in os.walk(path, followlinks=True):
            if {"results.json", "config.yaml"} & set(files):
                found, below[:] = True, []  # run folders are not nested
                yield Path(os.path.normpath(folder))
        if not found:
            raise UserError(f"{path} holds no run: no results.json in it or below it.")


def read_run(folder: Path) -> RunFolder | None:
    """Read one run folder; None if nothing was evaluated (predict, embeddings of training rows).

    Raises:
        UserError: The run is broken or unfinished.
    """
    if not (folder / "results.json").is_file():
        raise UserError(f"{folder}: broken, no results.json. Did it stop before it began?")
    results = _read_json(folder / "results.json")
    status = status_of(folder / "results.json", results)
    if status == "predicted":
        return None
    if status != "finished":
        reason = f" ({results['error']})" if results.get("error") else ""
        if status == "lost":
            reason = " (its process was killed or aborted without a message, or the machine stopped)"
        kept = (folder / "checkpoints" / "last.ckpt").is_file()
        resume = f" To resume it: fgssl fit --ckpt_path {shlex.quote(str(folder))}" if kept else ""
        raise UserError(f"{folder}: {status or 'no status'} after {results.get('epochs', 0)} epochs{reason}.{resume}")
    missing = {"method", "seed", "metrics", "data"} - results.keys()
    if missing:
        raise UserError(f"{folder}: broken, results.json lacks {', '.join(sorted(missing))}.")
    if any("rows_hash" not in (results["data"] or {}).get(part, {}) for part in ("train", "test")):
        raise UserError(f"{folder}: broken, results.json does not say which rows were trained on and evaluated.")
    return RunFolder(folder, results, read_config(folder / "config.yaml"))


def read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError) as fault:
        raise UserError(f"{path.parent}: broken, {path.name} cannot be read ({str(fault).splitlines()[0]}).") from None
    return flatten(config)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as fault:
        raise UserError(f"{path.parent}: broken, {path.name} cannot be read ({fault}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path.parent}: broken, {path.name} holds no mapping.")
    return content


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """``{model: {class_path: a.MaskCon, init_args: {tau: 1}}}`` as ``{"model": "MaskCon", "model.tau": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in (config or {}).items():
        if key == "class_path":
            flat[prefix.rstrip(".")] = str(value).rsplit(".", 1)[-1]
        elif key == "init_args":
            flat |= flatten(value, prefix)
        elif isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
