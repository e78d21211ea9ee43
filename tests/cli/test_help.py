"""Every option of every command has a help text; the public names of the package."""

import argparse
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys

import pytest
from docstring_parser import parse
from jsonargparse._parameter_resolvers import get_signature_parameters

import fgssl
from fgssl.callbacks.box_knn import BoxKNN
from fgssl.callbacks.collapse import Collapse
from fgssl.callbacks.online import OnlineKNN, OnlineProbe
from fgssl.callbacks.retrieval import Retrieval
from fgssl.cli.completion import BareApplication
from fgssl.cli.help import COMMANDS, GROUPS, LIGHTNING, OWN, most_used
from fgssl.cli.main import main
from fgssl.cli.parser import classes_at, is_documented, known_options
from fgssl.data.datasets import ALL
from fgssl.data.protocols import Protocol
from fgssl.data.views import Views
from fgssl.loggers import Wandb
from fgssl.methods import MaskCon
from fgssl.methods.base import Method
from fgssl.methods.registry import subclasses
from fgssl.run import Run

METHODS = sorted((cls for cls in subclasses(Method) if cls.__module__.startswith("fgssl.")), key=lambda c: c.__name__)
DATA = sorted({cls.data_module for cls in METHODS}, key=lambda cls: cls.__name__)
VIEWS = sorted((cls for cls in subclasses(Views) if cls.__module__.startswith("fgssl.")), key=lambda c: c.__name__)
OTHERS = [Retrieval, Run, Wandb, Protocol, BoxKNN, Collapse, OnlineKNN, OnlineProbe, *ALL.values()]


def unexplained(cls: type) -> list[str]:
    """Options of a class without a help text, including the fields of dataclass options."""
    missing = []
    for parameter in get_signature_parameters(cls, None):
        name = f"{cls.__name__}.{parameter.name}"
        if dataclasses.is_dataclass(parameter.default):
            said = {entry.arg_name for entry in parse(inspect.getdoc(type(parameter.default)) or "").params}
            fields = {field.name for field in dataclasses.fields(parameter.default)}
            missing += [f"{name}.{field}" for field in sorted(fields - said)]
        elif not parameter.doc:
            missing.append(name)
    return missing


@pytest.mark.parametrize("cls", [*METHODS, *DATA, *VIEWS, *OTHERS], ids=lambda cls: cls.__name__)
def test_every_option_of_a_class_has_a_help_text(cls):
    assert not unexplained(cls)


def actions(parser: argparse.ArgumentParser):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from actions(inner)
        else:
            yield action


@pytest.mark.parametrize("command", OWN)
def test_every_option_of_a_command_has_a_help_text(command):
    parser = importlib.import_module(f"fgssl.commands.{command}")._parser()
    assert not [action.dest for action in actions(parser) if not action.help]


# ---- fgssl --help, one page a command, and --help GROUP --------------------------------------------------------------


def said(capsys, *arguments: str) -> str:
    """What a command prints that ends without an error."""
    try:
        status = main(list(arguments))
    except SystemExit as stop:
        status = stop.code
    assert not status
    return capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in LIGHTNING)], ids=" ".join)
def test_page_of_help_fits_a_screen(arguments, capsys):
    lines = said(capsys, *arguments).splitlines()
    assert 20 < len(lines) <= 80
    assert max(map(len, lines)) <= 80


def test_top_help_names_every_command(capsys):
    page = said(capsys, "--help")
    assert all(f"\n  {command} " in page for command in COMMANDS)


@pytest.fixture(scope="module")
def parsers():
    return {command: BareApplication.parser_of(command) for command in LIGHTNING}


@pytest.mark.parametrize("command", LIGHTNING)
def test_options_of_the_page_exist(command, parsers):
    parser = parsers[command]
    parser.method = MaskCon
    assert {name for name, _, _ in most_used(command)} <= known_options(parser)


@pytest.mark.parametrize("command", LIGHTNING)
def test_every_option_is_in_exactly_one_group(command, parsers):
    inner = parsers[command]._subcommands_action.choices[command]
    shown = [inner.format_group(group) for group in GROUPS]
    for action in inner._actions:
        if is_documented(action) and action.dest != "data.seed":  # linked to seed_everything
            places = [text for text in shown if re.search(rf"^  (-c CONFIG, )?--{action.dest}\b", text, re.MULTILINE)]
            assert len(places) == (0 if action.dest.startswith("model.") else 1), action.dest
    assert max(len(line) for text in shown for line in text.splitlines()) <= 80


