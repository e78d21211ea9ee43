"""Tables and pictures of the finished cells of a sweep."""

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fgssl.commands.sweep_file import SEED, Sweep, experiment_name, name_of


def report(sweep: Sweep, folder: Path) -> None:
    """Print the tables of the finished cells and draw their pictures."""
    from fgssl.report.compare import chosen_metrics, compare
    from fgssl.report.runs import read_runs
    from fgssl.report.tables import write

    runs, faults = read_runs([str(folder)])
    metric = sweep.metric.removeprefix("test/")
    chosen_by_validation = metric.startswith("val/")
    pictures = {"": metric} | {f"_{step.name}": step.shows for step in sweep.then.values() if step.shows}
    metrics = [metric, metric.removeprefix("val/")] if chosen_by_validation else [metric]
    metrics += chosen_metrics(runs, None) if sweep.then else []
    tables, notes = compare(runs, list(dict.fromkeys([*metrics, *pictures.values()])))
    write(tables, "table", notes + [f"left out: {fault}" for fault in faults])

    axes = {option: values for option, values in sweep.axes.items() if len(values) > 1 and option != SEED}
    if not runs or len(axes) not in (1, 2):
        print(f"no picture: {len(axes)} options vary; a curve needs one, a heat map two.")
        return
    finished = {run.folder.name: run for run in runs}
    for suffix, metric in pictures.items():
        endings = [f"_{name}" for name, step in sweep.then.items() if f"_{step.name}" == suffix] or [""]
        cells = [name_of(cell) for cell in sweep.cells()]
        every = {cell: [finished[cell + end] for end in endings if cell + end in finished] for cell in cells}
        found = {cell: seeds for cell, seeds in every.items() if seeds}
        if len({repr(run.protocol) for seeds in found.values() for run in seeds}) > 1:
            print("no picture: the cells were evaluated with different protocols.")
        elif found:
            draw(sweep, axes, found, metric, folder, suffix)


def draw(sweep: Sweep, axes: dict[str, list], found: dict[str, list], metric: str, folder: Path, suffix: str) -> None:
    """Draw the curve of one varied option, or the heat map of two; the best cell is marked if ``val/`` chose it.

    Args:
        sweep: the sweep.
        axes: the options that vary, and their values.
        found: the finished runs, one a seed, by the name of their cell.
        metric: what is drawn.
        folder: the folder of the sweep.
        suffix: of the file, such as ``_probe``.
    """
    from fgssl.report.plots import curve, heat_map

    names = list(axes) if len(axes) == 2 else ["", *axes]
    rows, columns = (axes[name] if name else [""] for name in names)
    measured = {cell: [run.metric(metric) for run in seeds] for cell, seeds in found.items()}
    means = {cell: statistics.fmean(values) for cell, values in measured.items() if None not in values}
    values = cell_means(sweep, means, names, rows, columns)
    title = f"{folder.name}{suffix}: mean over seeds"
    numbers, best = numbers_of(columns) if len(axes) == 1 else [], metric.startswith("val/")
    if numbers:
        papers = printed_numbers({cell: seeds[0] for cell, seeds in found.items()}, metric)
        printed = cell_means(sweep, papers, names, rows, columns)
        figure = curve(numbers, values[0], printed[0], names[1], metric, title, mark_best=best)
    else:
        figure = heat_map(values, (names[0], names[1]), (rows, columns), metric, title, mark_best=best)
    path = folder / f"{'curve' if numbers else 'heatmap'}{suffix}.png"
    figure.savefig(path)
    print(f"picture: {path}")


def numbers_of(values: Sequence[Any]) -> list[float]:
    """Values of an axis as numbers: themselves, or those at the end of the files' names; empty if they are neither."""
    texts = [experiment_name(value) for value in values]
    found = [re.fullmatch(r"(.*?_)?(-?[\d.]+(?:e-?\d+)?)", text) for text in texts]
    if not all(found) or len({match[1] for match in found if match}) > 1:
        return []
    return [float(match[2]) for match in found if match]


def printed_numbers(found: dict, metric: str) -> dict[str, float]:
    """The paper's number of each cell that has one."""
    from fgssl.report.published import Number, published

    numbers = {name: published(run, metric) for name, run in found.items()}
    return {name: number.value for name, number in numbers.items() if isinstance(number, Number)}


def cell_means(sweep: Sweep, found: Mapping[str, float | None], names, rows, columns):
    """Means [rows, columns] over the cells with equal values of two options; NaN if none has finished."""
    import numpy as np

    sums: dict[tuple[int, int], list[float]] = {}
    for cell in sweep.cells():
        value = found.get(name_of(cell))
        if value is not None:
            place = (rows.index(cell.get(names[0], "")), columns.index(cell[names[1]]))
            sums.setdefault(place, []).append(value)
    means = np.full((len(rows), len(columns)), np.nan)
    for place, values in sums.items():
        means[place] = np.mean(values)
    return means
