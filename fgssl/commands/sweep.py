"""``fgssl sweep``: fit over a grid of options. Reads W&B sweep files (``wandb sweep FILE``).

Each cell of the grid is a run of ``fgssl fit`` in ``<runs>/<sweep>/<cell>/``. Finished cells are skipped, interrupted
ones resume from their last checkpoint. With ``--cell N`` one cell is run, as a job of any scheduler.

``then`` in the file names what follows each fit, such as its probe or a detector that starts from it. Each of these is
a cell too, ``<runs>/<sweep>/<cell>_<name>/``, and begins when the fit has finished::

    then:
      probe: {command: [fgssl, probe, --ckpt_path, "${run}"], shows: top1}

``${run}`` is the run folder of the fit, ``shows`` a metric of which a picture is drawn, and ``seeds: 5`` runs the
command with the seeds 0 to 4, ``<cell>_<name>_seed0`` and so on.
"""

import argparse
import itertools
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Queue
from typing import Any

from fgssl.cli.command_parser import CommandParser
from fgssl.cli.compose import read_yaml
from fgssl.cli.shipped import find
from fgssl.errors import UserError
from fgssl.run import GOING_ON, write_json

LINES = 8  # of a failed cell's log, shown at the end
RUN = "${run}"  # the run folder of the fit, in a command that follows it
FOLLOWING = {"fit": True, "probe": True, "embed": False}  # commands that may follow a fit: whether they resume
SEED = "seed_everything"  # not an axis of the heat map, which shows means over seeds


@dataclass(frozen=True)
class Step:
    """A command that follows each fit of a sweep.

    Attributes:
        name: its name in the file; a step of several seeds is one of them a seed.
        arguments: of ``fgssl``, with ``RUN`` where the run folder of the fit stands.
        shows: metric of its picture, or None.
    """

    name: str
    arguments: list[str]
    shows: str | None


@dataclass(frozen=True)
class Sweep:
    """A grid of runs.

    Attributes:
        name: name of the sweep file.
        fit: arguments of ``fgssl fit`` for all cells.
        axes: varied options and their values.
        metric: metric of table and heat map. A validation metric (``val/...``) marks the best cell. Any other is
            of the test part, which chooses nothing: the cells are shown as a paper's table shows them.
        then: what follows each fit, by the end of its run folder's name.
    """

    name: str
    fit: list[str]
    axes: dict[str, list[Any]]
    metric: str
    then: dict[str, Step] = field(default_factory=dict)

    def cells(self) -> list[dict[str, Any]]:
        """All combinations of values."""
        return [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values())]


def main(argv: list[str]) -> int:
    """Run ``fgssl sweep <argv>``."""
    args, flags = _parser().parse_known_args(argv)
    sweep = read_sweep(find(args.file))
    if args.metric:
        sweep = replace(sweep, metric=args.metric)
    folder = Path(args.runs) / (args.name or f"sweep_{sweep.name}")
    fits = {name_of(cell): command(sweep, folder, cell, flags) for cell in sweep.cells()}
    commands = fits | following(sweep, folder, fits)
    if args.cell is not None:
        refuse_early_cell(sweep, folder, fits, args.cell)
        return run_one(commands, folder, args)
    done = {name for name, flags in commands.items() if is_finished(folder / name, flags)}
    print(f"{len(commands)} cells in {folder}, {len(done)} already finished.")
    if args.dry_run:
        for number, (name, arguments) in enumerate(commands.items()):
            print(f"cell {number}, {'finished' if name in done else 'to run'}: fgssl {shlex.join(arguments)}")
        return 0
    failed = run_cells({name: flags for name, flags in fits.items() if name not in done}, folder, args.devices)
    trained = [name for name in fits if name not in failed]
    later = {name: flags for name, flags in following(sweep, folder, trained).items() if name not in done}
    failed += run_cells(later, folder, args.devices)
    report(sweep, folder)
    for name in failed:
        log = folder / "logs" / f"{name}.txt"
        print(f"failed: {name}; the last lines of {log}:", file=sys.stderr)
        for line in last_lines(log):
            print(f"    {line}", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="fgssl sweep",
        description="Run fgssl fit over the grid of a sweep file, skipping finished cells, and draw a heat map.",
        epilog="Further options, such as --trainer.max_epochs 2, are passed to each fgssl fit of the grid, not to what "
        "follows it ('then' in the file). W&B runs a file without 'then' too: wandb sweep FILE, then wandb agent.",
    )
    parser.add_argument("file", help="W&B sweep file with method grid, or a name of ours such as sweeps/maskcon_digits")
    parser.add_argument("--runs", default="runs", metavar="FOLDER", help="folder of all runs; default runs")
    parser.add_argument("--name", help="name of the folder of the sweep in --runs; default sweep_<file>")
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="metric of table and heat map, such as val/recall@1 or map; default: that of the file, else recall@1 of "
        "the test part",
    )
    parser.add_argument(
        "--devices",
        nargs="+",
        metavar="GPU",
        help="GPUs that run one cell each in parallel; default: one cell at a time",
    )
    parser.add_argument(
        "--cell",
        type=int,
        metavar="N",
        help="run only this cell, from 0, as --dry_run numbers them; its output is not redirected. For job arrays: see "
        "experiments/cluster/sweep.sbatch",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print the commands and which cells are finished",
    )
    return parser


