"""The command line's parser: Lightning's, with errors that are one line and suggest the nearest known name."""

import difflib
import inspect
import re
from typing import get_args

from jsonargparse.typing import register_type
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from fgssl.callbacks.retrieval import Retrieval
from fgssl.data.datamodule import DataModule
from fgssl.data.datasets import ALL
from fgssl.errors import UserError
from fgssl.methods.base import Method
from fgssl.nn.dml import Spec
from fgssl.run import Run

# As a mapping it would be taken for a class of ours, which the parser imports by its whole path.
register_type(Spec, Spec.plain, Spec.read)


class Parser(LightningArgumentParser):
    """Lightning's parser, whose errors are ours: one message, with the nearest known name."""

    def error(self, message: str, ex: Exception | None = None):
        raise UserError(suggest(clean(message), known_names(self)))


# Lines of the parser's messages that repeat the outer frames of a nested option.
FRAMES = ("Does not validate", "Subtypes:", "Errors:", "Expected a <class 'NoneType'>", "Expected a path but", "Given")


def clean(message: str) -> str:
    """What the parser says, less its frames: the option, what was expected and what was given."""
    lines = [line.strip().removeprefix("- ") for line in str(message).splitlines()]
    given = next((line.removeprefix("Given value: ") for line in lines if line.startswith("Given value: ")), "")
    text = " ".join(line for line in lines if line and not line.startswith(FRAMES))
    for pattern, replacement in (
        (r'Parser key "([^"]+)":', r"\1:"),
        (r"<class '(\w+)'>", r"\1"),
        (r"typing\.Literal", "one of "),
        (r"Expected a dot import path string: (\S+)", r"unknown class '\1'."),
        (r"[. ]+Expected an? ", ", or "),  # the alternatives of a union, after the first
        (r": *, or ", ": expected "),
        (r": Expected an? ", ": expected "),
    ):
        text = re.sub(pattern, replacement, text)
    is_value = given and len(given) <= 40 and "expected" in text and "Got value" not in text
    return f"{text}. Got value: {given}" if is_value else text


def known_names(parser: Parser) -> set[str]:
    """Every option and class name that could have been meant."""
    classes = [*_subclasses(Method), Method, *ALL.values(), DataModule, Trainer, Retrieval, Run]
    names = {action.dest for action in parser._actions} | {cls.__name__ for cls in classes}
    for cls in classes:
        for name, parameter in inspect.signature(cls).parameters.items():
            names |= {name, *(choice for choice in get_args(parameter.annotation) if isinstance(choice, str))}
    return names | {name.rsplit(".", 1)[-1] for name in names}


def _subclasses(cls: type) -> set[type]:
    direct: set[type] = set(cls.__subclasses__())
    return direct.union(*(_subclasses(sub) for sub in direct))


def suggest(message: str, known: set[str]) -> str:
    """Append the nearest known name for a word that the message complains of."""
    if "Did you mean" in message:  # said of an inner option already
        return message
    blamed = re.findall(r"(?:class|ption|accept option) '([\w.]+)'|--([\w.]+)|Got value: (\w+)$", message)
    for word in (w for group in blamed for w in group if w):
        leaf = word.rsplit(".", 1)[-1]
        near = difflib.get_close_matches(leaf, known, n=1, cutoff=0.75)
        if near and leaf not in known:
            return f"{message} Did you mean '{near[0]}'?"
    return message
