"""Loggers of a run: ``metrics.csv`` in every run; Weights & Biases, TensorBoard and MLflow as options."""

import csv
import importlib.util
import json
import logging
import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from fgssl.errors import UserError

NAMES = ("csv", "wandb", "tensorboard", "mlflow")


@dataclass(frozen=True)
class Wandb:
    """Options of Weights & Biases, which logs in addition to ``metrics.csv``.

    Args:
        project: W&B project.
        entity: W&B team or user; null: the default of the account.
        offline: write to the run folder only, for ``wandb sync`` later; null: offline if no account is configured.
    """

    project: str = "fgssl"
    entity: str | None = None
    offline: bool | None = None


class MetricsLogger(Logger):
    """Writes ``metrics.csv``: one row per logged step, one column per metric.

    A resumed run appends, after it has removed the rows of steps after its checkpoint; a run that starts anew in its
    folder removes all rows.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = Path(folder)
        self._rows: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        return self.folder.parent.name

    @property
    def version(self) -> str:
        return self.folder.name

    @property
    def save_dir(self) -> str:
        return str(self.folder.parent.parent)

    @property
    def log_dir(self) -> str:
        return str(self.folder)

    @property
    def path(self) -> Path:
        return self.folder / "metrics.csv"

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: ``config.yaml`` holds the hyper-parameters."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        if self._rows and self._rows[-1]["step"] == step:
            self._rows[-1].update(row)
        else:
            self._rows.append(row)

    @rank_zero_only
    def drop_after(self, step: int) -> None:
        """Remove the rows of ``step`` and later steps, which a resumed fit writes again; 0: all rows."""
        if step == 0:
            self.path.unlink(missing_ok=True)
        elif self.path.is_file():
            self._rewrite([row for row in self._read() if int(row["step"]) < step])

    @rank_zero_only
    def save(self) -> None:
        if not self._rows:
            return
        rows, self._rows = self._rows, []
        known = self._columns()
        if known and set().union(*rows) <= set(known):
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, known).writerows(rows)
        else:  # a new column: the header changes
            self._rewrite(self._read() + rows)

    def finalize(self, status: str) -> None:
        self.save()

    def _columns(self) -> list[str]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            return next(csv.reader(file), [])

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        columns = sorted(set().union(*rows), key=lambda name: (name not in ("epoch", "step"), name)) if rows else []
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(self.path)


def wandb_logger(options: Wandb, folder: Path, method: str, dataset: str, command: str) -> Logger:
    """The W&B logger of a run.

    The W&B group is a method on a data set (``digits: MaskCon/grafit``): grouped charts show one line per method, over
    its seeds. Metrics have the names of ``metrics.csv``: ``train/loss``, ``train/<part of the loss>``, ``train/lr``,
    ``train/teacher_momentum``, ``throughput/...``, ``val/<metric>``, ``test/<metric>``. Pictures and histograms come
    from ``report/pictures.py``. The W&B configuration is ``config.yaml`` plus method, data set and seed.
    """
    _wandb().finish()  # otherwise a second run in one process would continue the first one's W&B run
    from lightning.pytorch.loggers import WandbLogger

    offline = options.offline
    if offline is None:
        offline = not has_wandb_account()
        if offline:
            rank_zero_info("W&B: no account is configured, logging offline; `wandb sync` uploads the run later.")
    return WandbLogger(
        project=options.project,
        entity=options.entity,
        offline=offline,
        mode="offline" if offline else None,  # wandb may have read WANDB_MODE before it was changed
        save_dir=str(folder),
        id=_earlier_wandb_id(folder),
        resume="allow",
        name=f"{folder.parent.name}/{folder.name}",
        group=f"{dataset}: {method}",
        job_type=command,
        tags=[method, dataset],
    )


def has_wandb_account() -> bool:
    """Whether W&B has an account to log to: a key is configured and WANDB_MODE allows it."""
    return os.environ.get("WANDB_MODE") not in ("offline", "disabled", "dryrun") and _wandb().login(prompt=False)


def _wandb() -> Any:
    """The wandb module, imported at first use.

    Raises:
        UserError: it is not installed.
    """
    try:
        import wandb
    except ImportError as fault:
        raise UserError(f"W&B is not installed ({fault}): pip install wandb.") from None
    return wandb


def _earlier_wandb_id(folder: Path) -> str | None:
    """Id of the W&B run of an earlier start of this run; None if there is none, or a sweep agent sets the id."""
    if "WANDB_RUN_ID" in os.environ:
        return None
    earlier = sorted(folder.glob("wandb/*run-*"))
    return earlier[-1].name.rsplit("-", 1)[-1] if earlier else None


class TensorBoard(TensorBoardLogger):
    """Event files in ``<run folder>/tensorboard/``, with the pictures of an evaluation: ``tensorboard --logdir runs``.

    Args:
        folder: the run folder.
        step: optimiser step at which a resumed run goes on; later events of its earlier start are hidden. None: a new
            run.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int | None = None):
        _require("tensorboard")
        self._step = step or 0
        super().__init__(folder, name="tensorboard", version="", default_hp_metric=False, purge_step=step)

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self._step = self._step if step is None else step
        super().log_metrics(metrics, step)

    @rank_zero_only
    def log_image(self, key: str, images: list[str]) -> None:
        """Log picture files under one name, at the step that was logged last."""
        from PIL import Image

        for path in images:
            pixels = np.asarray(Image.open(path).convert("RGB"))
            self.experiment.add_image(key, pixels, self._step, dataformats="HWC")