def read_sweep(path: Path) -> Sweep:
    """Read a W&B sweep file with method grid and command ``fgssl fit``.

    Raises:
        UserError: the file has another form.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or not content.get("parameters"):
        raise UserError(f"{path}: 'parameters' is missing: a mapping of options to {{values: [...]}}.")
    if content.get("method") != "grid":
        raise UserError(
            f"{path}: method is {content.get('method')}; fgssl sweep runs grid only (W&B runs all methods)."
        )
    told = [str(word) for word in content.get("command") or []]
    if told[:2] != ["fgssl", "fit"] or told[-1] != "${args}":
        raise UserError(f"{path}: command is {told}; it must be [fgssl, fit, ..., '${{args}}'].")
    axes = {}
    for option, spec in content["parameters"].items():
        if not isinstance(spec, dict) or not {"value", "values"} & spec.keys():
            raise UserError(f"{path}: parameters.{option} has neither 'value' nor 'values'.")
        axes[option] = spec["values"] if "values" in spec else [spec["value"]]
    fit = told[2:-1]
    if "--logger" in fit:  # for W&B's agent; without it each cell would be an offline W&B run
        place = fit.index("--logger")
        del fit[place : place + 2]
    then: dict[str, Step] = {}
    for name, step in (content.get("then") or {}).items():
        then |= read_steps(path, name, step)
    return Sweep(path.stem, fit, axes, (content.get("metric") or {}).get("name", "test/recall@1"), then)


def read_steps(path: Path, name: str, step: Any) -> dict[str, Step]:
    """Read an entry of ``then``: one step, or one for each of its seeds.

    Raises:
        UserError: it has another form.
    """
    told = [str(word) for word in step.get("command") or []] if isinstance(step, dict) else []
    if told[:1] != ["fgssl"] or told[1:2] == [] or told[1] not in FOLLOWING or not any(RUN in word for word in told):
        raise UserError(
            f"{path}: then.{name}.command is {told}; it must be [fgssl, {' or '.join(FOLLOWING)}, ...] and name the "
            f"run folder of the fit, '{RUN}'."
        )
    if "seeds" not in step:
        return {name: Step(name, told[1:], step.get("shows"))}
    if not isinstance(step["seeds"], int) or step["seeds"] < 1:
        raise UserError(f"{path}: then.{name}.seeds is {step['seeds']}; it must be a number of seeds, 1 or more.")
    return {
        f"{name}_seed{seed}": Step(name, [*told[1:], f"--{SEED}", str(seed)], step.get("shows"))
        for seed in range(step["seeds"])
    }


def name_of(cell: Mapping[str, Any]) -> str:
    """Folder name of a cell, such as ``weight0.5_tau0.1``; of an experiment file its name."""
    words = [
        Path(str(value)).stem if option == "config" else f"{option.rsplit('.', 1)[-1]}{value}"
        for option, value in cell.items()
        if not option.startswith("run.")
    ]
    return "_".join(words).replace("/", "-").replace(" ", "")


def command(sweep: Sweep, folder: Path, cell: Mapping[str, Any], flags: Sequence[str]) -> list[str]:
    """Arguments of ``fgssl`` for a cell."""
    where = ["--run.root", str(folder.parent), "--run.experiment", folder.name, "--run.name", name_of(cell)]
    varied = [f"--{option}={'null' if value is None else value}" for option, value in cell.items()]
    return ["fit", *sweep.fit, *where, "--run.resume", "true", *varied, *flags]


def following(sweep: Sweep, folder: Path, fits: Iterable[str]) -> dict[str, list[str]]:
    """Arguments of ``fgssl`` for what follows the fits of these names, by the name of its run folder."""
    commands = {}
    for fit, (name, step) in itertools.product(fits, sweep.then.items()):
        told = [word.replace(RUN, str(folder / fit)) for word in step.arguments]
        where = ["--run.root", str(folder.parent), "--run.experiment", folder.name, "--run.name", f"{fit}_{name}"]
        commands[f"{fit}_{name}"] = [*told, *where, *(["--run.resume", "true"] if FOLLOWING[told[0]] else [])]
    return commands


def is_finished(run: Path, arguments: Sequence[str]) -> bool:
    """Whether a cell has finished.

    Raises:
        UserError: the run was started with other options.
    """
    path = run / "results.json"
    if not path.is_file():
        return False
    results = json.loads(path.read_text())
    theirs, ours = results.get("command", "").partition(" ")[2], " ".join(arguments)
    if theirs != ours:
        raise UserError(
            f"{run} was started with other options:\n  {theirs}\n  {ours}\n"
            "Give the sweep another --name, or the same options as before."
        )
    return results.get("status") == "finished"


def refuse_early_cell(sweep: Sweep, folder: Path, fits: Mapping[str, list[str]], cell: int) -> None:
    """Refuse a cell whose fit has not finished.

    Raises:
        UserError: names the cell of the fit.
    """
    later = [fit for fit in fits for _ in sweep.then]
    fit = later[cell - len(fits)] if len(fits) <= cell < len(fits) + len(later) else None
    if fit and not is_finished(folder / fit, fits[fit]):
        raise UserError(
            f"--cell {cell} follows {folder / fit}, which has not finished: --cell {list(fits).index(fit)}."
        )


def run_one(commands: Mapping[str, list[str]], folder: Path, args: argparse.Namespace) -> int:
    """Run cell ``args.cell``, in place of this process: it receives the scheduler's signals and has its exit status.

    Cells that run at the same time on any machines share no file but the data cache, which is locked while it is built.

    Raises:
        UserError: there is no such cell, or it was started with other options, or ``args.devices`` is set.
    """
    if args.devices:
        raise UserError("--cell and --devices exclude each other: a job runs its cell on the GPUs that it is given.")
    if not 0 <= args.cell < len(commands):
        raise UserError(f"--cell {args.cell}: {args.file} has {len(commands)} cells, 0 to {len(commands) - 1}.")
    name = list(commands)[args.cell]
    arguments, finished = commands[name], is_finished(folder / name, commands[name])
    state = "finished" if finished else "to run"
    print(f"cell {args.cell} of {len(commands)}, {state}: fgssl {shlex.join(arguments)}", flush=True)
    if finished or args.dry_run:
        return 0
    os.execv(sys.executable, [sys.executable, "-m", "fgssl", *arguments])


def run_cells(commands: dict[str, list[str]], folder: Path, devices: Sequence[str] | None) -> list[str]:
    """Run the cells, one at a time or one per GPU; returns the names of those that failed."""
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
            note_death(folder / name / "results.json", status)
        said = f"failed with status {status}" if status else "finished"
        print(f"[{number}/{len(commands)}] {name}: {said} after {time.monotonic() - began:.0f} s", flush=True)

    pool = ThreadPoolExecutor(len(places))
    try:
        list(pool.map(run, enumerate(commands, 1)))
    except KeyboardInterrupt:  # the running cells receive it too, and write their checkpoints
        print("Ctrl-C: no further cell is started. The same command goes on with the sweep.", flush=True)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return failed


def run_cell(arguments: Sequence[str], log: Path, device: str | None) -> int:
    """Run ``fgssl`` in a process, with its output in ``log``; returns the exit status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": device} if device is not None else {})
    with log.open("a") as file:
        done = subprocess.run([sys.executable, "-m", "fgssl", *arguments], env=environment, stdout=file, stderr=file)
    return done.returncode


def last_lines(log: Path, count: int = LINES) -> list[str]:
    """The last lines of a log that are not empty."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    return [line for line in text.splitlines() if line.strip()][-count:]


def note_death(results: Path, exit_status: int) -> None:
    """Write the status ``failed`` for a process that ended without doing so itself, such as by an abort."""
    content = json.loads(results.read_text()) if results.is_file() else {}
    if content.get("status") in GOING_ON:
        write_json(results, content | {"status": "failed", "error": f"the process ended with status {exit_status}"})


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
    texts = [Path(str(value)).stem if isinstance(value, str) else str(value) for value in values]
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
