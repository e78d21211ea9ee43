"""The committed results of ``experiments/evidence`` and the tables and figures of docs/results.md and README.md.

``experiments/evidence/results/<sweep>/<cell>/`` holds the text of a finished run: ``results.json``, ``config.yaml``
and, of ``metrics.csv``, the curves that a figure shows. ``tables.yaml`` beside them says what a table or figure shows.
The page is written by hand; between ``<!-- table: NAME -->`` (or ``figure``) and ``<!-- end -->`` it is filled in
here::

    python -m tests.results --collect RUNS    # copy the finished cells of a runs folder, then fill in the page
    python -m tests.results                   # fill in the page

A table::

    obd_sd:
      rows:                                             # label: sweep/cells, * for the seeds
        MS: obd_sd/alone_*
        OBD-SD: {cells: obd_sd/full_*, paper: {row: "obd_sd, Table 1, MS+OBD-SD", dataset: cub}}
        MLS: {cells: mls/mean_*, labels: none}          # which labels it was trained with, a column of its own
      metrics: {Recall@1: recall@1, probe: "probe:top1"}    # probe:top1 is of the run <cell>_probe
      contrasts: [OBD-SD - MS]                          # paired by seed

``sweep: NAME`` in place of ``rows``: a row for each configuration of a sweep. ``page: README.md``: a table there.

A figure of curves, and one that orders the rows by a metric, with a line at one of them::

    obd_sd: {table: obd_sd, metrics: {Recall@1: test_each_epoch/recall@1}, title: ...}
    one_table: {table: one_table, ranking: recall@1, line: MS, title: ...}
"""

import argparse
import csv
import hashlib
import json
import math
import re
import shlex
import shutil
import statistics
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from scipy import stats

