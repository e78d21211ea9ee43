"""The default of every argument of the public functions, classes and methods of the package, and what methods
declare of themselves.

``tests/golden/defaults.csv`` holds them, and ``tests/test_defaults.py`` compares: who leaves an argument away gets
other numbers where its default changes. Where that is meant, write the file anew, and name the change in
CHANGELOG.md::

    python -m tests.defaults
"""

import csv
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import fgssl

GOLDEN = Path(__file__).parent / "golden" / "defaults.csv"
LEFT_OUT = ("fgssl.__main__", "fgssl.configs", "fgssl.experiments")  # no code of the package


def modules() -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(fgssl.__path__, "fgssl."):
        if not found.name.startswith(LEFT_OUT):
            yield importlib.import_module(found.name)


def functions(module: ModuleType) -> Iterator[tuple[str, Callable]]:
    """Names and functions of a module, and of its classes."""
    for name, member in vars(module).items():
        if getattr(member, "__module__", None) != module.__name__ or name.startswith("_"):
            continue
        if inspect.isclass(member):
            for method, function in vars(member).items():
                function = getattr(function, "__func__", function)  # of a static or a class method
                if inspect.isfunction(function) and (method == "__init__" or not method.startswith("_")):
                    yield name if method == "__init__" else f"{name}.{method}", function
        elif inspect.isfunction(member):
            yield name, member


def declared(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Names and plain values of the public attributes of the classes of a module, such as ``MAE.views_needed``."""
    for name, member in vars(module).items():
        if inspect.isclass(member) and member.__module__ == module.__name__ and not name.startswith("_"):
            for attribute, value in vars(member).items():
                if not attribute.startswith("_") and isinstance(value, int | float | str | tuple | dict | None):
                    yield f"{name}.{attribute}", value


def defaults() -> dict[str, str]:
    """``module.function.argument`` or ``module.class.attribute`` -> the value, as it is written in Python."""
    attributes = {
        f"{module.__name__.removeprefix('fgssl.')}.{name}": text_of(value)
        for module in modules()
        if module.__name__.startswith(("fgssl.methods", "fgssl.tasks"))
        for name, value in declared(module)
    }
    return attributes | {
        f"{module.__name__.removeprefix('fgssl.')}.{name}.{argument.name}": text_of(argument.default)
        for module in modules()
        for name, function in functions(module)
        for argument in inspect.signature(function).parameters.values()
        if argument.default is not argument.empty
    }


def text_of(default: object) -> str:
    """The default; of an object without a text of its own, its name or its class."""
    text = repr(default)
    return text if " at 0x" not in text else getattr(default, "__qualname__", type(default).__name__)


def golden() -> dict[str, str]:
    with GOLDEN.open(newline="") as file:
        return {row["argument"]: row["default"] for row in csv.DictReader(file)}


if __name__ == "__main__":
    with GOLDEN.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("argument", "default"), *sorted(defaults().items())])
    print(f"Wrote {GOLDEN.relative_to(Path.cwd())}.")
