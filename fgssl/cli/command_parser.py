"""Argument parser of the commands other than fit, validate, test and predict."""

import argparse
import re
from pathlib import Path
from typing import Any, NoReturn

from fgssl.errors import UserError, did_you_mean

PICTURES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")


class CommandParser(argparse.ArgumentParser):
    """argparse with one-line errors that suggest the nearest known name; options cannot be abbreviated."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)

    def add_subparsers(self, **options: Any) -> Any:
        return super().add_subparsers(parser_class=SubcommandParser, **options)

    def error(self, message: str) -> NoReturn:
        words = re.findall(r"(?:unrecognized arguments:|invalid choice:) '?(\S+?)'?(?: |$)", message)
        known = [option for action in self._actions for option in action.option_strings]
        known += [str(choice) for action in self._actions for choice in action.choices or ()]
        hint = "".join(did_you_mean(word.split("=")[0], known) for word in words[:1])
        raise UserError(f"{message}.{hint} See {self.prog} --help.")


class SubcommandParser(CommandParser):
    """Parser of a subcommand; reports unknown options itself, so that it suggests its own."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def picture(name: str) -> Path:
    """``type`` of an option that names a picture to write: refuses other endings, and makes the folder.

    Raises:
        argparse.ArgumentTypeError: the file cannot be written as a picture.
    """
    path = Path(name)
    if path.suffix.lower() not in PICTURES:
        raise argparse.ArgumentTypeError(f"{name} is no picture: it must end in {', '.join(PICTURES)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise argparse.ArgumentTypeError(f"nothing can be written to {path.parent} ({fault.strerror})") from fault
    return path