from fgssl.commands.sweep_file import SEED, command, name_of, read_sweep
from fgssl.errors import UserError
from fgssl.report.compare import Cell
from fgssl.report.conditions import settings
from fgssl.report.metric_names import is_share, lower_is_better
from fgssl.report.published import metrics_of, rows_named
from fgssl.report.runs import RunFolder, read_run
from fgssl.report.tables import mean_and_spread, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "experiments" / "evidence"
PAGE = "docs/results.md"
PAGES = (PAGE, "README.md")
MARK = re.compile(r"(<!-- (table|figure): (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
ABSOLUTE = re.compile(r"""(?:^|[\s'"=:,;\[({])(?:file://)?((?:/|~/|[A-Za-z]:\\)\w[^\s'",\])}]*)""", re.MULTILINE)
KEPT = ("results.json", "config.yaml")
LARGEST = 200_000  # bytes of a figure
CONFIDENCE = 0.95


class Place(NamedTuple):
    """The sweep files and the committed results: those of the repository, or of a test."""

    sweeps: Path = EVIDENCE / "sweeps"
    results: Path = EVIDENCE / "results"
    figures: Path = ROOT / "docs" / "figures"

    def spec(self) -> dict[str, dict[str, Any]]:
        """The tables and figures of ``tables.yaml``."""
        return yaml.safe_load((self.results / "tables.yaml").read_text())

    def runs(self) -> list[Path]:
        """The committed run folders."""
        return sorted(path.parent for path in self.results.glob("*/*/results.json"))


# ---- collecting -----------------------------------------------------------------------------------------------------


def collect(runs: Path, place: Place) -> tuple[list[str], list[str]]:
    """Copy the text of the finished cells of ``runs/sweep_<name>/<cell>/``.

    Returns:
        The names of the runs that were copied, and a message for each that was left out.
    """
    copied, left_out = [], []
    figures = place.spec()["figures"].values()
    curves = {metric for figure in figures for metric in figure.get("metrics", {}).values()}
    for source in sorted(path.parent for path in runs.glob("sweep_*/*/results.json")):
        name = f"{source.parent.name.removeprefix('sweep_')}/{source.name}"
        found = faults(source, name, place)
        if found:
            left_out.append(f"left out: {name}: {'; '.join(found)}")
            continue
        target = place.results / name
        target.mkdir(parents=True, exist_ok=True)
        for file in KEPT:
            shutil.copyfile(source / file, target / file)
        write_curves(source / "metrics.csv", target / "metrics.csv", curves)
        copied.append(name)
    return copied, left_out


def faults(folder: Path, name: str, place: Place) -> list[str]:
    """Why a run cannot be among the results.

    Args:
        folder: the run folder.
        name: ``<sweep>/<cell>``.
        place: where its sweep file is.
    """
    try:
        results, missing = json.loads((folder / "results.json").read_text()), []
    except ValueError as fault:
        return [f"results.json is not valid JSON ({fault})"]
    if results.get("status") != "finished":
        return [f"its status is {results.get('status')}"]
    needed = ["command", "seed", "versions", "hardware", "metrics", "data", "duration_s", "epochs"]
    if not str(results.get("command")).startswith("fgssl fit"):
        needed.remove("epochs")  # an evaluation
    for key in needed:
        if results.get(key) is None:
            missing.append(f"results.json has no {key}")
    paths = {
        path
        for file in folder.iterdir()
        if file.name in (*KEPT, "metrics.csv")
        for path in ABSOLUTE.findall(file.read_text())
    }
    return missing + fault_of_command(results, name, place) + [f"it names the path {path}" for path in sorted(paths)]


def fault_of_command(results: dict[str, Any], name: str, place: Place) -> list[str]:
    """Whether a fit is a cell of its sweep file, and ran with the options that the file has now."""
    stem, cell = name.split("/")
    if not (place.sweeps / f"{stem}.yaml").is_file():
        return [f"there is no sweep file {stem}.yaml"]
    ran = str(results.get("command"))
    if not ran.startswith("fgssl fit"):
        return []
    commands = commands_of(stem, place.sweeps)
    if cell not in commands:
        return [f"{stem}.yaml has no such cell"]
    quoted, plain = shlex.join(commands[cell]), " ".join(commands[cell])  # the latter by versions that quoted nothing
    if not f"{ran} ".startswith((f"{quoted} ", f"{plain} ")):
        return [f"{stem}.yaml has other options now: {quoted}"]
    return []


@cache
def commands_of(sweep: str, folder: Path) -> dict[str, list[str]]:
    """The words of the command of each cell of a sweep, without flags of the machine such as the place of weights."""
    read = read_sweep(folder / f"{sweep}.yaml")
    runs = Path("runs") / f"sweep_{sweep}"
    return {name_of(cell): ["fgssl", *command(read, runs, cell, [])] for cell in read.cells()}


def write_curves(source: Path, target: Path, metrics: set[str]) -> None:
    """Copy some curves of ``metrics.csv``, one line an epoch, the mean over its steps; no file if it has none."""
    if not source.is_file():
        return
    epochs: dict[float, dict[str, list[float]]] = {}
    steps: dict[float, int] = {}
    with source.open(newline="") as file:
        for row in csv.DictReader(file):
            for metric in metrics & row.keys():
                if row[metric] and row["epoch"]:
                    epoch = float(row["epoch"])
                    epochs.setdefault(epoch, {}).setdefault(metric, []).append(float(row[metric]))
                    steps[epoch] = int(row["step"])
    names = sorted({metric for values in epochs.values() for metric in values})
    if not names:
        return
    with target.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["epoch", "step", *names])
        for epoch, values in sorted(epochs.items()):
            means = [f"{statistics.fmean(values[name]):.6g}" if name in values else "" for name in names]
            writer.writerow([f"{epoch:g}", steps[epoch], *means])


# ---- tables ---------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A row of a table: its runs by seed, and how many its sweep file has."""

    label: str
    runs: dict[int, RunFolder]
    planned: int
    paper: dict[str, str]
    labels: str | None

    def cell(self, metric: str) -> Cell:
        return Cell(tuple(self.by_seed(metric).values()))

    def by_seed(self, metric: str) -> dict[int, float]:
        found = {seed: value_of(run, metric) for seed, run in sorted(self.runs.items())}
        return {seed: value for seed, value in found.items() if value is not None}


def value_of(run: RunFolder, metric: str) -> float | None:
    """A metric of a run; ``probe:top1`` is the top1 of the run ``<cell>_probe`` beside it."""
    suffix, colon, name = metric.rpartition(":")
    if not colon:
        return run.metric(name)
    folder = run.folder.with_name(f"{run.folder.name}_{suffix}")
    beside = read_run(folder) if folder.is_dir() else None
    return beside.metric(name) if beside else None


def rows_of(table: dict[str, Any], place: Place) -> list[Row]:
    """The rows of a table.

    Raises:
        UserError: a row names a cell that its sweep does not have, or mixes configurations.
    """
    patterns = dict(configurations(table["sweep"], place)) if "sweep" in table else table["rows"]
    rows = [row_of(label, {"cells": row} if isinstance(row, str) else row, place) for label, row in patterns.items()]
    check_same_rows(rows)
    return rows


