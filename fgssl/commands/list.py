"""``fgssl list``: the methods, experiments, data sets and backbones, one line each, and what has been measured."""

import argparse
import fnmatch
import itertools
import os
import re
from pathlib import Path

from fgssl.cli.command_parser import CommandParser
from fgssl.cli.compose import class_of, compose, network_of
from fgssl.cli.shipped import experiments
from fgssl.errors import UserError

KINDS = {
    "methods": "methods and tasks: paper, and the experiments with a measured result",
    "experiments": "experiments by name: row of a paper's table, and whether it was run",
    "data": "data sets: size, coarse classes, and whether they are on this machine",
    "backbones": "timm networks: image size and names of the weights; without a filter those of the experiments",
}
Row = tuple[str, str, str]  # columns of a line


def main(argv: list[str]) -> int:
    """Run ``fgssl list <argv>``."""
    args = _parser().parse_args(argv)
    rows = {"methods": methods, "experiments": experiment_rows, "data": data, "backbones": backbones}[args.kind](
        args.filter
    )
    if not rows:
        raise UserError(f"no {args.kind} with '{args.filter}' in the name. fgssl list {args.kind} has all of them.")
    print_rows(rows)
    if args.kind == "methods":
        print("\nWhat the methods do on photographs: docs/results.md.")
    if args.kind == "experiments" and not args.filter:
        print("\nMore rows of the papers' tables: fgssl list experiments ablations, or baselines.")
        print("Grids for fgssl sweep: fgssl list experiments sweeps")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="fgssl list",
        description="List methods, experiments, data sets or backbones, one line each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {kind:<12} {text}" for kind, text in KINDS.items()),
    )
    parser.add_argument("kind", choices=tuple(KINDS), help="what to list")
    parser.add_argument("filter", nargs="?", default="", help="part of a name, or a pattern such as 'vit_*'")
    return parser


def print_rows(rows: list[Row]) -> None:
    """Print rows as columns; the last column is not padded."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def matches(name: str, wanted: str) -> bool:
    """Whether a name contains ``wanted`` or fits it as a pattern, in any case."""
    name, wanted = name.lower(), wanted.lower()
    return wanted in name or fnmatch.fnmatchcase(name, wanted)


# ---- experiments -----------------------------------------------------------------------------------------------------


def experiment_rows(wanted: str) -> list[Row]:
    """Name of each experiment, whether it was run, and its result or its row of the paper.

    Args:
        wanted: filter of names; empty: the experiments of the top folder.
    """
    files = experiments() | (experiments(sweeps=True) if "sweep" in wanted else {})
    chosen = {name: path for name, path in files.items() if (matches(name, wanted) if wanted else "/" not in name)}
    rows = []
    for name, path in chosen.items():
        status, result = state(path)
        rows.append((name, status, result or paper_row(path)))
    return rows


def header(path: Path) -> str:
    """The comment lines at the beginning of an experiment."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return "\n".join(line.lstrip("# ") for line in lines)


def paper_row(path: Path) -> str:
    """``run.paper`` of an experiment, or the first line of its header."""
    paper = None if "sweeps" in path.parts else (compose([path]).get("run") or {}).get("paper")
    return str(paper) if paper else header(path).partition("\n")[0]


def state(path: Path) -> tuple[str, str]:
    """Whether an experiment was run, and the sentence of its header that begins with "Ours", which has our result."""
    text = header(path)
    ours = re.search(r"(?:^|\.\s)Ours\b(.*?)\.(?=\s|$)", text, re.DOTALL | re.MULTILINE)
    if ours:
        return "measured", " ".join(ours[1].split()).lstrip(", :")
    return ("not run at full scale" if "Not run" in text else "runs"), ""


# ---- methods ---------------------------------------------------------------------------------------------------------


def methods(wanted: str) -> list[Row]:
    """Name, first line of the docstring, and the measured experiments of each method and task."""
    import fgssl.methods
    import fgssl.tasks  # noqa: F401  (import registers the short names of the classes)
    from fgssl.methods.registry import known_methods

    found: dict[str, list[str]] = {}
    for name, path in experiments().items():
        if state(path)[0] == "measured":
            found.setdefault(str(class_of(compose([path]).get("model"))[0]), []).append(name)
    ours = {name: cls for name, cls in known_methods().items() if cls.__module__.startswith("fgssl.")}
    rows = []
    for name, cls in sorted(ours.items(), key=lambda item: (item[1].__module__.startswith("fgssl.tasks"), item[0])):
        if matches(name, wanted):
            what = (cls.__doc__ or "").strip().splitlines()[0].replace("``", "")
            rows.append((name, what, f"measured: {', '.join(found[name])}" if name in found else ""))
    return rows


# ---- data ------------------------------------------------------------------------------------------------------------


def data(wanted: str) -> list[Row]:
    """Name, published size, coarse classes, and place on this machine of each data set."""
    from fgssl.data.datasets import ALL

    rows = []
    for cls in ALL.values():
        if matches(cls.__name__, wanted):
            published, dataset = cls.published, cls()
            size = "counted on the disk"
            if published:
                size = f"{sum(published.splits.values()):,} images"
                size += f", {published.fine:,} classes" if published.fine else ""
                size += f", {published.coarse} coarse" if published.coarse else ""
            try:
                dataset.check_files()
                where = f"in {dataset.root}" if cls.layout else "needs no files"
            except UserError:
                where = "not on this machine" if "FGSSL_DATA" in os.environ else "not in data/ (FGSSL_DATA is not set)"
            rows.append((cls.__name__, size, where))
    return rows


# ---- backbones -------------------------------------------------------------------------------------------------------


def backbones(wanted: str) -> list[Row]:
    """Name, image size and weights of timm networks; without a filter those of the experiments."""
    from fgssl.nn.backbones import timm_with_ours

    timm = timm_with_ours()
    names = [name for name in timm.list_models() if matches(name, wanted)] if wanted else networks_of_experiments()
    rows = []
    for name in names:
        config = timm.get_pretrained_cfg(name)
        size = f"{config.input_size[-1]} px" if config else "-"
        tags = sorted(tag.partition(".")[2] for tag in timm.list_pretrained(f"{name}.*"))
        rows.append((name, size, f"weights: {', '.join(tags)}" if tags else "no weights in timm"))
    return rows


def networks_of_experiments() -> list[str]:
    """The timm networks that the experiments train, without the tag of their weights."""
    names = set()
    for path in experiments().values():
        backbone = class_of(compose([path]).get("model"))[1].get("backbone")
        if isinstance(backbone, dict) and "name" in backbone:
            names.add(network_of(str(backbone["name"])))
    return sorted(names)
