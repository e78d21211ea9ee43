"""The numbers that the papers print, to stand beside ours: ``published.csv``, explained in ``published.md``."""

import csv
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from fgssl.errors import UserError, did_you_mean
from fgssl.report.runs import RunFolder

NAMES = {"cmd": "CMD", "flsl": "FLSL", "maskcon": "MaskCon", "mls": "MLS", "obd_sd": "OBD-SD"}
METRICS = {"rank1": "recall@1", "rank5": "recall@5"}  # CMD's names for the same
# of the ablation tables: the paper's symbol, our option
SETTINGS = {
    "w": "model.weight", "tau": "model.tau", "lambda1": "model.l_s", "region_crops": "data.views.local_crops",
    "v": "model.v", "eta": "model.eta", "gamma": "model.gamma", "K": "model.prototypes",
}  # fmt: skip
PLAIN = ("density", "spectral_decay")  # printed as they are; everything else in percent


class Number(NamedTuple):
    """A printed number.

    Attributes:
        value: a fraction, as our metrics are.
        source: paper, table, and the conditions that it states.
    """

    value: float
    source: str


def published(run: RunFolder, metric: str) -> Number | None:
    """The number that the paper prints for what this run reproduces.

    The experiment names the table (``run.paper: maskcon, Table 2``); method or variant, data set and split are the
    run's. Where the table calls the method otherwise, or has it with several backbones, the experiment says which row
    (``run.paper: obd_sd, Table 1, MS+OBD-SD, r50_128d``). Of the several rows of an ablation table the one with the
    run's own settings is meant, of several networks the run's own.

    A linear probe stands beside the paper's linear probe of the method that it probes, on the same share of the
    labels; every other run beside everything else.

    Returns:
        The number, or None where the experiment names no table or the table has no single such row.
    """
    if not run.config.get("run.paper"):
        return None
    paper, number, *told = (part.strip() for part in f"{run.config['run.paper']},".split(","))
    rows = table(f"{paper}, {number}")
    found = [row for row in rows if _describes(row, run, metric, [part for part in told if part])]
    if len(found) > 1:
        found = [row for row in found if _has_settings(row, run)]
    if len(found) > 1:
        found = [row for row in found if _letters(run.config.get("model.backbone.name", "")).startswith(_of(row))]
    if len(found) != 1:
        return None
    (row,) = found
    value = float(row["value"])
    return Number(value if metric in PLAIN else value / 100, _source(row))


@cache
def table(name: str) -> list[dict[str, str]]:
    """The rows of one table, by a name such as ``maskcon, Table 2``.

    Raises:
        UserError: there is no such paper or table.
    """
    paper, _, number = (part.strip() for part in name.partition(","))
    known = sorted({f"{row['paper']}, {row['table']}" for row in _rows()})
    rows = [row for row in _rows() if row["paper"] == paper.lower() and row["table"] == number]
    if not rows:
        raise UserError(f"run.paper: no table '{name}'.{did_you_mean(name, known)} Write it as 'maskcon, Table 2'.")
    return rows


@cache
def _rows() -> list[dict[str, str]]:
    text = resources.files("fgssl.report").joinpath("published.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _describes(row: dict[str, str], run: RunFolder, metric: str, told: list[str]) -> bool:
    dataset, split = run.results["data"]["dataset"], run.results["data"]["split"]
    if dataset == "cifartoy":
        dataset, split = "cifar10toy", run.config.get("data.dataset.variant")
    if (row["dataset"], row["split"]) != (dataset, split) or _metric(row) != metric:
        return False
    probe = run.results["method"] == "Probe"
    if (row["protocol"] == "linear_probe") != probe:
        return False
    if probe and float(_settings(row).get("label_proportion", 100)) != 100 * run.results["data"]["label_fraction"]:
        return False
    method = _letters(row["method"])
    named = {_letters(part) for part in told}
    return named <= {method, _of(row)} and (method in named or method == _own(run))


def _metric(row: dict[str, str]) -> str:
    """Our name of what a row measures."""
    if row["protocol"] == "bbox_knn":
        return "box_knn_top1"
    return METRICS.get(row["metric"], row["metric"])


def _own(run: RunFolder) -> str:
    """What the method calls itself; of a probe, the probed one (``MaskCon/grafit``)."""
    name = run.results.get("variant") or run.results["method"]
    return _letters(name.rsplit("/", 1)[-1] if run.results["method"] == "Probe" else name)


def _of(row: dict[str, str]) -> str:
    """The network of a row."""
    return _letters(row["backbone"])


def _has_settings(row: dict[str, str], run: RunFolder) -> bool:
    config = run.probed.config if run.probed else run.config
    asked = {SETTINGS[key]: value for key, value in _settings(row).items() if key in SETTINGS}
    return all(float(config.get(option, "nan")) == float(value) for option, value in asked.items())


def _settings(row: dict[str, str]) -> dict[str, Any]:
    return dict(part.split("=", 1) for part in row["setting"].split(";") if "=" in part)


def _source(row: dict[str, str]) -> str:
    settings = _settings(row)
    stated = [row["backbone"], f"{row['epochs']} epochs" if row["epochs"] else "epochs not stated"]
    stated += [f"{key}={value}" for key, value in settings.items() if key not in ("note", "hyper_from")]
    doubt = f"; {settings['note']}" if "note" in settings else ""
    return f"{NAMES[row['paper']]}, {row['table']}, {row['method']}: {', '.join(filter(None, stated))}{doubt}"


def _letters(name: str) -> str:
    """``OBD-SD`` and ``obd_sd`` are one."""
    return "".join(letter for letter in name.lower() if letter.isalnum() or letter == "+")
