"""What a configuration leaves to the method: its views, and the options of its backbone."""

import copy
import dataclasses
import inspect
from typing import Any

import fgssl.methods
import fgssl.tasks  # noqa: F401  (both make the short names of their classes known)
from fgssl.cli.compose import assign, class_of, options_of
from fgssl.methods.base import Method, method_class


def method_of(config: dict[str, Any], flags: list[str]) -> type[Method] | None:
    """The class that the configuration and the flags name, or None.

    Raises:
        UserError: there is no such class.
    """
    model = config.get("model")
    named = model if isinstance(model, str) else class_of(model)[0]
    for key, value in options_of(flags):
        named = value if key in ("model", "model.class_path") else named
    return method_class(named) if named else None


def fill_in(config: dict[str, Any], flags: list[str], method: type[Method] | None) -> dict[str, Any]:
    """The configuration, completed by what the method says where neither it nor the flags say anything.

    - ``data.views`` without a class: the method's ``default_views``, with the options that are given.
    - ``model.backbone`` with another network than the method's default: without the options of that default.
    """
    if method is None:
        return config
    config, given = copy.deepcopy(config), dict(options_of(flags))
    if method.default_views is not None and not given.keys() & {"data.views", "data.views.class_path"}:
        section = config.setdefault("data", {})
        section["views"] = with_class(section.get("views"), method.default_views)
    name = given.get("model.backbone.name")
    if name is not None:
        assign(config, "model.backbone.name", name)
    own = backbone_default(method)
    chosen = class_of(config.get("model"))[1].get("backbone") or {}
    if own is not None and network(chosen.get("name", own["name"])) != network(own["name"]):
        chosen.setdefault("options", {})
    return config


def with_class(views: Any, default: dict[str, Any]) -> Any:
    """Options of views that name no class become options of the default class."""
    if isinstance(views, str) or (views and "class_path" in views):
        return views
    return {"class_path": default["class_path"], "init_args": {**default.get("init_args", {}), **(views or {})}}


def backbone_default(method: type[Method]) -> dict[str, Any] | None:
    """The backbone options of a method's constructor, or None where it has no backbone."""
    parameter = inspect.signature(method).parameters.get("backbone")
    if parameter is None or not dataclasses.is_dataclass(parameter.default):
        return None
    return dataclasses.asdict(parameter.default)  # type: ignore[arg-type]


def network(name: str) -> str:
    """``resnet18.tv_in1k`` and ``resnet18`` are one network."""
    return name.partition(".")[0]
