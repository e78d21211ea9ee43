"""What a configuration leaves to the method: its views, and the options of its backbone."""

import copy
import dataclasses
import inspect
from typing import Any

from jsonargparse._parameter_resolvers import get_signature_parameters

import fgssl.methods
import fgssl.tasks  # noqa: F401  (both make the short names of their classes known)
from fgssl.checkpoint import checkpoint_file
from fgssl.cli.compose import class_of
from fgssl.data.normalisation import difference, normalisation
from fgssl.methods.base import Method, method_class
from fgssl.nn.backbones import Backbone
from fgssl.nn.weights import normalisation_of


def method_of(config: dict[str, Any]) -> type[Method] | None:
    """The class that the model section names, or None.

    Raises:
        UserError: there is no such class.
    """
    named = class_of(config.get("model"))[0]
    return method_class(named) if named else None


def fill_in(config: dict[str, Any], method: type[Method] | None, former: Any = None) -> dict[str, Any]:
    """The configuration, completed by what the method says where it says nothing.

    - options that were given for another class (``former``) and that this one does not have: left out.
    - ``data.views`` without a class: the method's ``default_views``, with the options that are given.
    - ``model.backbone`` with another network than the method's default: without the options of that default.
    """
    if method is None:
        return config
    config = copy.deepcopy(config)
    named, arguments = class_of(former)
    if named and named.rpartition(".")[2] != method.__name__:
        accepted = {parameter.name for parameter in get_signature_parameters(method, None)}
        for option in arguments.keys() - accepted:
            class_of(config["model"])[1].pop(option, None)
    if method.default_views is not None:
        section = config.setdefault("data", {})
        section["views"] = with_class(section.get("views"), method.default_views)
    own, chosen = backbone_default(method), class_of(config.get("model"))[1].get("backbone")
    if (
        own is not None
        and isinstance(chosen, dict)
        and network(chosen.get("name", own["name"])) != network(own["name"])
    ):
        chosen.setdefault("options", {})
    return config


def with_class(views: Any, default: dict[str, Any]) -> Any:
    """Options of views that name no class become options of the default class."""
    given = {} if views is None else views
    if not isinstance(given, dict) or "class_path" in given:
        return views
    return {"class_path": default["class_path"], "init_args": {**default.get("init_args", {}), **given}}


def backbone_default(method: type[Method]) -> dict[str, Any] | None:
    """The backbone options of a method's constructor, or None where it has no backbone."""
    parameter = inspect.signature(method).parameters.get("backbone")
    if parameter is None or not dataclasses.is_dataclass(parameter.default):
        return None
    return dataclasses.asdict(parameter.default)  # type: ignore[arg-type]


def network(name: str) -> str:
    """``resnet18.tv_in1k`` and ``resnet18`` are one network."""
    return name.partition(".")[0]


def set_normalisation(data: Any, model: dict[str, Any]) -> str | None:
    """Write the mean and standard deviation of the starting weights into a data section, in place of null.

    Args:
        data: data section of a resolved configuration, changed in place.
        model: its model section.

    Returns:
        A line where values that were given differ from those of the starting weights.
    """
    arguments = model.get("init_args") or {}
    backbone, start = arguments.get("backbone"), arguments.get("init_from")
    trained, fields = None, {field.name for field in dataclasses.fields(Backbone)}
    if isinstance(backbone, dict) and backbone.keys() <= fields:  # a method of one's own may have another kind
        trained = Backbone(**backbone).normalisation()
    if start:
        trained = normalisation_of(checkpoint_file(start, "--model.init_from"), "--model.init_from")
    data["mean"], data["std"] = normalisation(data["mean"], data["std"], trained)
    return difference(data["mean"], data["std"], trained)
