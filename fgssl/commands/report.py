"""``fgssl report``: runs as a folder for the browser, with an explorer of their embeddings."""

import argparse
import shlex
from pathlib import Path

from fgssl.cli.command_parser import CommandParser
from fgssl.commands.compare import add_runs
from fgssl.errors import UserError
from fgssl.report.compare import chosen_metrics, compare
from fgssl.report.runs import read_runs

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

    from fgssl.report.browser import gathered, write_report

    if args.embed:
        missing = [shown.run for shown in gathered(runs) if shown.embedded is None]
        for run in missing:
            embed(run.folder)
        runs, faults = read_runs(args.runs)
    tables, notes = compare(runs, metrics)
    page = write_report(
        runs,
        tables,
        notes + [f"left out: {fault}" for fault in faults],
        Path(args.out),
        command=shlex.join(["fgssl", "report", *argv]),
        points=args.points,
        say=print,
    )
    print(f"report: {page}")
    return 0


def embed(folder: Path) -> None:
    """Write the embeddings of a run by ``fgssl embed``, if it has a checkpoint."""
    from fgssl.checkpoint import checkpoint_file
    from fgssl.commands.embed import main as embed_main

    try:
        checkpoint_file(str(folder))
    except UserError:
        return  # the page says that the run has no embeddings
    embed_main(["--ckpt_path", str(folder)])


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
