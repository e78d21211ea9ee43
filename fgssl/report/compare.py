"""From run folders to comparison tables.

One table for each protocol: runs share a column only if they were trained and evaluated on the same rows of the same
data set. A row is one configuration with all of its seeds.
"""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from fgssl.errors import UserError, did_you_mean
from fgssl.report.metric_names import EXTRA_TIME, lower_is_better
from fgssl.report.published import Missing, Number, published
from fgssl.report.runs import CALLBACKS, SECONDS, RunFolder

DEFAULT_METRICS = ("recall@1", "map", "map@r", "top1", "top5", "box_knn_top1", "ap_box", "ap_mask", "miou", "jf_mean")
OF_QUERIES = ("recall@", "precision@", "map", "r_precision")  # metrics of queries and what they are searched in
OPTIONAL = "model.backbone.options."  # of timm, which has a default of each
KIND = ("model", "start.model")  # class of the run, and of the run that it starts from: they decide which options exist


@dataclass(frozen=True)
class Cell:
    """One metric of one row.

    Attributes:
        values: one fraction for each seed.
        best: whether no other row of the table has a better mean.
        printed: the paper's number, where every condition of its row holds.
        missing: why there is none, where the experiment names a table that has this metric.
    """

    values: tuple[float, ...] = ()
    best: bool = False
    printed: Number | None = None
    missing: str | None = None

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds; None for one seed, or if a value is infinite or nan."""
        finite = all(map(math.isfinite, self.values))
        return statistics.stdev(self.values) if finite and len(self.values) > 1 else None


@dataclass(frozen=True)
class Row:
    """One configuration with all of its seeds; ``settings`` are the options in which it differs from the other rows."""

    method: str
    backbone: str
    settings: dict[str, Any]
    runs: list[RunFolder]
    cells: dict[str, Cell]
    rank: int | None = None

    @property
    def epochs(self) -> int | None:
        return self.runs[0].epochs

    @property
    def label(self) -> str:
        """Method and settings, for pictures."""
        return " ".join([self.method, *(f"{leaf(name)}={value}" for name, value in self.settings.items())])


@dataclass(frozen=True)
class Comparison:
    """A table of rows with the same protocol, sorted by the first metric, best first."""

    protocol: dict[str, Any]
    metrics: tuple[str, ...]
    rows: list[Row]
    unlike: list[str] = field(default_factory=list)  # differences from the other tables of its data set

    @property
    def title(self) -> str:
        p = self.protocol
        asked = f"{p['data set']}, {p['split']} split" + "".join(f", {what}" for what in self.unlike)
        searched = "each query left out" if p["gallery"] == "evaluated" else f"searched in the {p['gallery']} rows"
        reranked = p.get("re-ranking", "none")
        searched += "" if reranked == "none" else f", re-ranked by {reranked}"
        searched = f", {searched}" if any(metric.startswith(OF_QUERIES) for metric in self.metrics) else ""
        title = f"{asked}: {p['test images']:,} test images (rows {p['test rows_hash']}){searched}"
        if not p["train images"]:
            return title
        return f"{title}; {p['train images']:,} training images (rows {p['train rows_hash']})"


def chosen_metrics(runs: list[RunFolder], asked: list[str] | None) -> list[str]:
    """The metrics to show: the requested ones, or the default ones that at least one run has.

    Raises:
        UserError: no run has a requested metric.
    """
    known = {name.removeprefix("test/") for run in runs for name in run.results["metrics"]}
    known |= {SECONDS} if any(run.seconds_an_epoch for run in runs) else set()
    if not asked:
        others = sorted(name for name in known - {SECONDS} if not name.startswith(("train/", "throughput/")))
        return [name for name in DEFAULT_METRICS if name in known] or others[:1]
    names = [name.removeprefix("test/") for name in asked]
    for name in names:
        if runs and name not in known:
            raise UserError(
                f"--metric: no run has '{name}'.{did_you_mean(name, known)} Known: {', '.join(sorted(known))}."
            )
    return names


def compare(
    runs: list[RunFolder], metrics: list[str], baseline: str | None = None
) -> tuple[list[Comparison], list[str]]:
    """Group runs by protocol, then by configuration.

    Args:
        runs: the runs.
        metrics: the columns.
        baseline: method whose time of an epoch the others are compared with; adds the columns ``seconds_an_epoch`` and
            ``extra_time``.

    Returns:
        The tables sorted by data set, and notes about runs that were left out.
    """
    notes: list[str] = []
    metrics = list(dict.fromkeys([*metrics, SECONDS, EXTRA_TIME])) if baseline else metrics
    groups: dict[str, list[RunFolder]] = {}
    for run in runs:
        if run.results["data"].get("unreadable"):
            unreadable = f"{run.results['data']['unreadable']:,} of its images could not be read (data.on_error skip)"
            notes.append(f"{run.folder}: {unreadable}.")
        if any(name.startswith(("test/", "val/")) for name in run.results["metrics"]):
            groups.setdefault(repr(sorted(run.protocol.items())), []).append(run)
        else:
            notes.append(f"left out: {run.folder}: nothing was evaluated. Its data have no labels, or no test images?")
    protocols = [members[0].protocol for members in groups.values()]
    tables, without = [], []
    for protocol, members in zip(protocols, groups.values(), strict=True):
        rivals = [p for p in protocols if p["data set"] == protocol["data set"]]
        rows = _rows(members, metrics, notes)
        rows = _timed(rows, baseline, protocol["data set"], notes) if baseline else rows
        measured = [metric for metric in metrics if any(row.cells[metric].values for row in rows)]
        if not measured:
            without.append(protocol["data set"])
            continue
        rows = _ranked(rows, measured)
        tables.append(Comparison(protocol, tuple(measured), rows, _differences(protocol, rivals)))
    if without:
        notes.append(f"left out: runs on {', '.join(sorted(set(without)))} that have none of {', '.join(metrics)}.")
    tables.sort(key=lambda t: (t.protocol["data set"], -sum(len(row.runs) for row in t.rows), t.title))
    names = [table.protocol["data set"] for table in tables]
    notes += [
        f"{name}: {names.count(name)} protocols, so {names.count(name)} tables: their numbers do not compare."
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    return tables, notes


def _differences(protocol: dict[str, Any], rivals: list[dict[str, Any]]) -> list[str]:
    """Settings that differ from another protocol of the same data set, without the hashes and counts of the title."""
    names = sorted({name for rival in rivals for name in rival})
    titled = ("split", "gallery", "re-ranking", "train images", "train rows_hash", "test images", "test rows_hash")
    differing = [n for n in names if n not in titled and len({str(rival.get(n)) for rival in rivals}) > 1]
    if len(differing) > 1 and "flipped labels" in differing:
        differing.remove("flipped labels")  # a hash; the noise share and the seed, which determine it, are shown
    return [f"{name} {protocol[name]}" if name in protocol else f"no {name}" for name in differing]


def _rows(runs: list[RunFolder], metrics: list[str], notes: list[str]) -> list[Row]:
    """One row for each configuration."""
    kinds: dict[tuple, list[RunFolder]] = {}
    for run in runs:
        kinds.setdefault((run.method, *(run.settings.get(name) for name in KIND)), []).append(run)
    rows = []
    for (method, *_), members in kinds.items():
        kin = [run for run in runs if run.method == method]
        differing = [name for name in KIND if len({run.settings.get(name) for run in kin}) > 1]
        rows += _rows_of_kind(members, differing, metrics, notes)
    return rows


def _rows_of_kind(runs: list[RunFolder], differing: list[str], metrics: list[str], notes: list[str]) -> list[Row]:
    """The rows of runs that have the same options.

    Args:
        runs: of one method, one class and one start.
        differing: options in which they differ from other runs of the method.
        metrics: the columns.
        notes: messages, extended in place.
    """
    names = _comparable(runs, notes)
    groups: dict[tuple, list[RunFolder]] = {}
    for run in runs:
        groups.setdefault(tuple(repr(run.settings.get(name)) for name in names), []).append(run)
    configurations = [_one_a_seed(members, notes) for members in groups.values()]
    telling = [*differing, *_telling([members[0] for members in configurations], names)]
    rows = []
    for members in configurations:
        settings = {name: members[0].settings.get(name) for name in telling if name in (*KIND, *members[0].settings)}
        cells = {metric: _cell(members, metric) for metric in metrics}
        rows.append(Row(members[0].method, _backbone(members[0]), settings, members, cells))
    return rows


def _comparable(runs: list[RunFolder], notes: list[str]) -> list[str]:
    """The options in which runs of one method can differ.

    An option that some configurations lack, since an older version wrote them, counts as equal. A missing option counts
    as a value of its own if it is of the network (timm's default), of a class that these configurations do not use, or
    of a callback of ours, if the others differ in it.
    """
    every = {name for run in runs for name in run.settings}
    missing = {name for name in every if not all(name in run.settings for run in runs)}
    unused = {name for name in missing if name.startswith(OPTIONAL) or _of_unused_class(name, runs)}
    measured = {name for name in missing - unused if name.startswith(tuple(f"callbacks.{own}." for own in CALLBACKS))}
    differing = {
        name for name in measured if len({repr(run.settings[name]) for run in runs if name in run.settings}) > 1
    }
    unknown = sorted(missing - unused - measured)
    if unknown:
        notes.append(
            f"{runs[0].method}: taken as equal, for some configurations lack them (of an older version?): "
            f"{', '.join(unknown)}."
        )
    return sorted(every - missing | unused | differing)


def _of_unused_class(option: str, runs: list[RunFolder]) -> bool:
    """Whether the runs that lack an option have another class there: ``PairViews`` no ``data.views.alpha``."""
    owner = option.rpartition(".")[0]
    while owner and not any(owner in run.settings for run in runs):
        owner = owner.rpartition(".")[0]
    having, lacking = (
        {repr(run.settings.get(owner)) for run in runs if (option in run.settings) is has} for has in (True, False)
    )
    return bool(owner) and having.isdisjoint(lacking)


def _one_a_seed(runs: list[RunFolder], notes: list[str]) -> list[RunFolder]:
    """The newest run of each seed: a run counted twice would make the spread too small.

    A run takes precedence over evaluations of its checkpoints; metrics that it lacks are taken from the evaluation of
    its last checkpoint.
    """
    kept: dict[int, RunFolder] = {}
    for run in sorted(runs, key=lambda run: (run.origin is run, run.began)):
        other = kept.get(run.seed)
        if other and run.origin is run and other.origin.folder.resolve() == run.folder.resolve():
            notes.append(f"left out: {other.folder}: it evaluates {run.folder}, which stands here itself.")
            run = _with_metrics_of(run, other)
        elif other:
            notes.append(f"left out: {other.folder}: {run.folder} is newer and has the same settings and seed.")
        kept[run.seed] = run
    return [kept[seed] for seed in sorted(kept)]


def _with_metrics_of(run: RunFolder, evaluation: RunFolder) -> RunFolder:
    """The run with those metrics of an evaluation of its last checkpoint that it lacks, and their callbacks."""
    metrics = {**evaluation.results["metrics"], **run.results["metrics"]}
    config = run.config
    if "test/box_knn_top1" not in run.results["metrics"]:  # else its own callbacks measured what they can
        config = {name: value for name, value in config.items() if not name.startswith("trainer.callbacks")}
        config |= {name: v for name, v in evaluation.config.items() if name.startswith("trainer.callbacks")}
    return replace(run, results={**run.results, "metrics": metrics}, config=config)


def _backbone(run: RunFolder) -> str:
    name = str(run.config.get("model.backbone.name", "?"))
    return f"{name}, pretrained" if run.config.get("model.backbone.pretrained") else name


def _telling(runs: list[RunFolder], names: list[str]) -> list[str]:
    """The options in which the rows of a method differ, without those that have their own column."""
    shown = ("model.variant", "model.backbone.name", "model.backbone.pretrained", "epochs", "trainer.max_epochs")
    return [n for n in names if n not in shown and len({repr(run.settings.get(n)) for run in runs}) > 1]


def _cell(runs: list[RunFolder], metric: str) -> Cell:
    values = tuple(value for run in runs if (value := run.metric(metric)) is not None)
    return _beside_printed(runs[0], metric, values)


def _beside_printed(run: RunFolder, metric: str, values: tuple[float, ...]) -> Cell:
    found = published(run, metric) if values else None
    if isinstance(found, Missing):
        return Cell(values, missing=found.reason)
    return Cell(values, printed=found)


def _timed(rows: list[Row], baseline: str, dataset: str, notes: list[str]) -> list[Row]:
    """The rows with ``extra_time``: a run's time of an epoch over the mean one of the baseline on the same machine.

    Args:
        rows: of one table.
        baseline: name of a method.
        dataset: name of the data set.
        notes: messages, extended in place.
    """
    of_baseline = [row for row in rows if row.method == baseline]
    if len(of_baseline) != 1:
        methods = ", ".join(dict.fromkeys(row.method for row in rows))
        count = f"{len(of_baseline)} rows are" if of_baseline else "no row is"
        notes.append(f"{dataset}: no extra time, since {count} {baseline}. Rows: {methods}.")
        return rows
    times: dict[str, list[float]] = {}
    for run in of_baseline[0].runs:
        times.setdefault(run.machine, []).extend([run.seconds_an_epoch] if run.seconds_an_epoch else [])
    timed = []
    for row in rows:
        extra = tuple(
            run.seconds_an_epoch / statistics.fmean(times[run.machine]) - 1
            for run in row.runs
            if run.seconds_an_epoch and times.get(run.machine)
        )
        cell = Cell() if row is of_baseline[0] else _beside_printed(row.runs[0], EXTRA_TIME, extra)
        timed.append(replace(row, cells=row.cells | {EXTRA_TIME: cell}))
    return timed


def _ranked(rows: list[Row], metrics: list[str]) -> list[Row]:
    """The rows sorted by the first metric, equal means with equal ranks, and the best of each metric marked."""
    best = {metric: max(_score(row, metric) for row in rows) for metric in metrics}
    ordered = sorted(rows, key=lambda row: row.label)
    ordered.sort(key=lambda row: _score(row, metrics[0]), reverse=True)  # rows of equal score stay in order
    ranked = []
    for row in ordered:
        place = 1 + sum(_score(other, metrics[0]) > _score(row, metrics[0]) for other in rows)
        cells = {
            metric: replace(cell, best=bool(cell.values) and _score(row, metric) == best[metric])
            for metric, cell in row.cells.items()
        }
        rank = place if row.cells[metrics[0]].values else None
        ranked.append(Row(row.method, row.backbone, row.settings, row.runs, cells, rank))
    return ranked


def _score(row: Row, metric: str) -> tuple[int, float]:
    """Orders the rows by a metric, the best one largest; below all others nan, then rows without the metric."""
    mean = row.cells[metric].mean
    if mean is None or math.isnan(mean):
        return -2 if mean is None else -1, 0.0
    return 0, -mean if lower_is_better(metric) else mean


def leaf(option: str) -> str:
    """Last part of an option's name: ``lr`` of ``model.optim.lr``; ``start`` of ``start.model``."""
    return "start" if option == "start.model" else option.rsplit(".", 1)[-1]


def sources(rows: Iterable[Row]) -> list[str]:
    """Sources of the printed numbers, without repetitions."""
    printed = [cell.printed for row in rows for cell in row.cells.values() if cell.printed]
    return list(dict.fromkeys(number.source for number in printed))


def missing(rows: Iterable[Row]) -> list[str]:
    """Reasons why rows have no printed number, without repetitions."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for reason in dict.fromkeys(cell.missing for cell in row.cells.values() if cell.missing):
            reasons.setdefault(reason, []).append(row.label)
    return [f"No printed number beside {', '.join(labels)}: {reason}" for reason, labels in reasons.items()]