def row_of(label: str, row: dict[str, Any], place: Place) -> Row:
    """One row, from its entry in ``tables.yaml``."""
    sweep, pattern = row["cells"].split("/", 1)
    known = commands_of(sweep, place.sweeps) if (place.sweeps / f"{sweep}.yaml").is_file() else {}
    planned = [cell for cell in known if fnmatchcase(cell, pattern)]
    if known and not planned and "*" in pattern:
        raise UserError(f"tables.yaml: {label}: {sweep}.yaml has no cell {pattern}, but {', '.join(known)}.")
    folders = [folder for folder in place.runs() if folder.parent.name == sweep and fnmatchcase(folder.name, pattern)]
    # alone_* is not alone_seed_everything0_probe; a name that is no cell is that of an evaluation
    found = runs_by_seed(label, [folder for folder in folders if folder.name in planned] if planned else folders)
    return Row(label, found, max(len(planned), 1), row.get("paper", {}), row.get("labels"))


def configurations(sweep: str, place: Place) -> Iterator[tuple[str, str]]:
    """Label and cells of each configuration of a sweep, whatever the seed; none while there is no such file."""
    if not (place.sweeps / f"{sweep}.yaml").is_file():
        return
    read, seen = read_sweep(place.sweeps / f"{sweep}.yaml"), set()
    for cell in read.cells():
        varied = {option: value for option, value in cell.items() if option != SEED}
        label = ", ".join(
            Path(str(value)).stem if option == "config" else f"{option.rsplit('.', 1)[-1]} {value}"
            for option, value in varied.items()
        )
        if label not in seen:
            seen.add(label)
            yield label, f"{sweep}/{name_of(cell | ({SEED: '*'} if SEED in cell else {}))}"


def runs_by_seed(label: str, folders: list[Path]) -> dict[int, RunFolder]:
    """The runs of one configuration.

    Raises:
        UserError: two of them have the same seed, or they differ in more than the seed.
    """
    found: dict[int, RunFolder] = {}
    for folder in folders:
        run = read_run(folder)
        assert run is not None, f"{folder} was not evaluated"
        if run.seed in found:
            raise UserError(f"tables.yaml: {label}: {found[run.seed].name} and {run.name} have the same seed.")
        found[run.seed] = run
    first = next(iter(found.values()), None)
    for run in found.values():
        differing = [key for key in run.settings if run.settings[key] != first.settings.get(key)]  # type: ignore[union-attr]
        if differing:
            raise UserError(f"tables.yaml: {label}: {first.name} and {run.name} differ in {', '.join(differing)}.")  # type: ignore[union-attr]
    return found


def check_same_rows(rows: list[Row]) -> None:
    """Refuse a table whose runs were trained or evaluated on different images, or searched in other ones."""
    evaluated: dict[tuple, str] = {}
    for row in rows:
        for run in row.runs.values():
            data = run.results["data"]
            images = (data["dataset"], *(data[part]["rows_hash"] for part in ("train", "val", "test")))
            search = (run.results.get("gallery", "evaluated"), run.results.get("reranking", "none"))
            evaluated.setdefault(images + search, run.name)
    if len(evaluated) > 1:
        runs = " and ".join(evaluated.values())
        raise UserError(f"tables.yaml: {runs} were trained or evaluated on different images, or searched otherwise.")


def text_of_table(table: dict[str, Any], place: Place) -> str:
    """A table in Markdown: means over seeds, the paper's numbers, the contrasts, and where the runs are."""
    rows, metrics = rows_of(table, place), table["metrics"]
    if not any(row.runs for row in rows):
        return "Not run yet."
    with_paper = [metric for metric in metrics.values() if any(printed(row.paper, metric) for row in rows)]
    with_labels = any(row.labels for row in rows)
    texts = ["", *["labels"] * with_labels]
    headings = [*texts, "seeds"]
    for heading, metric in metrics.items():
        headings += [heading + ", %" * is_share(base(metric)), *["paper"] * (metric in with_paper)]
    numbers = len(headings) - len(texts)  # and the seconds
    lines = [line_of([*headings, "s a run"]), "|" + "---|" * len(texts) + "---:|" * (numbers + 1)]
    best = {metric: best_of(rows, metric) for metric in metrics.values()}
    for row in rows:
        cells = cells_of(row, best, with_paper) if row.runs else ["0", *["not run"] * numbers]
        lines.append(line_of([row.label, *[row.labels or "-"] * with_labels, *cells]))
    if table.get("contrasts"):
        lines += ["", *contrasts(table["contrasts"], {row.label: row for row in rows}, metrics)]
    return "\n".join([*lines, "", sources(rows)])


