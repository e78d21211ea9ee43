"""The registry of methods and tasks: the subclasses of ``Method`` that are imported."""

import importlib
from typing import TypeVar

from fgssl.errors import UserError, did_you_mean
from fgssl.methods.base import Method

Base = TypeVar("Base")


def method_class(class_path: str) -> type[Method]:
    """Class of a method or task.

    Args:
        class_path: short name of an imported class (``MaskCon``), or dotted path, which is imported
            (``my_package.MyMethod``).

    Raises:
        UserError: there is no such class, or it is not a subclass of ``Method``.
    """
    package, _, name = class_path.rpartition(".")
    if package:
        try:
            found = getattr(importlib.import_module(package), name)
        except (ImportError, AttributeError) as fault:
            raise UserError(f"model: '{class_path}' cannot be imported ({fault}).") from fault
        if not (isinstance(found, type) and issubclass(found, Method)):
            raise UserError(f"model: '{class_path}' is not a subclass of fgssl.Method.")
        return found
    known = known_methods()
    if name not in known:
        raise UserError(f"model: unknown class '{name}'.{did_you_mean(name, known)} Known: {', '.join(sorted(known))}.")
    return known[name]


def known_methods() -> dict[str, type[Method]]:
    """Imported methods and tasks by short name; without the base classes, which have no ``step``."""
    return {cls.__name__: cls for cls in subclasses(Method) if cls.step is not Method.step}


def subclasses(cls: type[Base]) -> set[type[Base]]:
    """All imported subclasses, direct and indirect."""
    direct: set[type[Base]] = set(cls.__subclasses__())
    return direct.union(*(subclasses(sub) for sub in direct))
