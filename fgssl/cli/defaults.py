"""Defaults that depend on the method or its backbone: views, backbone options, mean and standard deviation."""

import copy
import dataclasses
from typing import Any, Literal, get_args, get_origin

from jsonargparse._parameter_resolvers import get_signature_parameters

import fgssl.methods
import fgssl.tasks  # noqa: F401  (import registers the short names of the classes)
from fgssl.cli.compose import class_of, network_of
from fgssl.cli.shipped import experiments
from fgssl.data.normalisation import difference, normalisation
from fgssl.data.views import Views
from fgssl.errors import UserError
from fgssl.methods.arguments import trained_normalisation
from fgssl.methods.base import Method
from fgssl.methods.registry import method_class, subclasses


def method_of(config: dict[str, Any]) -> type[Method] | None:
    """Class of the model section, or None.

    Raises:
        UserError: there is no such class.
    """
    named = class_of(config.get("model"))[0]
    try:
        return method_class(named) if named else None
    except UserError as fault:
        ours = any(name.startswith(str(named).lower()) for name in experiments())
        if "Did you mean" in str(fault) or not ours:
            raise
        raise UserError(f"{fault} '{named}' is a setting of a method: fgssl list experiments {named}.") from None


def fill_in(
    config: dict[str, Any], method: type[Method] | None, former: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Complete a configuration by the method's defaults, in a copy.

    - Options of ``former`` that ``method`` does not have are removed, and those of its views; also one such as
      ``variant`` with a name that ``method`` does not know. Options that the command line gives stay: the parser
      refuses them.
    - ``data.views`` without a class becomes the method's ``default_views`` with the given options.
    - If ``model.backbone.name`` is another network than the method's default, ``model.backbone.options`` of that
      default do not apply.

    Args:
        config: composed configuration.
        method: class of its model section; None: the configuration is returned as it is.
        former: configuration before the command line's flags, which may have replaced the class of the model.
    """
    if method is None:
        return config
    config = copy.deepcopy(config)
    former = former or {}
    named, arguments = class_of(former.get("model"))
    if named and named.rpartition(".")[2] != method.__name__:
        parameters = get_signature_parameters(method, None)
        accepted = {each.name for each in parameters if _takes(each.annotation, arguments.get(each.name))}
        _remove(arguments, class_of(config["model"])[1], accepted)
        _leave_views(config, former, method)
    if method.default_views is not None:
        section = config.setdefault("data", {})
        section["views"] = with_class(section.get("views"), method.default_views)
    own, chosen = backbone_default(method), class_of(config.get("model"))[1].get("backbone")
    if (
        own is not None
        and isinstance(chosen, dict)
        and network_of(str(chosen.get("name", own["name"]))) != network_of(own["name"])
    ):
        chosen.setdefault("options", {})
    return config


def _takes(annotation: Any, value: Any) -> bool:
    """Whether an argument takes a value, as far as its values have names."""
    return get_origin(annotation) is not Literal or value in get_args(annotation)


def _leave_views(config: dict[str, Any], former: dict[str, Any], method: type[Method]) -> None:
    """Remove options of views without a class that the views of ``method`` do not have, in place."""
    views, earlier = ((section.get("data") or {}).get("views") for section in (config, former))
    if method.default_views is None or not isinstance(views, dict) or "class_path" in views:
        return
    classes = {cls.__name__: cls for cls in subclasses(Views)}
    parameters = get_signature_parameters(classes[method.default_views["class_path"]], None)
    _remove(earlier or {}, views, {parameter.name for parameter in parameters})


def _remove(former: dict[str, Any], options: dict[str, Any], accepted: set[str]) -> None:
    """Remove from ``options``, in place, those of ``former`` that are not accepted and have kept their value."""
    for option in former.keys() - accepted:
        if option in options and options[option] == former[option]:
            del options[option]


def with_class(views: Any, default: dict[str, Any]) -> Any:
    """Options of views without a class become options of the default class."""
    given = {} if views is None else views
    if not isinstance(given, dict) or "class_path" in given:
        return views
    return {"class_path": default["class_path"], "init_args": {**default.get("init_args", {}), **given}}


def backbone_default(method: type[Method]) -> dict[str, Any] | None:
    """Default of ``backbone`` of a method as a mapping, or None if it has no such argument.

    The argument may be that of a parent class, to which the constructor passes its ``**options``.
    """
    parameters = get_signature_parameters(method, None)
    default = next((parameter.default for parameter in parameters if parameter.name == "backbone"), None)
    return dataclasses.asdict(default) if dataclasses.is_dataclass(default) else None  # type: ignore[arg-type]


def set_normalisation(data: Any, model: dict[str, Any]) -> str | None:
    """Replace null in ``mean`` and ``std`` of a data section by the values of the starting weights.

    Args:
        data: data section of a resolved configuration, changed in place.
        model: its model section.

    Returns:
        A warning if given values differ from those of the starting weights, else None.
    """
    trained = trained_normalisation(model.get("init_args") or {})
    data["mean"], data["std"] = normalisation(data["mean"], data["std"], trained)
    return difference(data["mean"], data["std"], trained)
