"""``fgssl compare``: tables and plots of runs."""

import argparse
import sys
from pathlib import Path

from fgssl.cli.command_parser import CommandParser
from fgssl.report.compare import DEFAULT_METRICS, chosen_metrics, compare
from fgssl.report.runs import read_runs

FORMATS = ("table", "markdown", "csv", "latex")


def main(argv: list[str]) -> int:
    """Run ``fgssl compare <argv>``."""
    args = _parser().parse_args(argv)
    runs, faults = read_runs(args.runs)
    metrics = chosen_metrics(runs, args.metric)
    tables, notes = compare(runs, metrics, args.baseline)

    from fgssl.report.tables import write

    write(tables, args.format, notes + [f"left out: {fault}" for fault in faults])
    if args.plots and runs:
        from fgssl.report.plots import draw_comparison

        for path in draw_comparison(tables, Path(args.plots)):
            if args.format == "table":
                print(f"picture: {path}")
    if args.wandb and tables:
        from fgssl.report.dashboard import save_comparison

        print(save_comparison(args.wandb, tables), file=sys.stdout if args.format == "table" else sys.stderr)
    return 0 if runs else 1


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="fgssl compare",
        description="Compare runs: one table per data set and protocol, with means over seeds.",
    )
    add_runs(parser)
    parser.add_argument(
        "--baseline",
        metavar="METHOD",
        help="show the seconds of a training epoch, and by how much it takes longer than one of this method of the "
        "table on as many equal GPUs, cores and processes",
    )
    parser.add_argument("--format", choices=FORMATS, default="table", help="format of the tables; default table")
    parser.add_argument("--plots", metavar="FOLDER", help="folder for plots: bars, Recall@K curves and training curves")
    parser.add_argument(
        "--wandb",
        metavar="[ENTITY/]PROJECT",
        nargs="?",
        const="fgssl",
        help="create or update the report 'fgssl compare' in this W&B project; default project fgssl",
    )
    return parser


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Add the runs that are compared and the metrics that are shown."""
    parser.add_argument("runs", nargs="+", help="run folders, or folders that contain them")
    parser.add_argument(
        "--metric", nargs="+", metavar="NAME", help=f"metrics in the tables; default {' '.join(DEFAULT_METRICS)}"
    )
