"""Arguments of a method as plain values, as a checkpoint keeps them, and what is built from them."""

import dataclasses
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import register_type

from fgssl.checkpoint import checkpoint_file
from fgssl.errors import UserError
from fgssl.nn.backbones import Backbone
from fgssl.nn.dml import Spec
from fgssl.nn.weights import normalisation_of

# Otherwise a parser would read the mapping of a Spec as a class and require its full import path.
register_type(Spec, Spec.plain, Spec.read)

NOT_PLAIN = object()  # what ``plain`` gives for an object that no file can hold


def plain(value: Any) -> Any:
    """Plain values of an argument, dataclasses as dicts; ``NOT_PLAIN`` for other objects."""
    if isinstance(value, Spec):
        return value.plain()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        value = {name: plain(one) for name, one in value.items()}
        return NOT_PLAIN if any(one is NOT_PLAIN for one in value.values()) else value
    if isinstance(value, list | tuple):
        items = [plain(one) for one in value]
        return NOT_PLAIN if any(one is NOT_PLAIN for one in items) else items
    return value if isinstance(value, str | int | float | bool | None) else NOT_PLAIN


def build(cls: type, arguments: dict[str, Any]) -> Any:
    """Instance of a method or data module from plain values, such as ``{"backbone": {"name": "resnet18"}}``.

    Raises:
        UserError: an argument is unknown, missing or of the wrong type.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "model", fail_untyped=False)
    try:
        return parser.instantiate_classes(parser.parse_object({"model": arguments})).model
    except ArgumentError as fault:
        raise UserError(f"{cls.__name__} cannot be built: {fault}") from fault


def trained_normalisation(arguments: dict[str, Any]) -> Any:
    """Mean and standard deviation that the starting weights of a method were trained with; None if unknown.

    Args:
        arguments: plain arguments of the method.
    """
    backbone, start = arguments.get("backbone"), arguments.get("init_from")
    if start:
        return normalisation_of(checkpoint_file(start, "--model.init_from"), "--model.init_from")
    fields = {field.name for field in dataclasses.fields(Backbone)}
    if isinstance(backbone, dict) and backbone.keys() <= fields:  # a user's method may have another type of backbone
        return Backbone(**backbone).normalisation()
    return None
