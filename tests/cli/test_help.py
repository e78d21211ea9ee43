"""Every option of every command has a help text; the public names of the package."""

import argparse
import dataclasses
import importlib
import inspect

import pytest
from docstring_parser import parse
from jsonargparse._parameter_resolvers import get_signature_parameters

import fgssl
from fgssl.callbacks.box_knn import BoxKNN
from fgssl.callbacks.collapse import Collapse
from fgssl.callbacks.online import OnlineKNN, OnlineProbe
from fgssl.callbacks.retrieval import Retrieval
from fgssl.cli.main import OWN, main
from fgssl.data.datasets import ALL
from fgssl.data.protocols import Protocol
from fgssl.data.views import Views
from fgssl.loggers import Wandb
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


def test_help_of_a_method_needs_no_data_set(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--model.help=CMD"])
    assert "--model.prototypes" in capsys.readouterr().out


@pytest.mark.parametrize("name", fgssl.__all__)
def test_public_name_is_importable_from_the_top(name):
    assert getattr(fgssl, name) is not None


def test_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        fgssl.Nothing  # noqa: B018


def test_every_attribute_that_a_method_sets_is_documented():
    said = {entry.arg_name for entry in parse(inspect.getdoc(Method) or "").params if entry.args[0] == "attribute"}
    assert said == {name for name in Method.__annotations__ if not name.startswith("_")}
