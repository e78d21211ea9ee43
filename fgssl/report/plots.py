"""Charts of comparisons and sweeps, with matplotlib."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure  # instead of pyplot, which keeps figures open

from fgssl.report.compare import Comparison, Row
from fgssl.report.metric_names import is_share, lower_is_better
from fgssl.report.tables import in_words, number

SHOWN = 12  # most rows of a chart; the best ones are shown
COLOURS = (  # Paul Tol's muted set, safe for colour-blind readers, and three greys
    "#332288", "#cc6677", "#117733", "#ddaa33", "#88ccee", "#aa4499", "#44aa99", "#882255", "#999933",
    "#444444", "#888888", "#bbbbbb",
)  # fmt: skip


def draw_comparison(tables: Sequence[Comparison], folder: Path) -> list[Path]:
    """Write bars, Recall@K curves and curves over the epochs of each table; returns the files."""
    written: list[Path] = []
    for place, table in enumerate(tables):
        name = table.protocol["data set"]
        earlier = sum(other.protocol["data set"] == name for other in tables[:place])
        written += draw_table(table, folder, f"{name}{f'-{earlier + 1}' if earlier else ''}").values()
    return written


def draw_table(table: Comparison, folder: Path, name: str, suffix: str = ".png") -> dict[str, Path]:
    """Write ``<name>_bars``, ``<name>_recall`` and ``<name>_epochs``, as far as the runs have them; .png or .svg.

    Returns:
        ``bars``, ``recall`` and ``epochs``: the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    charts: dict[str, Callable[[Comparison], Figure | None]] = {"bars": bars, "recall": recall_curves, "epochs": epochs}
    written = {}
    for kind, draw in charts.items():
        figure = draw(table)
        if figure is not None:
            written[kind] = folder / f"{name}_{kind}{suffix}"
            figure.savefig(written[kind])
    return written


def bars(table: Comparison) -> Figure:
    """Bars of each metric, one for each row, best on top; whiskers are the standard deviation over the seeds."""
    rows = table.rows[:SHOWN]
    labels = [_label(table, row) for row in rows]
    widest = max(map(len, labels))
    figure = Figure(
        (1.2 + 0.075 * widest + 2.9 * len(table.metrics), 1.3 + 0.36 * len(rows)), dpi=120, layout="constrained"
    )
    axes = figure.subplots(1, len(table.metrics), sharey=True, squeeze=False)[0]
    for axis, metric in zip(axes, table.metrics, strict=True):
        for place, row in enumerate(rows):
            cell = row.cells[metric]
            if cell.mean is None or not np.isfinite(cell.mean):
                continue
            axis.barh(place, cell.mean, xerr=cell.spread, color=COLOURS[place], alpha=0.85, error_kw={"capsize": 3})
            end = cell.mean + (cell.spread or 0)
            words = number(metric, cell.mean)
            axis.text(end, place, f" {words}", va="center", fontsize=8, fontweight="bold" if cell.best else "normal")
            if cell.printed:
                axis.plot(cell.printed.value, place, marker="D", color="black", markersize=4)
        axis.set_xlabel(metric + _unit(metric))
        axis.margins(x=0.22)  # room for the numbers
        _percent(axis.xaxis, metric)
        _plain(axis)
    axes[0].set_yticks(range(len(rows)), labels, fontsize=8)
    axes[0].invert_yaxis()
    paper = " Diamonds: the paper." if any(c.printed for row in rows for c in row.cells.values()) else ""
    _title(figure, table, f"mean over seeds (number in brackets), whiskers: standard deviation.{paper}")
    return figure


