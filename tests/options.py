"""Tables of options: another value of each and what it changes, or the test that shows its effect.

A table has a row for each class and a line for each of its options. ``cases`` and ``elsewheres`` make the parameters of
two tests of it; ``options_of`` says which lines there have to be.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from jsonargparse._parameter_resolvers import get_signature_parameters

TESTS = Path(__file__).parent


class With(NamedTuple):
    """A value, and other arguments without which it has no effect."""

    value: Any
    beside: dict[str, Any]


class Changes(NamedTuple):
    """A value, the parts of what is seen that it changes (no others may change), and arguments that it acts beside."""

    value: Any
    parts: set[str]
    beside: dict[str, Any] = {}


class Elsewhere(NamedTuple):
    """The file of tests that shows the effect of an option, and the name of the test."""

    file: str
    test: str


Row = dict[str, Any]  # option: a value, With, Changes or Elsewhere, or a list of them


def options_of(kind: type) -> set[str]:
    """Names of the options of a class, with those of its base classes."""
    return {parameter.name for parameter in get_signature_parameters(kind, None)}


def help_of(kind: type, option: str) -> str:
    """What ``--help`` says of an option."""
    (doc,) = (parameter.doc for parameter in get_signature_parameters(kind, None) if parameter.name == option)
    return doc


def lines(table: dict[type, Row]) -> Iterator[tuple[type, str, Any]]:
    for kind, row in table.items():
        for option, entry in row.items():
            yield from ((kind, option, one) for one in (entry if several(entry) else [entry]))


def several(entry: Any) -> bool:
    return isinstance(entry, list) and bool(entry) and isinstance(entry[0], With | Changes | Elsewhere)


def cases(table: dict[type, Row]) -> list:
    """Class, option and line of each option whose effect is seen here."""
    found = [(kind, option, line) for kind, option, line in lines(table) if not isinstance(line, Elsewhere)]
    return [pytest.param(*case, id=f"{case[0].__name__}-{case[1]}") for case in found]


def elsewheres(table: dict[type, Row]) -> list:
    """Option and line of each option whose effect is seen in another test."""
    found = [(kind, option, line) for kind, option, line in lines(table) if isinstance(line, Elsewhere)]
    return [pytest.param(option, line, id=f"{kind.__name__}-{option}") for kind, option, line in found]


def check_named_test(option: str, line: Elsewhere) -> None:
    """The file names the option, and has the test."""
    text = (TESTS / line.file).read_text()
    assert re.search(rf"\b{option}\b", text), f"{line.file} does not name {option}"
    assert f"def {line.test}(" in text, f"{line.file} has no {line.test}"


# ---- what is seen ---------------------------------------------------------------------------------------------------


def equal(one: Any, other: Any) -> bool:
    """Whether two observations are the same, bit for bit."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return type(one) is type(other) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return type(one) is type(other) and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def changed(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """Names of the parts of two observations that differ, with those that one of them lacks."""
    both = one.keys() & other.keys()
    return (one.keys() ^ other.keys()) | {name for name in both if not equal(one[name], other[name])}


def plain(values: Any) -> Any:
    """Fields of a dataclass or a named tuple as a mapping; anything else as it is."""
    if dataclasses.is_dataclass(values) and not isinstance(values, type):
        return {field.name: plain(getattr(values, field.name)) for field in dataclasses.fields(values)}
    return values
