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
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import Queue

from fgssl.cli.command_parser import CommandParser
from fgssl.cli.shipped import find
from fgssl.commands.sweep_file import Command, commands_of, read_sweep
from fgssl.commands.sweep_report import report
from fgssl.errors import UserError
from fgssl.run import DONE, GOING_ON, read_json, write_json

LINES = 8  # of a failed cell's log, shown at the end
# What a stopped run says goes on with it, by its own options; the path may be quoted.
CONTINUED = re.compile(r"""fit --ckpt_path[ =]("'"|'[^']*'|[^\s'])+""")
REFUSED = 2  # exit status of a command with a mistake of the user

running: set[subprocess.Popen] = set()  # the processes of cells
ended = threading.Event()  # set by SIGTERM: no further cell is run


def main(argv: list[str]) -> int:
    """Run ``fgssl sweep <argv>``."""
    args, flags = _parser().parse_known_args(argv)
    sweep = read_sweep(find(args.file))
    if args.metric:
        sweep = replace(sweep, metric=args.metric)
    folder = Path(args.runs) / (args.name or f"sweep_{sweep.name}")
    if args.then and not sweep.then:
        raise UserError(f"--then: nothing follows the fits of {args.file}.")
    commands = commands_of(sweep, folder, flags, shlex.split(args.then))
    if args.cell is not None:
        return run_one(commands, folder, args)
    done = {name for name, command in commands.items() if is_finished(folder / name, command.arguments)}
    print(f"{len(commands)} cells in {folder}, {len(done)} already finished.")
    if args.dry_run:
        for number, (name, command) in enumerate(commands.items()):
            print(f"cell {number}, {'finished' if name in done else 'to run'}: fgssl {shlex.join(command.arguments)}")
        return 0
    to_run = {name: command for name, command in commands.items() if name not in done}
    failed = run_cells({name: c.arguments for name, c in to_run.items() if c.follows is None}, folder, args.devices)
    later = {name: c.arguments for name, c in to_run.items() if c.follows and c.follows not in failed}
    failed += run_cells(later, folder, args.devices)
    if done or len(failed) < len(to_run):
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
        epilog="Further options, such as --trainer.max_epochs 2, are passed to each fgssl fit of the grid, those of "
        "--then to what follows it ('then' in the file). W&B runs a file without 'then' too: wandb sweep FILE, then "
        "wandb agent.",
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
        "--then",
        default="",
        metavar="OPTIONS",
        help="options of each command that follows a fit, in quotes: --then='--trainer.precision bf16-mixed'",
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


def is_finished(run: Path, arguments: Sequence[str]) -> bool:
    """Whether a cell has finished.

    Raises:
        UserError: the run was started, or resumed, with other options.
    """
    path = run / "results.json"
    if not path.is_file():
        return False
    results = read_json(path)
    ours = shlex.join(arguments)
    known = (ours, " ".join(arguments))  # of a version that quoted nothing
    first, *later = (told.partition(" ")[2] for told in (results.get("command", ""), *results.get("resumed_by", [])))
    for theirs in (first, *(told for told in later if not CONTINUED.fullmatch(told))):
        if theirs not in known:
            raise UserError(
                f"{run} was started with other options:\n  {theirs}\n  {ours}\n"
                "Give the sweep another --name, or the same options as before."
            )
    return results.get("status") in DONE


def run_one(commands: Mapping[str, Command], folder: Path, args: argparse.Namespace) -> int:
    """Run cell ``args.cell``, in place of this process: it receives the scheduler's signals and has its exit status.

    Cells that run at the same time on any machines share no file but the data cache, which is locked while it is built.

    Raises:
        UserError: there is no such cell, the fit that it follows has not finished, it was started with other options,
            or ``args.devices`` is set.
    """
    if args.devices:
        raise UserError("--cell and --devices exclude each other: a job runs its cell on the GPUs that it is given.")
    if not 0 <= args.cell < len(commands):
        raise UserError(f"--cell {args.cell}: {args.file} has {len(commands)} cells, 0 to {len(commands) - 1}.")
    names = list(commands)
    name, command = names[args.cell], commands[names[args.cell]]
    fit = command.follows
    if fit and not is_finished(folder / fit, commands[fit].arguments):
        raise UserError(
            f"--cell {args.cell} follows {folder / fit}, which has not finished: --cell {names.index(fit)}."
        )
    finished = is_finished(folder / name, command.arguments)
    state = "finished" if finished else "to run"
    print(f"cell {args.cell} of {len(commands)}, {state}: fgssl {shlex.join(command.arguments)}", flush=True)
    if finished or args.dry_run:
        return 0
    os.execv(sys.executable, [sys.executable, "-m", "fgssl", *command.arguments])