def recall_curves(table: Comparison) -> Figure | None:
    """Recall@K against K with the standard deviation over the seeds; None with fewer than two values of K."""
    names = {name for row in table.rows for run in row.runs for name in run.results["metrics"]}
    ks = sorted(int(m[1]) for name in names if (m := re.fullmatch(r"test/recall@(\d+)", name)))
    if len(ks) < 2:
        return None
    figure = Figure((4.7 + max(2.8, _legend_inches(table)), 4.2), dpi=120, layout="constrained")
    axis = figure.subplots()
    for colour, row in zip(COLOURS, table.rows[:SHOWN], strict=False):
        values = np.array([[run.metric(f"recall@{k}") for k in ks] for run in row.runs], dtype=float)  # None is NaN
        mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1) if len(values) > 1 else 0
        axis.plot(ks, mean, marker="o", markersize=4, color=colour, label=_label(table, row))
        axis.fill_between(ks, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    axis.set_xscale("log")
    axis.set_xticks(ks, [str(k) for k in ks])
    axis.minorticks_off()
    axis.set_xlabel("K")
    axis.set_ylabel("Recall@K, %")
    _percent(axis.yaxis, "recall@1")
    _plain(axis)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    _title(figure, table, "mean over seeds (number in brackets), bands: standard deviation.")
    return figure


def epochs(table: Comparison) -> Figure | None:
    """The first metric on the validation rows and the training loss against the epoch.

    One thin line for each seed and a thick line for their mean. An evaluation of a checkpoint has the curves of the run
    that trained it. Losses of different classes (MaskCon, Probe) are in different panels, since their values do not
    compare. None if no run has a curve of two epochs or more.
    """
    panels = curve_panels(table)
    if not panels:
        return None
    figure = Figure((max(2.5, _legend_inches(table)) + 4.5 * len(panels), 4.2), dpi=120, layout="constrained")
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for place, curves in panel.curves.items():
            colour = COLOURS[place]
            for curve in curves:
                axis.plot(*zip(*sorted(curve.items()), strict=True), color=colour, linewidth=0.6, alpha=0.6)
            mean = mean_curve(curves)
            label = _label(table, table.rows[place])
            axis.plot(list(mean), list(mean.values()), color=colour, linewidth=2, label=label)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.ticklabel_format(axis="y", useOffset=False)
        axis.set_ylabel(panel.title + _unit(panel.metric))
        if panel.metric != "train/loss":
            _percent(axis.yaxis, panel.metric)
        _plain(axis)
    handles = [line for axis in figure.axes for line in axis.get_lines() if not str(line.get_label()).startswith("_")]
    lines = {str(line.get_color()): line for line in handles}  # a row has one colour in all panels
    figure.legend(handles=list(lines.values()), loc="outside right center", fontsize=8, frameon=False)
    _title(figure, table, "thick: mean over seeds (number in brackets), thin: one seed.")
    return figure


class Curves(NamedTuple):
    """Curves of one panel.

    Attributes:
        title: what is drawn.
        metric: name in ``metrics.csv``.
        curves: for rows of the table, by their place: epoch to value, for each seed.
    """

    title: str
    metric: str
    curves: dict[int, list[dict[float, float]]]


def curve_panels(table: Comparison) -> list[Curves]:
    """Curves over the epochs of the best rows: the first metric on the validation rows, and the losses by class."""
    histories = [[run.origin.history() for run in row.runs] for row in table.rows[:SHOWN]]
    trained = [row.runs[0].origin.results["method"] for row in table.rows[:SHOWN]]
    metric = f"val/{table.metrics[0]}"
    wanted = [(metric, metric, set(trained))]
    kinds = sorted(set(trained))
    wanted += [(f"train/loss of {kind}" if len(kinds) > 1 else "train/loss", "train/loss", {kind}) for kind in kinds]
    panels = []
    for title, name, kind in wanted:
        curves = {
            place: found
            for place, group in enumerate(histories)
            if trained[place] in kind and (found := [dict(history[name]) for history in group if name in history])
        }
        if any(len(curve) > 1 for found in curves.values() for curve in found):
            panels.append(Curves(title, name, curves))
    return panels


def mean_curve(curves: list[dict[float, float]]) -> dict[float, float]:
    """Mean over the curves at the epochs that all of them have."""
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    return {epoch: sum(curve[epoch] for curve in curves) / len(curves) for epoch in shared}


def curve(
    places: Sequence[float],
    values: np.ndarray,
    printed: np.ndarray,
    name: str,
    metric: str,
    title: str,
    mark_best: bool = True,
) -> Figure:
    """A metric against one option, whose values are evenly spaced.

    Args:
        places: values of the option.
        values: [len(places)] fractions; NaN where there is no result.
        printed: [len(places)] the paper's numbers; NaN where there is none.
        name: of the option.
        metric: what ``values`` are.
        title: above the picture.
        mark_best: circle the best value.
    """
    figure = Figure((6.0, 3.8), dpi=120, layout="constrained")
    axis = figure.subplots()
    order = np.argsort(places)
    evenly = np.arange(len(places))
    axis.plot(evenly, values[order], marker="o", color=COLOURS[0], label="ours")
    if np.isfinite(printed).any():
        axis.plot(evenly, printed[order], linestyle="", marker="D", color="black", label="paper")
        axis.legend(fontsize=8, frameon=False)
    if mark_best and np.isfinite(values).any():
        best = (np.nanargmin if lower_is_better(metric) else np.nanargmax)(values[order])
        axis.plot(best, values[order][best], marker="o", markersize=12, fillstyle="none", color="#d1352b")
    axis.set_xticks(evenly, [f"{places[place]:g}" for place in order])
    axis.set_xlabel(name)
    axis.set_ylabel(metric + _unit(metric))
    axis.margins(y=0.15)
    _percent(axis.yaxis, metric)
    _plain(axis)
    figure.suptitle(title, fontsize=9)
    return figure


def heat_map(
    values: np.ndarray,
    names: tuple[str, str],
    ticks: tuple[Sequence, Sequence],
    metric: str,
    title: str,
    mark_best: bool = True,
) -> Figure:
    """A grid of results.

    Args:
        values: [len(rows), len(columns)] fractions; NaN where a cell has no result.
        names: what rows and columns are.
        ticks: their values.
        metric: what ``values`` are.
        title: above the picture.
        mark_best: frame the best cell.
    """
    figure = Figure((2.6 + 0.85 * len(ticks[1]), 1.9 + 0.5 * len(ticks[0])), dpi=120, layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(values, cmap="viridis", aspect="auto")
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    for (row, column), value in np.ndenumerate(values):
        words = "-" if np.isnan(value) else number(metric, value)
        dark = np.isfinite(value) and value < (low + high) / 2
        best = mark_best and value == (low if lower_is_better(metric) else high)
        axis.text(column, row, words, ha="center", va="center", fontsize=9, color="white" if dark else "black",
                  fontweight="bold" if best else "normal")  # fmt: skip
        if best:
            axis.add_patch(_frame(column, row))
    axis.set_yticks(range(len(ticks[0])), [str(tick) for tick in ticks[0]])
    axis.set_xticks(range(len(ticks[1])), [str(tick) for tick in ticks[1]])
    axis.set_ylabel(names[0])
    axis.set_xlabel(names[1])
    bar = figure.colorbar(image, label=metric + _unit(metric))
    _percent(bar.ax.yaxis, metric)
    figure.suptitle(title, fontsize=9)
    return figure


def _frame(column: int, row: int):
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, fill=False, edgecolor="#d1352b", linewidth=2)


def _label(table: Comparison, row: Row, width: int = 72) -> str:
    words = in_words(table, row)
    if len(words) > width:  # names of networks differ at their start and in their tag
        words = f"{words[: width - 25]}…{words[-24:]}"
    return f"{words} ({len(row.runs)})"


def _legend_inches(table: Comparison) -> float:
    return 0.6 + 0.062 * max(len(_label(table, row)) for row in table.rows[:SHOWN])


def _unit(metric: str) -> str:
    return ", %" if is_share(metric) else ""


def _percent(axis, metric: str) -> None:
    """Format ticks in percent if the values are fractions."""
    if is_share(metric):
        axis.set_major_formatter(lambda value, _: f"{100 * value:g}")


def _plain(axis) -> None:
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def _title(figure: Figure, table: Comparison, reading: str) -> None:
    shown = f" The best {SHOWN} of {len(table.rows)} rows." if len(table.rows) > SHOWN else ""
    head = table.title.split(":")[0]
    figure.suptitle(f"{head}\n{reading}{shown}", fontsize=9)
