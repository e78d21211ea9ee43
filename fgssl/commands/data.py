"""``fgssl data list`` and ``fgssl data check``: the known data sets, and a check of a copy on disk."""

import argparse
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from jsonargparse._parameter_resolvers import get_signature_parameters
from rich.console import Console
from rich.table import Table

from fgssl.cli.command_parser import CommandParser, picture
from fgssl.data.check import SHOWN, Seen, check, list_table
from fgssl.data.datasets import ALL, DataSet
from fgssl.data.sheet import write_pairs
from fgssl.errors import UserError


def main(argv: list[str]) -> int:
    """Run ``fgssl data <argv>``.

    Returns:
        0, or 1 where a check found a fault.

    Raises:
        UserError: the command line is wrong.
    """
    if argv[:1] == ["check"]:  # CUB is the name of the class, cub that of the data set
        argv = ["check", *(name.lower() for name in argv[1:2]), *argv[2:]]
    if argv[:1] and argv[0].lower() in ALL:
        raise UserError(f"data: unknown command '{argv[0]}'. Did you mean 'fgssl data check {argv[0].lower()}'?")
    args = _parser().parse_args(argv)
    console = Console(highlight=False, markup=False)
    if args.command == "list":
        console.print(list_table())
        return 0
    if args.duplicate_sheet and not args.duplicates:
        raise UserError("--duplicate_sheet shows what --no-duplicates does not look for. Leave one of them out.")
    cls = ALL[args.name]
    try:
        dataset = cls(**{option.name: getattr(args, option.name) for option in get_signature_parameters(cls, None)})
        seen = check(dataset, console, args.sheet)
        if args.chart:
            from fgssl.report.distributions import draw_distributions

            console.print(f"chart: {draw_distributions(seen.index, args.chart)}", soft_wrap=True)
        if args.duplicates:
            show_duplicates(seen, console, args.duplicate_sheet)
        return 1 if seen.faults else 0
    except UserError as error:
        console.print(f"fault: {error}", soft_wrap=True)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="fgssl data", description="List the data sets, or check a copy on disk.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="table of all data sets: files, counts, source and licence")
    check_parser = commands.add_parser("check", help="read every label file and every image of one data set")
    names = check_parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, cls in ALL.items():
        options = names.add_parser(name, help=cls.folder)
        _add_options(options, cls)
        options.add_argument(
            "--sheet", type=picture, metavar="FILE.png", help="picture to write: images of some classes"
        )
        options.add_argument(
            "--chart",
            type=picture,
            metavar="FILE.png",
            help="picture to write: classes by number of images, and classes of each coarse class",
        )
        options.add_argument(
            "--duplicates",
            action=argparse.BooleanOptionalAction,
            default=True,
            help="look for test images that are also training images, or nearly; without a test part, for images that "
            "are there twice",
        )
        options.add_argument(
            "--duplicate_sheet",
            type=picture,
            metavar="FILE.png",
            help="picture to write: the first pairs of duplicates",
        )
    return parser


def show_duplicates(seen: Seen, console: Console, sheet: Path | None) -> None:
    """Print the test images that are also training images, or the images that are there twice; draw the first pairs.

    Args:
        seen: hashes and thumbnails of the images.
        console: console to print on.
        sheet: picture of the pairs to write, or None.
    """
    from fgssl.evaluation.duplicates import compares_parts, find_duplicates  # imports torch

    index, across = seen.index, compares_parts(seen.index)
    pairs = find_duplicates(index, seen.digests, seen.thumbnails_NT, console)
    exact = sum(pair.exact for pair in pairs)
    said = "test images that are also training images" if across else "pairs of equal images"
    none = "no test image is also a training image" if across else "no image is there twice"
    console.print(
        f"{said}: {exact:,} exact, {len(pairs) - exact:,} near (by thumbnail)"
        if pairs
        else f"{none} (by pixels and by thumbnail)",
        soft_wrap=True,
    )
    if not pairs:
        if sheet:
            console.print(f"{sheet} is not written: there are no pairs to show", soft_wrap=True)
        return
    table = Table(*(("test image", "training image") if across else ("image", "other image")), "correlation", "classes")
    for pair in pairs[:SHOWN]:
        names = [index.fine_names[f] if (f := index.fine[row]) >= 0 else "-" for row in (pair.row, pair.other)]
        classes = names[0] if names[0] == names[1] else f"{names[0]} / {names[1]}"
        value = "exact" if pair.exact else f"{pair.correlation:.4f}"
        table.add_row(str(index.paths[pair.row]), str(index.paths[pair.other]), value, classes)
    console.print(table)
    if len(pairs) > SHOWN:
        console.print(f"and {len(pairs) - SHOWN:,} more pairs")
    if sheet:
        write_pairs(index, [(pair.row, pair.other) for pair in pairs], sheet)
        console.print(f"picture of the pairs: {sheet}", soft_wrap=True)


def _add_options(parser: argparse.ArgumentParser, cls: type[DataSet]) -> None:
    """Offer the constructor's arguments (root, partial, variant, ...) as options, with the help of its docstring."""
    for option in get_signature_parameters(cls, None):
        settings: dict[str, Any] = {"default": option.default, "help": str(option.doc).replace("%", "%%")}
        if isinstance(option.default, bool):
            settings["action"] = argparse.BooleanOptionalAction
        elif get_origin(option.annotation) is Literal:
            settings["choices"] = get_args(option.annotation)
        elif isinstance(option.default, int | float):
            settings["type"] = type(option.default)
        spellings = dict.fromkeys((f"--{option.name}", f"--{option.name.replace('_', '-')}"))
        parser.add_argument(*spellings, **settings)
