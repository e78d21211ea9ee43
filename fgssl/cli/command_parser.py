"""The argument parser of the commands that are not Lightning's: one-line errors with the nearest known name."""

import argparse
import re
from typing import NoReturn

from fgssl.errors import UserError, did_you_mean


class CommandParser(argparse.ArgumentParser):
    """argparse, whose mistakes are a UserError that suggests what could have been meant."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        words = re.findall(r"(?:unrecognized arguments:|invalid choice:) '?(\S+?)'?(?: |$)", message)
        known = [option for action in self._actions for option in action.option_strings]
        known += [str(choice) for action in self._actions for choice in action.choices or ()]
        hint = "".join(did_you_mean(word.split("=")[0], known) for word in words[:1])
        raise UserError(f"{message}.{hint} See {self.prog} --help.")
