"""``fgssl report``: runs as a folder for the browser, with an explorer of their embeddings."""

import argparse
import shlex
from pathlib import Path

from fgssl.cli.command_parser import CommandParser
from fgssl.commands.compare import add_runs
from fgssl.errors import UserError
from fgssl.report.compare import chosen_metrics, compare
from fgssl.report.runs import TASKS, RunFolder, read_runs

POINTS = 10_000  # images in a map: t-SNE takes about 10 s for 3,000 and a minute for 8,000


def main(argv: list[str]) -> int:
    """Run ``fgssl report <argv>``."""
    args = _parser().parse_args(argv)
    if args.points < 0:
        raise UserError(f"--points is {args.points}; it must be 0 (all images) or more.")
    runs, faults = read_runs(args.runs)
    if not runs:
        raise UserError(f"no finished run at {', '.join(args.runs)}. {' '.join(faults)}".strip())
    metrics = chosen_metrics(runs, args.metric)

    from fgssl.report.browser import check_place, gathered, write_report

    check_place(Path(args.out))
    without: list[str] = []
    if args.embed:
        without = [fault for shown in gathered(runs) if shown.embedded is None and (fault := embed(shown.run))]
        runs, faults = read_runs(args.runs)
    tables, notes = compare(runs, metrics)
    page = write_report(
        runs,
        tables,
        notes + [f"left out: {fault}" for fault in faults] + without,
        Path(args.out),
        command=shlex.join(["fgssl", "report", *argv]),
        points=args.points,
        say=print,
    )
    print(f"report: {page}")
    return 0


def embed(run: RunFolder) -> str | None:
    """Write the embeddings of a run by ``fgssl embed``, if it can have any; says why not if that is refused."""
    from fgssl.checkpoint import checkpoint_file
    from fgssl.commands.embed import main as embed_main

    if run.results["method"] in TASKS:
        return None
    try:
        checkpoint_file(str(run.folder))
    except UserError:
        return None  # the page says that the run has no embeddings
    try:
        embed_main(["--ckpt_path", str(run.folder), "--run.resume", "true"])  # or else it refuses unfinished ones
    except UserError as fault:
        return f"no embeddings of {run.folder}: {fault}"
    return None


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="fgssl report",
        description="Write a folder for the browser: tables, curves, pictures, and a map of the embeddings with their "
        "photographs and nearest neighbours. It needs no server and no network.",
        epilog="A run needs embeddings for its map: fgssl embed --ckpt_path RUN, or --embed. Other pictures in a run "
        "folder, such as that of fgssl maps --out RUN/gradcam.png, are shown too.",
    )
    add_runs(parser)
    parser.add_argument(
        "--out",
        default="report",
        metavar="FOLDER",
        help="folder to write, an earlier report is replaced; default report",
    )
    parser.add_argument(
        "--points",
        type=int,
        default=POINTS,
        metavar="N",
        help=f"most images in a map, drawn at random; 0: all; default {POINTS:,}",
    )
    parser.add_argument("--embed", action="store_true", help="run fgssl embed for runs that have no embeddings")
    return parser
