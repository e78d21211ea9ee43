"""The numbers that the papers print, to stand beside ours: ``published.csv``, explained in ``published.md``."""

import csv
from functools import cache
from importlib import resources
from typing import NamedTuple

from fgssl.errors import UserError, did_you_mean
from fgssl.report.conditions import Row, letters, settings, task_of, unmet
from fgssl.report.metric_names import is_share
from fgssl.report.runs import TASKS, RunFolder

NAMES = {"cmd": "CMD", "flsl": "FLSL", "maskcon": "MaskCon", "mls": "MLS", "obd_sd": "OBD-SD"}
METRICS: dict[str, tuple[str, ...]] = {"rank1": ("recall@1",), "rank5": ("recall@5",)}  # CMD's names for the same
METRICS |= {"extra_time_percent": ("extra_time",)}
METRICS |= {name: () for name in ("params_m", "throughput")}  # properties of a network, which no run measures
# VOC2007's mean average precision: the paper does not say which of them it takes
VOC_MAP = ("map_11point", "map_allpoint", "map_noninterpolated")
SHOWN = 3  # unmet conditions that a note names


class Number(NamedTuple):
    """A printed number.

    Attributes:
        value: a fraction, as our metrics are.
        source: paper, table, and the conditions that it states.
    """

    value: float
    source: str


class Missing(NamedTuple):
    """Why no printed number stands beside a run.

    Attributes:
        reason: the nearest row, and its conditions that do not hold of the run.
    """

    reason: str


def published(run: RunFolder, metric: str) -> Number | Missing | None:
    """The number that the paper prints for what this run reproduces.

    The experiment names the paper, the tables to look in (default: all, in the paper's order), and the method or the
    network of the row where it means one alone: ``run.paper: obd_sd, Table 2, r50_512d``. The number of the first row
    whose every condition holds of the run is taken, see ``conditions.py``. ``fgssl probe``, ``embed`` and ``davis`` of
    a run look where the run itself says.

    Returns:
        The number; what is amiss where every row of this metric has a condition that does not hold, or where there is
        no such table; None where the experiment names no paper, or the tables do not have this metric.
    """
    try:
        rows = [row for row in _rows_of_task(run) if metric in metrics_of(row)]
    except UserError as unknown:  # of one run, perhaps of an older version: the others have their numbers
        return Missing(f"{run.folder / 'config.yaml'}: {unknown}")
    faults = [unmet(row, run) for row in rows]
    for row, fault in zip(rows, faults, strict=True):
        if not fault:
            value = float(row["value"])
            return Number(value / 100 if is_share(metric) else value, _source(row))
    if not rows:
        return None
    row, fault = min(zip(rows, faults, strict=True), key=lambda pair: _distance(pair[1]))
    more = f" and {len(fault) - SHOWN} more" if len(fault) > SHOWN else ""
    return Missing(
        f"{NAMES[row['paper']]}, {row['table']}, {row['method']}: the row has {'; '.join(fault[:SHOWN])}{more}"
    )


def reproduced(run: RunFolder) -> list[Row]:
    """Every row whose conditions hold of a run, in the tables that ``run.paper`` names."""
    return [row for row in _rows_of_task(run) if not unmet(row, run)]


def _rows_of_task(run: RunFolder) -> list[Row]:
    """The named rows of the task that the run is (a probe, a detector); of a method itself those without a task."""
    return [row for row in named_rows(run) if task_of(row) == _task(run) and metrics_of(row)]


def _distance(fault: list[str]) -> tuple[bool, bool, int]:
    """Orders rows by how far they are from a run: another data set, another method, then the number of conditions."""
    return fault[0].startswith("data "), fault[0].startswith("method "), len(fault)


def named_rows(run: RunFolder) -> list[Row]:
    """The rows that ``run.paper`` names; none where it is not set."""
    named = run.config.get("run.paper") or run.origin.config.get("run.paper")
    return rows_named(named) if named else []


def rows_named(text: str) -> list[Row]:
    """Rows of the tables, methods and networks named in ``run.paper``, table after table in the order of the text.

    Args:
        text: paper, then any number of tables, methods and networks: ``maskcon, Table 10``.

    Raises:
        UserError: there is no such paper, table, method or network.
    """
    paper, *parts = (part.strip() for part in text.split(","))
    rows = [row for row in all_rows() if row["paper"] == paper.lower()]
    if not rows:
        raise UserError(f"run.paper: no paper '{paper}'.{did_you_mean(paper, NAMES)} Known: {', '.join(NAMES)}.")
    tables = list(dict.fromkeys(row["table"] for row in rows))
    columns = {letters(row[column]) for row in rows for column in ("method", "backbone")}
    chosen = [part for part in parts if part in tables]
    names = {letters(part) for part in parts if part not in tables}
    for part in parts:
        if part not in tables and letters(part) not in columns:
            hint = did_you_mean(part, {*tables, *(row["method"] for row in rows), *(row["backbone"] for row in rows)})
            raise UserError(f"run.paper: {NAMES[paper.lower()]} has no table, method or network '{part}'.{hint}")
    found = [row for table in chosen or tables for row in rows if row["table"] == table]
    return [row for row in found if names <= {letters(row["method"]), letters(row["backbone"])}]


@cache
def all_rows() -> list[Row]:
    """``published.csv``."""
    text = resources.files("fgssl.report").joinpath("published.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def metrics_of(row: Row) -> tuple[str, ...]:
    """Our names of what a row measures."""
    if row["protocol"] == "bbox_knn":
        return ("box_knn_top1",)
    if row["protocol"] == "finetune" and row["metric"] == "map":
        return VOC_MAP
    return METRICS.get(row["metric"], (row["metric"],))


def _task(run: RunFolder) -> str | None:
    """The task that a run is, on top of a trained method; None of a method."""
    method = run.origin.results["method"]
    return method if method in TASKS else None


def _source(row: Row) -> str:
    stated = [row["backbone"], f"{row['epochs']} epochs" if row["epochs"] else "epochs not stated"]
    stated += [f"{key}={value}" for key, value in settings(row).items() if key not in ("note", "hyper_from")]
    note = settings(row).get("note")
    doubt = f"; {note}" if note else ""
    return f"{NAMES[row['paper']]}, {row['table']}, {row['method']}: {', '.join(filter(None, stated))}{doubt}"
