"""``fgssl data list`` and ``fgssl data check``: which data sets there are, and whether a copy on disk is sound."""

import argparse
import inspect
from typing import Any, Literal, get_args, get_origin

from rich.console import Console

from fgssl.data.check import check, list_table
from fgssl.data.datasets import ALL, DataSet
from fgssl.errors import UserError

HELP = {
    "root": "folder of the data set (default: its official folder under $FGSSL_DATA)",
    "partial": "accept a copy whose counts differ from the published ones",
    "trainval": "count the official val part as training rows",
    "coarse_map": "JSON or CSV file that gives each class its coarse class",
    "boxes": "read the bounding boxes too",
}


def main(argv: list[str]) -> int:
    """Run ``fgssl data <argv>``.

    Returns:
        0, or 1 where a check found a fault. A wrong command line exits with status 2.
    """
    args = _parser().parse_args(argv)
    console = Console(highlight=False, markup=False)
    if args.command == "list":
        console.print(list_table())
        return 0
    cls = ALL[args.name]
    try:
        dataset = cls(**{option: getattr(args, option) for option in inspect.signature(cls).parameters})
        return 0 if check(dataset, console, args.sheet) else 1
    except UserError as error:
        console.print(f"fault: {error}", soft_wrap=True)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fgssl data", description="Data sets: what there is, and is it sound?")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="table of all data sets: layout, counts, where to get them, licence")
    check_parser = commands.add_parser("check", help="read every label file and every image of one data set")
    names = check_parser.add_subparsers(dest="name", required=True, metavar="name")
    for name, cls in ALL.items():
        options = names.add_parser(name, help=cls.folder)
        _add_options(options, cls)
        options.add_argument("--sheet", metavar="FILE.png", help="write a picture sheet: sample images of some classes")
    return parser


def _add_options(parser: argparse.ArgumentParser, cls: type[DataSet]) -> None:
    """Offer the constructor's arguments (root, partial, variant, ...) as options."""
    for option in inspect.signature(cls).parameters.values():
        settings: dict[str, Any] = {"default": option.default, "help": HELP.get(option.name)}
        if isinstance(option.default, bool):
            settings["action"] = argparse.BooleanOptionalAction
        elif get_origin(option.annotation) is Literal:
            settings["choices"] = get_args(option.annotation)
        elif isinstance(option.default, int):
            settings["type"] = int
        parser.add_argument(f"--{option.name.replace('_', '-')}", **settings)