def cells_of(row: Row, best: dict[str, float | None], with_paper: list[str]) -> list[str]:
    """Seeds, metrics, the best mean of each in bold, with the paper's numbers, and the duration."""
    cells = [str(len(row.runs)) + f" of {row.planned}" * (len(row.runs) < row.planned)]
    for metric, of_all in best.items():
        cell = row.cell(metric)
        words = mean_and_spread(base(metric), cell, len(row.runs))
        cells.append(f"**{words}**" if cell.mean is not None and cell.mean == of_all else words)
        cells += [printed(row.paper, metric) or "-"] * (metric in with_paper)
    return [*cells, f"{statistics.fmean(run.results['duration_s'] for run in row.runs.values()):.0f}"]


def line_of(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def base(metric: str) -> str:
    """``recall@1`` of ``val/recall@1``, ``top1`` of ``probe:top1``."""
    return re.split("[:/]", metric)[-1]


def best_of(rows: list[Row], metric: str) -> float | None:
    """The best mean; None where fewer than two rows have one."""
    means = [mean for row in rows if (mean := row.cell(metric).mean) is not None]
    choose = min if lower_is_better(base(metric)) else max
    return choose(means) if len(means) > 1 else None


def printed(paper: dict[str, str], metric: str) -> str | None:
    """The paper's number for a row, as printed; None where it has none.

    Args:
        paper: ``row``: paper, table and method as in ``run.paper``; further keys are columns or settings of
            published.csv.
        metric: our metric.

    Raises:
        UserError: rows with different numbers fit.
    """
    if not paper:
        return None
    wanted = {key: value for key, value in paper.items() if key != "row"}
    rows = [row for row in rows_named(paper["row"]) if metric in metrics_of(row)]
    fitting = [row for row in rows if all((row | settings(row)).get(key) == value for key, value in wanted.items())]
    values = {row["value"] for row in fitting}
    if len(values) > 1:
        raise UserError(f"tables.yaml: {paper} fits rows of published.csv with {', '.join(sorted(values))}.")
    return values.pop() if values else None


def contrasts(wanted: list[str], rows: dict[str, Row], metrics: dict[str, str]) -> list[str]:
    """A table of differences of means, paired by seed, with their 95 % intervals; bold where 0 is outside."""
    lines = [
        line_of(["difference", "pairs", *(heading + ", %" * is_share(base(m)) for heading, m in metrics.items())]),
        "|---|" + "---:|" * (len(metrics) + 1),
    ]
    for contrast in wanted:
        one, _, other = contrast.partition(" - ")
        if one not in rows or other not in rows:
            raise UserError(f"tables.yaml: contrast '{contrast}': the rows are {', '.join(rows)}.")
        cells, pairs = [], set()
        for metric in metrics.values():
            differences = paired(rows[one].by_seed(metric), rows[other].by_seed(metric))
            cells.append(difference_text(differences, base(metric)))
            pairs.add(len(differences))
        lines.append(line_of([contrast, str(max(pairs)), *cells]))
    return lines


def paired(one: dict[int, float], other: dict[int, float]) -> list[float]:
    """Differences of the seeds that both have."""
    return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]


def interval(differences: list[float]) -> tuple[float, float] | None:
    """95 % interval of the mean by the t distribution with n - 1 degrees of freedom; None below two values."""
    n = len(differences)
    if n < 2:
        return None
    half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * statistics.stdev(differences) / math.sqrt(n)
    mean = statistics.fmean(differences)
    return mean - half, mean + half


def difference_text(differences: list[float], metric: str) -> str:
    if not differences:
        return "not run"
    around, mean = interval(differences), signed(metric, statistics.fmean(differences))
    if around is None:
        return mean
    low, high = around
    words = f"{mean} [{signed(metric, low)}, {signed(metric, high)}]"
    return f"**{words}**" if low > 0 or high < 0 else words


def signed(metric: str, value: float) -> str:
    return ("+" if value >= 0 else "") + number(metric, value)


