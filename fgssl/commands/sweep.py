"""``fgssl sweep``: fit over a grid, on this machine. The same file is a sweep of W&B (``wandb sweep FILE``).

A cell is a run of ``fgssl fit`` in ``<runs>/<sweep>/<cell>/``. One that has finished is not run again; one that was
stopped goes on from its last checkpoint.
"""

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

from fgssl.cli.command_parser import CommandParser
from fgssl.cli.compose import read_yaml
from fgssl.errors import UserError

SEED = "seed_everything"  # not an axis: the picture shows means over the seeds


@dataclass(frozen=True)
class Sweep:
    """A grid of runs.

    Attributes:
        name: that of its file.
        fit: arguments of ``fgssl fit`` that all cells share.
        axes: the options that vary, with their values.
        metric: what the picture shows.
    """

    name: str
    fit: list[str]
    axes: dict[str, list[Any]]
    metric: str

    def cells(self) -> list[dict[str, Any]]:
        """Every combination of values."""
        return [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values())]


def main(argv: list[str]) -> int:
    """Run ``fgssl sweep <argv>``."""
    args, flags = _parser().parse_known_args(argv)
    sweep = read_sweep(Path(args.file))
    folder = Path(args.runs) / (args.name or f"sweep_{sweep.name}")
    commands = {name_of(cell): command(sweep, folder, cell, flags) for cell in sweep.cells()}
    done = {name for name, flags in commands.items() if is_finished(folder / name, flags)}
    print(f"{len(commands)} cells in {folder}, {len(done)} finished before.")
    if args.dry_run:
        for name, arguments in commands.items():
            print(f"{'finished' if name in done else 'to run'}: fgssl {shlex.join(arguments)}")
        return 0
    failed = run_cells({name: flags for name, flags in commands.items() if name not in done}, folder, args.devices)
    report(sweep, folder)
    for name in failed:
        print(f"failed: {name}; what it said is in {folder / 'logs' / f'{name}.txt'}", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="fgssl sweep",
        description="Fit over the grid of a sweep file; finished cells are skipped. Draws a heat map.",
        epilog="Further options go to every fgssl fit, such as --trainer.max_epochs 2. W&B runs the same file: "
        "wandb sweep FILE, then wandb agent.",
    )
    parser.add_argument("file", help="a W&B sweep file of method grid, such as experiments/sweeps/maskcon_digits.yaml")
    parser.add_argument("--runs", default="runs", metavar="FOLDER", help="root of the run folders; default runs")
    parser.add_argument("--name", help="folder of the sweep below it; default sweep_<file>")
    parser.add_argument(
        "--devices", nargs="+", metavar="GPU", help="GPUs, a cell each at a time; default one after another"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands and what is finished")
    return parser


def read_sweep(path: Path) -> Sweep:
    """Read a W&B sweep file of method grid whose command is ``fgssl fit``.

    Raises:
        UserError: it is not one.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or not content.get("parameters"):
        raise UserError(f"{path}: a sweep has 'parameters': option -> {{values: [...]}}.")
    if content.get("method") != "grid":
        raise UserError(f"{path}: method is {content.get('method')}; here it is grid (W&B runs the others).")
    told = [str(word) for word in content.get("command") or []]
    if told[:2] != ["fgssl", "fit"] or told[-1] != "${args}":
        raise UserError(f"{path}: command is [fgssl, fit, ..., '${{args}}'], not {told}.")
    axes = {}
    for option, spec in content["parameters"].items():
        if not isinstance(spec, dict) or not {"value", "values"} & spec.keys():
            raise UserError(f"{path}: parameters.{option} has neither 'value' nor 'values'.")
        axes[option] = spec["values"] if "values" in spec else [spec["value"]]
    fit = told[2:-1]
    if "--logger" in fit:  # for W&B's agent; here each cell would be an offline run of W&B
        place = fit.index("--logger")
        del fit[place : place + 2]
    return Sweep(path.stem, fit, axes, (content.get("metric") or {}).get("name", "test/recall@1"))


def name_of(cell: Mapping[str, Any]) -> str:
    """``weight0.5_tau0.1``: the folder of a cell."""
    words = [f"{option.rsplit('.', 1)[-1]}{value}" for option, value in cell.items() if not option.startswith("run.")]
    return "_".join(words).replace("/", "-").replace(" ", "")


def command(sweep: Sweep, folder: Path, cell: Mapping[str, Any], flags: Sequence[str]) -> list[str]:
    """The arguments of ``fgssl`` for a cell."""
    where = ["--run.root", str(folder.parent), "--run.experiment", folder.name, "--run.name", name_of(cell)]
    varied = [f"--{option}={'null' if value is None else value}" for option, value in cell.items()]
    return ["fit", *sweep.fit, *where, "--run.resume", "true", *varied, *flags]


def is_finished(run: Path, arguments: Sequence[str]) -> bool:
    """Whether a cell has been run to its end.

    Raises:
        UserError: by another command, so that its number would not belong into this grid.
    """
    path = run / "results.json"
    if not path.is_file():
        return False
    results = json.loads(path.read_text())
    theirs, ours = results.get("command", "").partition(" ")[2], " ".join(arguments)
    if theirs != ours:
        raise UserError(
            f"{run} was begun by another command:\n  {theirs}\n  {ours}\n"
            "Give this sweep another --name, or the same options as before."
        )
    return results.get("status") == "finished"


def run_cells(commands: dict[str, list[str]], folder: Path, devices: Sequence[str] | None) -> list[str]:
    """Run the cells, one after another or one a GPU at a time; returns those that failed."""
    places: Sequence[str | None] = devices or [None]
    free: Queue[str | None] = Queue()
    for device in places:
        free.put(device)
    failed = []

    def run(numbered: tuple[int, str]) -> None:
        number, name = numbered
        device, began = free.get(), time.monotonic()
        try:
            status = run_cell(commands[name], folder / "logs" / f"{name}.txt", device)
        finally:
            free.put(device)
        if status:
            failed.append(name)
        said = f"failed with status {status}" if status else "finished"
        print(f"[{number}/{len(commands)}] {name}: {said} after {time.monotonic() - began:.0f} s", flush=True)

    with ThreadPoolExecutor(len(places)) as pool:
        list(pool.map(run, enumerate(commands, 1)))
    return failed


def run_cell(arguments: Sequence[str], log: Path, device: str | None) -> int:
    """One ``fgssl`` in a process of its own, its output in ``log``; returns its exit status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": device} if device is not None else {})
    with log.open("a") as file:
        done = subprocess.run([sys.executable, "-m", "fgssl", *arguments], env=environment, stdout=file, stderr=file)
    return done.returncode


def report(sweep: Sweep, folder: Path) -> None:
    """Print the table of the finished cells and draw their heat map."""
    from fgssl.report.compare import compare
    from fgssl.report.runs import read_runs
    from fgssl.report.tables import write

    runs, faults = read_runs([str(folder)])
    metric = sweep.metric.removeprefix("test/")
    tables, notes = compare(runs, [metric])
    write(tables, "table", notes + [f"left out: {fault}" for fault in faults])

    axes = {option: values for option, values in sweep.axes.items() if len(values) > 1 and option != SEED}
    if not runs or len(axes) not in (1, 2):
        print(f"no heat map: {len(axes)} options vary, a picture has one or two.")
        return
    if len(tables) > 1:
        print("no heat map: the cells were evaluated by different protocols.")
        return
    from fgssl.report.plots import heat_map

    names = list(axes) if len(axes) == 2 else ["", *axes]
    rows, columns = (axes[name] if name else [""] for name in names)
    values = cell_means(sweep, {run.folder.name: run.metric(metric) for run in runs}, names, rows, columns)
    figure = heat_map(values, (names[0], names[1]), (rows, columns), metric, f"{folder.name}: mean over seeds")
    figure.savefig(folder / "heatmap.png")
    print(f"picture: {folder / 'heatmap.png'}")


def cell_means(sweep: Sweep, found: Mapping[str, float | None], names, rows, columns):
    """[rows, columns] means over the cells that share two axes' values; NaN where none has finished."""
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
