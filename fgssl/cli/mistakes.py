"""Errors of constructors, in the words of the command line."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import ArgumentError, Namespace

from fgssl.cli.parser import clean
from fgssl.errors import OutOfRange, UserError


@contextmanager
def mistakes_unwrapped() -> Iterator[None]:
    """The parser wraps exceptions of constructors; raise the UserError inside, or its message as one."""
    try:
        yield
    except Exception as fault:
        cause: BaseException | None = fault
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        raise cause or UserError(f"{first_fault(fault)} (FGSSL_TRACEBACK=1 shows where.)") from fault


def first_fault(fault: BaseException) -> str:
    """Message of a mistake of the parser; of an exception of another kind inside it, with its file and line."""
    inner = fault
    while inner.__cause__ is not None:
        inner = inner.__cause__
    counting = str(fault).startswith("Call to compute_fn")  # the class counts, for which the data set is read
    if inner is fault or isinstance(inner, ArgumentError) or (isinstance(inner, TypeError) and not counting):
        return clean(str(fault)) or type(fault).__name__
    place = traceback.extract_tb(inner.__traceback__)[-1]
    return f"{type(inner).__name__}: {inner} ({place.filename}, line {place.lineno})"


@contextmanager
def options_named(options: Namespace) -> Iterator[None]:
    """Errors about arguments name the options that they came from."""
    try:
        yield
    except OutOfRange as error:
        raise name_option(error, options) from error


def name_option(error: OutOfRange, options: Namespace) -> OutOfRange:
    """The error with the name of the option: ``model.optim.lr`` for ``lr``; that of a callback has its class's name.

    Where several options end in the name of the argument, it is the one with the refused value. The name stays as it is
    where no option, or more than one, can be meant.
    """
    named = {option: value for option, value in values_in(options, "") if option.rpartition(".")[2] == error.name}
    equal = [option for option, value in named.items() if str(value) == str(error.value)]  # "nan" is "nan"
    meant = equal or list(named)
    return OutOfRange(meant[0], error.value, error.bound) if len(meant) == 1 else error


def values_in(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every option with its value, of sections, classes and lists of classes."""
    if isinstance(value, Namespace):
        options = value.get("init_args", Namespace()) if "class_path" in value else value
        for key, inner in vars(options).items():
            yield from values_in(inner, f"{name}.{key}".removeprefix("."))
    elif isinstance(value, list) and all(isinstance(item, Namespace) for item in value):
        for item in value:
            yield from values_in(item, item.get("class_path", name).rpartition(".")[2])
    else:
        yield name, value