def sources(rows: list[Row]) -> str:
    """Which sweeps the runs of a table are from, how many there are, and how long they took."""
    runs = [run for row in rows for run in row.runs.values()]
    planned = sum(row.planned for row in rows)
    sweeps = dict.fromkeys(run.folder.parent.name for run in runs)
    named = ", ".join(f"`experiments/evidence/sweeps/{sweep}.yaml`" for sweep in sweeps)
    hours = sum(run.results["duration_s"] for run in runs) / 3600
    return f"{len(runs)} of {planned} runs, {hours:.1f} hours: {named}."


# ---- figures --------------------------------------------------------------------------------------------------------


def points_of(figure: dict[str, Any], place: Place) -> dict[str, Any]:
    """What a figure shows: see ``curves_of`` and ``ranking_of``."""
    rows = rows_of(place.spec()["tables"][figure["table"]], place)
    return ranking_of(rows, figure["ranking"]) if "ranking" in figure else curves_of(rows, figure)


def draw(points: dict[str, Any], figure: dict[str, Any], path: Path) -> None:
    """Write a figure as an SVG that is the same when it is drawn again."""
    from matplotlib import rc_context

    drawn = ranking_figure(points, figure) if "ranking" in figure else curve_figure(points, figure["metrics"])
    with rc_context({"svg.hashsalt": "fgssl", "svg.fonttype": "none", "font.family": "sans-serif"}):
        drawn.savefig(path, metadata={"Date": None, "Creator": None, "Description": digest(points)})


def ranking_of(rows: list[Row], metric: str) -> dict[str, dict[str, Any]]:
    """Label of a row -> its labels and a value for each seed, the best mean first."""
    found = [row for row in rows if row.cell(metric).mean is not None]
    largest_first = not lower_is_better(base(metric))
    found.sort(key=lambda row: row.cell(metric).mean, reverse=largest_first)  # type: ignore[arg-type, return-value]
    return {row.label: {"labels": row.labels, "values": list(row.by_seed(metric).values())} for row in found}


def ranking_figure(points: dict[str, dict[str, Any]], told: dict[str, str]) -> "Figure":
    """A line a row: a point for each seed, a bar at the mean; the colour says the labels."""
    from matplotlib.figure import Figure

    from fgssl.report.plots import COLOURS

    kinds = sorted({row["labels"] for row in points.values()}, key=str)
    figure = Figure((6.2, 0.23 * len(points) + 1.0), layout="constrained", facecolor="white")
    axis = figure.subplots()
    metric = base(told["ranking"])
    scale = 100 if is_share(metric) else 1
    if told.get("line") in points:
        axis.axvline(scale * statistics.fmean(points[told["line"]]["values"]), color="#888888", linewidth=1)
    for place, row in enumerate(points.values()):
        colour, values = COLOURS[kinds.index(row["labels"])], [scale * value for value in row["values"]]
        axis.plot(values, [place] * len(values), "o", color=colour, markersize=4.5, alpha=0.55, markeredgewidth=0)
        axis.plot([statistics.fmean(values)], [place], "|", color=colour, markersize=13, markeredgewidth=2)
    for kind in kinds:
        axis.plot([], [], "o", color=COLOURS[kinds.index(kind)], markersize=4.5, label=kind)
    axis.set_yticks(range(len(points)), list(points), fontsize=8.5)
    axis.invert_yaxis()
    axis.set_xlabel(metric.capitalize() + ", %" * (scale == 100), fontsize=9)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(title="trained with labels", title_fontsize=8.5, fontsize=8.5, loc="lower right")
    return figure


def curves_of(rows: list[Row], figure: dict[str, Any]) -> dict[str, dict[str, list[dict[float, float]]]]:
    """Heading of a panel -> label of a row -> one curve a seed, epoch to value; without rows that have none."""
    panels: dict[str, dict[str, list[dict[float, float]]]] = {}
    for heading, metric in figure["metrics"].items():
        for row in rows:
            curves = [dict(history[metric]) for run in row.runs.values() if metric in (history := run.history())]
            if curves:
                panels.setdefault(heading, {})[row.label] = curves
    return panels


def digest(points: dict) -> str:
    """Hash of the points of a figure, which its file carries, so that a test sees a figure that is out of date."""
    return hashlib.sha256(json.dumps(points, sort_keys=True).encode()).hexdigest()[:16]