def run_cells(commands: dict[str, list[str]], folder: Path, devices: Sequence[str] | None) -> list[str]:
    """Run the cells, one at a time or one per GPU; returns the names of those that failed.

    Ctrl-C reaches the running cells too, SIGTERM is sent on to them: they write their checkpoints, no further cell is
    started, and this process ends after them.

    Raises:
        UserError: the first cell was refused before it began, such as for a misspelt option, which all cells have.
    """
    places: Sequence[str | None] = devices or [None]
    free: Queue[str | None] = Queue()
    for device in places:
        free.put(device)
    failed: list[str] = []
    refused: list[str] = []

    def run(numbered: tuple[int, str]) -> None:
        if refused or ended.is_set():
            return
        number, name = numbered
        device, began = free.get(), time.monotonic()
        try:
            status = run_cell(commands[name], folder / "logs" / f"{name}.txt", device)
        finally:
            free.put(device)
        if status:
            failed.append(name)
            if status != REFUSED:  # else it has said so itself, or the run is another process's
                note_death(folder / name / "results.json", status)
        said = f"failed with status {status}" if status else "finished"
        print(f"[{number}/{len(commands)}] {name}: {said} after {time.monotonic() - began:.0f} s", flush=True)
        if number == 1 and status == REFUSED and not (folder / name / "results.json").is_file():
            refused.append(name)

    pool = ThreadPoolExecutor(len(places))
    before = signal.signal(signal.SIGTERM, end_cells)
    try:
        list(pool.map(run, enumerate(commands, 1)))
    except KeyboardInterrupt:  # the running cells receive it too, and write their checkpoints
        print("Ctrl-C: no further cell is started. The same command goes on with the sweep.", flush=True)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        signal.signal(signal.SIGTERM, before)
    if ended.is_set():
        ended.clear()
        print("SIGTERM: no further cell is started. The same command goes on with the sweep.", flush=True)
        raise SystemExit(128 + signal.SIGTERM)
    if refused:
        reason = "\n".join(last_lines(folder / "logs" / f"{refused[0]}.txt"))
        raise UserError(f"the first cell was refused, so that no further one was started:\n{reason}")
    return failed


def end_cells(*_) -> None:
    """Handler of SIGTERM, which clusters and service managers send to this process alone: end the running cells."""
    ended.set()
    for process in list(running):
        process.terminate()


def run_cell(arguments: Sequence[str], log: Path, device: str | None) -> int:
    """Run ``fgssl`` in a process, with its output in ``log``; returns the exit status."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": device} if device is not None else {})
    with log.open("a") as file:
        line = [sys.executable, "-m", "fgssl", *arguments]
        process = subprocess.Popen(line, env=environment, stdout=file, stderr=file)
        running.add(process)
        if ended.is_set():  # SIGTERM came between the two lines before
            process.terminate()
        status = process.wait()
    running.discard(process)
    return status


def last_lines(log: Path, count: int = LINES) -> list[str]:
    """The last lines of a log that are not empty."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    return [line for line in text.splitlines() if line.strip()][-count:]


def note_death(results: Path, exit_status: int) -> None:
    """Write the status ``failed`` for a process that ended without doing so itself, such as by an abort."""
    content = read_json(results) if results.is_file() else {}
    if content.get("status") in GOING_ON:
        write_json(results, content | {"status": "failed", "error": f"the process ended with status {exit_status}"})
