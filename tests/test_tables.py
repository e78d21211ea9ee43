"""The page of every table and figure: it is whole, and each of its commands resolves."""

import importlib
import re
import shlex

import pytest

from fgssl.cli import application
from fgssl.cli.compose import split_config_files
from fgssl.cli.shipped import find, root
from fgssl.commands.sweep_file import name_of, read_sweep
from fgssl.errors import UserError
from fgssl.report.published import all_rows
from tests import tables
from tests.recipes import PAPERS, lookup

ROWS = tables.read()
COMMANDS = {command: row for row in ROWS for command in row.commands}
FIGURES = {"maskcon": 6, "obd_sd": 1, "cmd": 7, "flsl": 6, "mls": 6}  # of the text, and of MLS's supplement
LAST = {"maskcon": 14, "obd_sd": 9, "cmd": 7, "flsl": 14, "mls": 8}
ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII")


def numbers(item: str) -> list[int]:
    """Numbers of an item: of ``Figs. 1 to 3`` 1, 2 and 3, of ``Fig. 4b`` 4, of ``Table IV`` 4."""
    text = item.partition(",")[0] if item.startswith(("Table", "Fig. ")) else item
    found = [int(number) for number in re.findall(r"\d+", text)] or [ROMAN.index(text.split()[1]) + 1]
    return list(range(found[0], found[-1] + 1)) if " to " in item else found


@pytest.mark.parametrize("paper", FIGURES)
def test_page_has_every_table_and_figure(paper):
    items = [row.item for row in ROWS if row.paper == paper]
    tables_of = {number for item in items if item.startswith("Table") for number in numbers(item)}
    figures_of = {number for item in items if item.startswith("Fig") for number in numbers(item)}
    assert tables_of == set(range(1, LAST[paper] + 1))
    assert figures_of == set(range(1, FIGURES[paper] + 1))
    printed = {row["table"] for row in all_rows() if row["paper"] == paper and row["table"].startswith("Table")}
    assert printed <= set(items)


def test_every_row_has_commands_or_a_reason():
    assert {row.paper for row in ROWS} <= set(PAPERS)
    for row in ROWS:
        assert row.state in tables.STATES, row
        if row.state in ("made", "real"):
            assert row.commands, row
        elif row.state == "none":
            assert row.note, row
            assert not row.commands, row


def test_page_is_what_the_file_gives():
    assert tables.PAGE.read_text() == tables.page(ROWS), "run: python -m tests.tables"


def resolve(command: str) -> None:
    """Find every file that a command names, and check its options.

    Raises:
        UserError, SystemExit: there is no such experiment, sweep or option.
    """
    program, name, *arguments = shlex.split(command)
    for sweep_name, cell in re.findall(r"runs/sweep_(\w+)/(\S+)", command):
        cells = {name_of(values) for values in read_sweep(find(f"sweeps/{sweep_name}")).cells()}
        assert cell in cells, f"{sweep_name} has no cell {cell}: {', '.join(sorted(cells))}"
    if program == "python":  # a benchmark
        assert (tables.ROOT / name).is_file()
        return
    assert program == "fgssl"
    if name == "fit":
        check_fit(arguments)
        return
    args, unknown = importlib.import_module(f"fgssl.commands.{name}")._parser().parse_known_args(arguments)
    if name == "sweep":  # the cells of the file are parsed by tests/commands/test_sweep.py
        sweep = read_sweep(find(args.file))
        experiment = next((word for word in sweep.fit if word.endswith(".yaml")), None) or sweep.axes["config"][0]
        check_fit(["--config", experiment, *unknown])
    elif unknown:
        assert name in ("probe", "embed"), f"no options {unknown}"
        check_fit(["--config", "cmd_cub", *unknown])  # data and run: options of every experiment


def check_fit(arguments: list[str]) -> None:
    """Find the experiments of a fit; its other options are among those that the experiments resolve to."""
    files, flags = split_config_files(arguments)
    folder = root() / "experiments"
    names = [find(file).resolve().relative_to(folder).with_suffix("").as_posix() for file in files]
    for place, flag in enumerate(flags):
        option = flag.removeprefix("--").removesuffix("+")
        if option == "trainer.callbacks":
            assert hasattr(application, flags[place + 1]), f"no callback {flags[place + 1]}"  # known by its short name
        elif flag.startswith("--") and option not in ("print_config", "run.name"):
            lookup("+".join(names), option)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_page_resolves(command):
    resolve(command)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "fgssl fit --config cmd_cup",
        "fgssl sweep sweeps/cmd_fig5e",
        "fgssl fit --config cmd_cub --model.lambda 1",
        "fgssl fit --config finetune_cub --model.init_from runs/sweep_mls_400/mls_coco",
        "fgssl fit --config cmd_cub --trainer.callbacks+ Neighbors",
        "fgssl fit --config cmd_cub --config cmd_ablations/table4_lw",
        "fgssl search runs/x --rows 1",
        "fgssl compare runs --base MS",
    ],
)
def test_checker_refuses_what_does_not_resolve(command):
    with pytest.raises((UserError, SystemExit, AssertionError)):
        resolve(command)