def curve_figure(points: dict[str, dict[str, list[dict[float, float]]]], metrics: dict[str, str]) -> "Figure":
    """A panel a metric, a line a row; lines are means over seeds, bands the standard deviation."""
    import numpy as np
    from matplotlib.figure import Figure

    from fgssl.report.plots import COLOURS, mean_curve

    labels = list(dict.fromkeys(label for panel in points.values() for label in panel))
    columns = 2 if len(points) == 4 else min(len(points), 3)
    lines = math.ceil(len(points) / columns)
    figure = Figure((3.1 * columns + 0.2, 2.5 * lines + 0.5), layout="constrained", facecolor="white")
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for axis in axes[len(points) :]:
        axis.set_visible(False)
    for axis, (heading, panel) in zip(axes, points.items(), strict=False):
        share = is_share(base(metrics[heading]))
        scale = 100 if share else 1
        for label, curves in panel.items():
            colour, mean = COLOURS[labels.index(label)], mean_curve(curves)
            epochs = np.array(list(mean))
            values = scale * np.array([[curve[epoch] for epoch in mean] for curve in curves])
            line = values.mean(axis=0)
            axis.plot(epochs, line, color=colour, linewidth=1.8, marker="o", markersize=2.5, label=label)
            if len(curves) > 1:
                spread = values.std(axis=0, ddof=1)
                axis.fill_between(epochs, line - spread, line + spread, color=colour, alpha=0.18, linewidth=0)
        axis.set_title(heading + ", %" * share, fontsize=10)
        axis.set_xlabel("epoch", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    handles = {line.get_label(): line for axis in figure.axes for line in axis.get_legend_handles_labels()[0]}
    figure.legend(
        handles=list(handles.values()), loc="outside lower center", ncols=columns + 1, fontsize=9, frameon=False
    )
    return figure


def text_of_figure(name: str, figure: dict[str, Any], place: Place) -> str:
    """The link to a figure, or that nothing was run."""
    if not points_of(figure, place):
        return "Not run yet."
    title = figure["title"]
    curves = "Lines: mean over seeds; bands: standard deviation."
    reading = "Points: seeds; bars: their mean." if "ranking" in figure else curves
    return f"![{title}](figures/results_{name}.svg)\n\n{title}. {reading}"


# ---- the page -------------------------------------------------------------------------------------------------------


def filled(page: str, place: Place, name: str = PAGE) -> str:
    """A page with its marked places filled in.

    Args:
        page: its text.
        place: the results.
        name: its file, below the root of the repository.

    Raises:
        UserError: a place has a name that ``tables.yaml`` does not have for this page, or the other way round.
    """
    spec = place.spec()
    marked = [(kind, own) for _, kind, own, _ in MARK.findall(page)]
    listed = [
        (kind, own)
        for kind in ("table", "figure")
        for own, told in spec[f"{kind}s"].items()
        if told.get("page", PAGE) == name
    ]
    if sorted(marked) != sorted(listed):
        differing = sorted(set(marked) ^ set(listed)) or "one occurs twice"
        raise UserError(f"tables.yaml and {name} do not have the same tables and figures: {differing}.")

    def fill(match: re.Match) -> str:
        begin, kind, name, end = match.groups()
        own = spec[f"{kind}s"][name]
        text = text_of_table(own, place) if kind == "table" else text_of_figure(name, own, place)
        return f"{begin}\n{text}\n\n{end}"

    return MARK.sub(fill, page)


def write_pages(place: Place) -> None:
    """Write the figures and fill in the pages."""
    for name, figure in place.spec()["figures"].items():
        points = points_of(figure, place)
        if points:
            draw(points, figure, place.figures / f"results_{name}.svg")
    for page in PAGES:
        (ROOT / page).write_text(filled((ROOT / page).read_text(), place, page))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.results", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--collect", metavar="RUNS", type=Path, help="copy the finished cells of RUNS/sweep_*/ first")
    args = parser.parse_args(argv)
    left_out: list[str] = []
    try:
        if args.collect:
            copied, left_out = collect(args.collect, Place())
            print(*left_out, f"{len(copied)} runs in {EVIDENCE.relative_to(ROOT)}/results.", sep="\n")
        write_pages(Place())
    except UserError as fault:
        print(fault, file=sys.stderr)
        return 2
    print(f"Wrote {' and '.join(PAGES)}.")
    return 1 if left_out else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