def test_group_that_is_unknown_suggests_the_nearest(capsys):
    assert main(["fit", "--help", "trainr"]) == 2
    assert "Did you mean 'trainer'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model.help=CMD"],
        ["--model.help", "CMD"],
        ["--config", "cmd_cub", "--model.help"],
        ["--config", "cmd_cub", "--help", "model"],
        ["--model", "CMD", "--help=model"],
    ],
    ids=" ".join,
)
def test_help_of_a_method_needs_no_data_set(arguments, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FGSSL_DATA", str(tmp_path))
    text = said(capsys, "fit", *arguments)
    assert "--model.prototypes" in text
    assert "usage:" not in text
    assert "lightning.pytorch" not in text


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--data.views.help=MultiCrop"], "--data.views.local_size"),
        (["--data.dataset.help", "CUB"], "--data.dataset.partial"),
        (["--trainer.callbacks.help=BoxKNN"], "--trainer.callbacks.k"),
    ],
)
def test_help_of_a_class_needs_no_data_set(arguments, option, capsys):
    assert option in said(capsys, "fit", "--config", "maskcon_cars", *arguments)


def test_callbacks_that_the_help_names_exist(capsys):
    text = said(capsys, "fit", "--help", "trainer")
    for name in ("BestOnTest", "BoxKNN", "Collapse", "OnlineKNN", "OnlineProbe"):
        assert name in text
        assert name in classes_at("trainer.callbacks")


def test_help_of_a_class_that_is_unknown_names_the_known_ones(capsys):
    assert main(["fit", "--data.views.help", "CUB"]) == 2
    assert "Known: ContrastiveCrop, EvalView, MultiCrop" in capsys.readouterr().err
    assert main(["fit", "--model.help"]) == 2
    assert "--model.help=MaskCon" in capsys.readouterr().err


def test_page_of_help_needs_no_torch():
    code = "import sys; from fgssl.cli.main import main; main(['fit', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_reader_that_goes_away_is_no_traceback():
    process = subprocess.Popen(
        [sys.executable, "-m", "fgssl", "list", "experiments"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()  # before anything is written
    assert process.stderr.read() == b""
    process.wait()


# ---- completion ------------------------------------------------------------------------------------------------------

COMPLETE = """
source {script}
COMP_WORDS=(fgssl {words}) COMP_CWORD={place}
_shtab_fgssl
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("sw", "sweep"),
        ("fit --trainer.max_ep", "--trainer.max_epochs"),
        ("fit --model.teacher_c", "--model.teacher_crops"),
        ("fit --config maskcon_c", "maskcon_cub"),
        ("fit --data.dataset CU", "CUB"),
        ("export --form", "--formats"),
    ],
)
def test_bash_completes(words, wanted, completion_script):
    text = COMPLETE.format(script=completion_script, words=words, place=len(words.split()))
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True)
    assert wanted in done.stdout.split(), done.stderr


@pytest.fixture(scope="module")
def completion_script(tmp_path_factory):
    pytest.importorskip("shtab")
    from fgssl.cli.completion import script

    path = tmp_path_factory.mktemp("completion") / "fgssl.sh"
    path.write_text(script("bash"))
    return path


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_completion_of_other_shells_names_the_commands(shell, capsys):
    pytest.importorskip("shtab")
    assert "sweep" in said(capsys, "--print_completion", shell)


def test_completion_without_a_shell_or_shtab_is_one_line(capsys, monkeypatch):
    assert main(["--print_completion"]) == 2
    assert "bash, zsh, tcsh" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print_completion", "bash"]) == 2
    assert "pip install 'fgssl[completion]'" in capsys.readouterr().err


@pytest.mark.parametrize("name", fgssl.__all__)
def test_public_name_is_importable_from_the_top(name):
    assert getattr(fgssl, name) is not None


def test_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        fgssl.Nothing  # noqa: B018


def test_every_attribute_that_a_method_sets_is_documented():
    said = {entry.arg_name for entry in parse(inspect.getdoc(Method) or "").params if entry.args[0] == "attribute"}
    assert said == {name for name in Method.__annotations__ if not name.startswith("_")}