class MLflow(MLFlowLogger):
    """A run of MLflow, in the experiment of the run folder, with the pictures of an evaluation.

    The server is that of ``MLFLOW_TRACKING_URI``, or the file ``mlflow.db`` beside the experiments:
    ``mlflow ui --backend-store-uri sqlite:///runs/mlflow.db``. A resumed run goes on with its MLflow run, whose id is
    in ``mlflow.json``, or begins another one where that has been deleted. ``@`` in names of metrics, which MLflow does
    not accept, becomes ``_at_``.

    Args:
        folder: the run folder.
        tags: tags of the MLflow run.

    Raises:
        UserError: MLflow is not installed, or its server does not answer.
    """

    def __init__(self, folder: Path, tags: dict[str, str]):
        _require("mlflow")
        import mlflow  # noqa: F401  # sets the level of its messages, which is changed below

        runs = folder.parent.parent.resolve()
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs / 'mlflow.db'}"
        self._memory, self._earlier = folder / "mlflow.json", None
        if self._memory.is_file() and (kept := json.loads(self._memory.read_text()))["uri"] == uri:
            self._earlier = kept["run_id"]
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it says that it makes its tables
        self._lock = FileLock(runs / "mlflow.lock")
        with self._first_contact(uri):
            super().__init__(
                experiment_name=folder.parent.name,
                run_name=folder.name,
                tracking_uri=uri,
                artifact_location=(runs / "mlflow").as_uri() if uri.startswith("sqlite:") else None,
                run_id=self._earlier,
                tags=tags,
            )
            if self._earlier and not self._is_there(self._earlier):
                self._earlier = self._run_id = None

    @property
    def experiment(self) -> Any:
        """MLflow's client; at first use, the experiment and the run are made."""
        if self._initialized:
            return self._mlflow_client
        with self._first_contact(str(self._tracking_uri)):
            return super().experiment

    @contextmanager
    def _first_contact(self, uri: str) -> Iterator[None]:
        """Runs that make the tables, or the same experiment, at the same time fail: one after the other."""
        from mlflow.exceptions import MlflowException

        try:
            Path(self._lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
            with self._lock:
                yield
        except OSError as fault:
            raise UserError(f"run.root: {self._lock.lock_file} cannot be written ({fault.strerror}).") from None
        except MlflowException as fault:
            raise UserError(
                f"--logger mlflow: {uri} cannot be used. Start its server, or name another in MLFLOW_TRACKING_URI. "
                f"MLflow says: {fault}"
            ) from None

    def _is_there(self, run_id: str) -> bool:
        """Whether a run can be written to: it is neither deleted nor of a server that was made anew."""
        from mlflow.exceptions import MlflowException

        try:
            return self._mlflow_client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException as fault:
            if fault.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Log the configuration once: MLflow refuses changes by a resumed run."""
        if self._earlier is None:
            super().log_hyperparams(params)  # type: ignore[arg-type]
            self._memory.write_text(json.dumps({"uri": self._tracking_uri, "run_id": self.run_id}))

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        super().log_metrics({name.replace("@", "_at_"): value for name, value in metrics.items()}, step)

    @rank_zero_only
    def log_image(self, key: str, images: list[str]) -> None:
        """Log picture files as artifacts."""
        for path in images:
            self.experiment.log_artifact(self.run_id, path)


def _require(name: str) -> None:
    """Refuse a logger whose package is not installed."""
    if importlib.util.find_spec(name) is None:
        raise UserError(f"--logger {name} needs the package {name}: pip install 'fgssl[{name}]'.")
