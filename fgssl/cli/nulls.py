"""``null`` for an option that has to have a value: jsonargparse lets it through."""

import typing
from typing import Any, Literal

from jsonargparse import Namespace
from jsonargparse._parameter_resolvers import get_signature_parameters
from jsonargparse._util import import_object

from fgssl.errors import UserError


def refuse_null(options: Namespace, parser: Any) -> None:
    """Check the parsed options of a command, and those of the classes and settings in them.

    Raises:
        UserError: names the option that is null and whose type has no ``None``.
    """
    for action in parser._actions:
        hint = getattr(action, "_typehint", action.type)
        if action.dest in options and hint is not None:
            _check(options[action.dest], hint, action.default, action.dest)


def _check(value: Any, hint: Any, default: Any, name: str) -> None:
    if value is None and default is not None and not _takes_null(hint):
        raise UserError(f"{name} is null, and it has to have a value. Leave it away for the default.")
    if not isinstance(value, Namespace):
        return
    kind = import_object(value.class_path) if "class_path" in value else _class_of(hint)
    given = value.get("init_args", Namespace()) if "class_path" in value else value
    for parameter in get_signature_parameters(kind, None) if kind else ():
        if parameter.name in given:
            _check(given[parameter.name], parameter.annotation, parameter.default, f"{name}.{parameter.name}")


def _takes_null(hint: Any) -> bool:
    """Whether a type has ``None``; a type that is not known here counts as one."""
    if typing.get_origin(hint) is Literal:
        return None in typing.get_args(hint)
    parts = typing.get_args(hint) or (hint,)
    return any(part is type(None) or not isinstance(typing.get_origin(part) or part, type) for part in parts)


def _class_of(hint: Any) -> type | None:
    """The class of settings in a type such as ``Optim`` or ``Distillation | None``."""
    kinds = [kind for kind in (hint, *typing.get_args(hint)) if isinstance(kind, type) and kind is not type(None)]
    return kinds[0] if len(kinds) == 1 else None
