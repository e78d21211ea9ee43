"""Completion of commands, options and names in bash, zsh and tcsh: ``fgssl --print_completion SHELL``."""

import argparse
import importlib
from typing import Any

from jsonargparse._parameter_resolvers import get_signature_parameters

from fgssl.cli.application import Application
from fgssl.cli.help import COMMANDS, LIGHTNING
from fgssl.cli.parser import ExperimentParser, known_options
from fgssl.cli.shipped import experiments
from fgssl.data.datasets import ALL
from fgssl.errors import UserError
from fgssl.methods.registry import known_methods

SHELLS = ("bash", "zsh", "tcsh")
# Completes --config by the experiments' names and by the files of the working folder.
CONFIG = '_fgssl_config() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}'


def script(shell: str) -> str:
    """The completion script of a shell.

    Raises:
        UserError: the shell is unknown, or shtab is not installed.
    """
    if shell not in SHELLS:
        raise UserError(f"--print_completion needs a shell: {', '.join(SHELLS)}.")
    try:
        import shtab
    except ImportError as fault:
        raise UserError("--print_completion needs shtab: pip install 'fgssl[completion]'.") from fault
    preamble = CONFIG.format(names=" ".join(experiments())) if shell == "bash" else ""
    return shtab.complete(_parser(), shell, preamble=preamble)


def _parser() -> argparse.ArgumentParser:
    """One parser of all commands and their options."""
    top = argparse.ArgumentParser(prog="fgssl")
    commands = top.add_subparsers()
    for name, text in COMMANDS.items():
        if name in LIGHTNING:
            _add_options(commands.add_parser(name, help=text), name)
        else:
            own = importlib.import_module(f"fgssl.commands.{name}")._parser()
            commands.add_parser(name, help=text, parents=[own], add_help=False)
    return top


def _add_options(parser: argparse.ArgumentParser, command: str) -> None:
    """The options of fit, validate, test or predict, with those of every method."""
    options = known_options(BareApplication.parser_of(command))
    for method in known_methods().values():
        options |= {f"model.{parameter.name}" for parameter in get_signature_parameters(method, None)}
    choices = {
        "model": sorted(known_methods()),
        "data.dataset": [cls.__name__ for cls in ALL.values()],
        "logger": ["csv", "wandb", "tensorboard", "mlflow"],
    }
    for option in sorted(options):
        action: Any = parser.add_argument(f"--{option}", choices=choices.get(option))
        if option == "config":
            action.complete = {"bash": "_fgssl_config", "zsh": "_files", "tcsh": "f"}


class BareApplication(Application):
    """Builds its parser and parses nothing."""

    @classmethod
    def parser_of(cls, command: str) -> ExperimentParser:
        """The parser of a command."""
        try:
            cls([command], "fgssl")
        except _Built as built:
            return built.args[0]
        raise AssertionError("the parser was not built")

    def parse_arguments(self, parser: Any, args: Any) -> None:
        raise _Built(parser)


class _Built(Exception):
    """The parser is ready."""
