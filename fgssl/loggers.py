"""What a run logs to: ``metrics.csv`` always, Weights & Biases on demand."""

import csv
import os
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from fgssl.errors import UserError


@dataclass(frozen=True)
class Wandb:
    """Log to Weights & Biases beside ``metrics.csv``.

    Args:
        project: W&B project.
        entity: W&B team or user.
        offline: write to the run folder, to be synchronised later; default: offline where no account is configured.
    """

    project: str = "fgssl"
    entity: str | None = None
    offline: bool | None = None


class MetricsLogger(Logger):
    """``metrics.csv``: one row a logged step, a column a metric. A resumed run appends; nothing is deleted.

    Rows after the checkpoint that a fit resumes from are dropped first, since they are about to be written again.
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
        """Nothing to do: ``config.yaml`` holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        if self._rows and self._rows[-1]["step"] == step:
            self._rows[-1].update(row)
        else:
            self._rows.append(row)

    @rank_zero_only
    def drop_after(self, step: int) -> None:
        """Forget the rows of steps from ``step`` on, before a resumed fit writes them again."""
        if self.path.is_file():
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

    A group is a method on a data set (``digits: MaskCon/grafit``) and holds its seeds, so that the default dashboard,
    grouped, draws one line a method. The names stay: ``train/loss``, ``train/<part of the loss>``, ``train/lr``,
    ``train/teacher_momentum``, ``throughput/...``, ``val/<metric>``, ``test/<metric>``, and the pictures and histograms
    of ``report/pictures.py``. The configuration is ``config.yaml`` with the run's facts (method, dataset, seed).
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
        mode="offline" if offline else None,  # said to wandb itself too, which may have read its environment already
        save_dir=str(folder),
        id=_earlier_wandb_id(folder),
        resume="allow",
        name=f"{folder.parent.name}/{folder.name}",
        group=f"{dataset}: {method}",
        job_type=command,
        tags=[method, dataset],
    )


def has_wandb_account() -> bool:
    """Whether W&B can be reached with an account: a key is configured, and WANDB_MODE does not forbid it."""
    return os.environ.get("WANDB_MODE") not in ("offline", "disabled", "dryrun") and _wandb().login(prompt=False)


def _wandb() -> Any:
    """The library of W&B, imported at first use.

    Raises:
        UserError: it is not installed.
    """
    try:
        import wandb
    except ImportError as fault:
        raise UserError(f"W&B is not installed ({fault}): pip install wandb.") from None
    return wandb


def _earlier_wandb_id(folder: Path) -> str | None:
    """The W&B run that an earlier start of this run wrote, to go on in; None for a new one, or a sweep's agent's."""
    if "WANDB_RUN_ID" in os.environ:
        return None
    earlier = sorted(folder.glob("wandb/*run-*"))
    return earlier[-1].name.rsplit("-", 1)[-1] if earlier else None
