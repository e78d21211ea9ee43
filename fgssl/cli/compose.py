"""Experiments as YAML: fragments by relative path, overrides by dotted keys, later files win.

    model: ../configs/model/maskcon.yaml     # a section from a file, relative to this one
    model.tau: 0.05                          # one option of the section, as on the command line
    trainer.callbacks+: [...]                # appended to the list of earlier files

This module does not import torch, so that mistakes are reported immediately.
"""

import copy
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fgssl.cli.shipped import find
from fgssl.data.datasets import ALL
from fgssl.errors import UserError, did_you_mean

SECTIONS = ("seed_everything", "model", "data", "trainer", "retrieval", "checkpoint", "logger", "run")
MAPPINGS = ("data", "trainer", "retrieval", "checkpoint", "run")  # sections that are neither a class nor a value
CLASSES = ("model", "dataset", "views")  # keys whose value may be the name of a class alone
# Options of a command that belong to no section; a saved configuration contains them.
FLAGS = ("ckpt_path", "weights_only", "verbose", "return_predictions", "quiet")

COUNTED = ("model.num_coarse", "model.num_fine", "model.train_classes")  # arguments that the data set sets


class _Loader(yaml.SafeLoader):
    """YAML loader that refuses duplicate keys and reads 1e-4 as a number."""


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key, line = loader.construct_object(key_node), key_node.start_mark.line + 1
        if key in seen:
            raise UserError(f"{node.start_mark.name}: key '{key}' is given twice, on lines {seen[key]} and {line}.")
        seen[key] = line
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)
_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(  # YAML 1.1 reads 1e-4 as a string
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_section(path: str | Path) -> dict[str, Any]:
    """Read one section from a file such as ``configs/data/cub.yaml``, of the working folder or of fgssl.

    Raises:
        UserError: the file is missing or is not YAML, or a key is given twice.
    """
    section: dict[str, Any] = {}
    _merge(section, read_yaml(find(path)))
    return section


def compose(paths: Sequence[str | Path]) -> dict[str, Any]:
    """Read experiment files in order and merge them into one configuration.

    Args:
        paths: files, or names of experiments (``maskcon_cub``).

    Raises:
        UserError: a file is missing or is not YAML, a key is given twice, or a section is unknown.
    """
    config: dict[str, Any] = {}
    for path in paths:
        _apply_file(config, find(path))
    return config


def _apply_file(config: dict[str, Any], path: Path) -> None:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: an experiment is a mapping of sections ({', '.join(SECTIONS)}).")
    for key, value in content.items():
        section = str(key).rstrip("+").split(".")[0]
        if section not in SECTIONS + FLAGS:
            raise UserError(
                f"{path}: unknown section '{section}'.{did_you_mean(section, SECTIONS)} Known: {', '.join(SECTIONS)}."
            )
        resolved = _resolve(value, path)
        if key in MAPPINGS and not isinstance(resolved, dict | None):
            dataset = f" Did you mean 'data.dataset: {resolved}'?" if key == "data" else ""
            raise UserError(
                f"{path}: {key} is '{resolved}'; it must be a mapping of options, or the path of a YAML file.{dataset}"
            )
        assign(config, str(key), resolved)


def _resolve(value: Any, beside: Path) -> Any:
    """Replace the path of a YAML file by its content, recursively. Paths are relative to the file that names them."""
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        path = beside.parent / value
        return _resolve(read_yaml(path, asked_by=beside), path)
    return value


def read_yaml(path: Path, asked_by: Path | None = None) -> Any:
    """Content of a YAML file.

    Args:
        path: the file.
        asked_by: file that names ``path``, for the error message.

    Raises:
        UserError: the file is missing or is not YAML, or a key is given twice.
    """
    named = f" (named in {asked_by})" if asked_by else ""
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise UserError(f"config file not found: {path}{named}.{did_you_mean(path.name, near)}")
    try:
        with path.open(encoding="utf-8") as file:
            return yaml.load(file, _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise UserError(f"{path}{named} is not valid YAML: {fault}") from None


def assign(config: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a dotted key of ``config`` in place; mappings merge, ``key+`` appends, ``init_args`` may be left out."""
    *parents, last = dotted.split(".")
    for key in parents:
        config = _arguments_of(config, key)
        if not isinstance(config.get(key), dict):
            config[key] = {} if config.get(key) is None else {"class_path": config[key]}
        config = config[key]
    config = _arguments_of(config, last.rstrip("+"))
    if last.endswith("+"):
        last = last[:-1]
        config[last] = (config.get(last) or []) + (value if isinstance(value, list) else [value])
    elif isinstance(value, dict):
        if not isinstance(config.get(last), dict):
            named = isinstance(config.get(last), str) and last in CLASSES  # a class in short: ``dataset: CUB``
            config[last] = {"class_path": config[last]} if named else {}
        _merge(config[last], value, last)
    elif last == "class_path":
        _choose_class(config, value, parents[-1] if parents else None)
    elif isinstance(value, str) and isinstance(config.get(last), dict) and _has_a_class(config[last], last):
        _choose_class(config[last], value, last)
    else:
        if last == "name" and isinstance(value, str):
            _leave_options(config, value)
        config[last] = value


def _has_a_class(section: dict[str, Any], key: str) -> bool:
    return "class_path" in section or (key in CLASSES and key != "views")


def _choose_class(section: dict[str, Any], name: str, key: str | None) -> None:
    """Set the class of the section ``key``. A short name equals its dotted path.

    Arguments of another class are removed, those that were given before any class are kept. Those of ``views`` without
    a class are removed too: they are of the method's default views.
    """
    if "class_path" not in section and key != "views":
        options = {
            option: section.pop(option) for option in list(section) if option not in ("init_args", "dict_kwargs")
        }
        if options:
            section["init_args"] = section.get("init_args", {}) | options
    elif str(section.get("class_path")).rpartition(".")[2] != name.rpartition(".")[2]:
        section.clear()
    section["class_path"] = name


def network_of(name: str) -> str:
    """Name of a timm network without its pretrained tag: ``resnet18`` for ``resnet18.tv_in1k``."""
    return name.partition(".")[0]


def _leave_options(backbone: dict[str, Any], name: str) -> None:
    """Remove ``options`` of a backbone if ``name`` is another network; another pretrained tag does not count."""
    if "options" in backbone and network_of(name) != network_of(str(backbone.get("name", name))):
        del backbone["options"]


def _arguments_of(config: dict[str, Any], key: str) -> dict[str, Any]:
    """The mapping that holds option ``key``: ``init_args`` in a mapping with ``class_path``, else ``config``."""
    if "class_path" in config and key not in ("class_path", "init_args", "dict_kwargs"):
        return config.setdefault("init_args", {})
    return config


def _merge(config: dict[str, Any], update: dict[str, Any], key: str | None = None) -> None:
    """Merge ``update`` into ``config``, the section ``key``; another ``class_path`` removes the former arguments."""
    if "class_path" in update:
        _choose_class(config, update["class_path"], key)
    if isinstance(update.get("name"), str):
        _leave_options(config, update["name"])
    for key, value in update.items():
        assign(config, str(key), value)


# ---- the command line ------------------------------------------------------------------------------------------------

NUMBERS = {
    "inf": math.inf, "+inf": math.inf, "-inf": -math.inf, "nan": math.nan,
    "Infinity": math.inf, "-Infinity": -math.inf,  # JSON's names, as in a sweep that came from W&B
}  # fmt: skip


def split_config_files(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split the arguments into the files of ``--config FILE`` and the other arguments."""
    files, flags, waiting = [], [], False
    for argument in arguments:
        if waiting:
            files.append(argument)
            waiting = False
        elif argument in ("-c", "--config"):
            waiting = True
        elif argument.startswith("--config="):
            files.append(argument.removeprefix("--config="))
        else:
            flags.append(argument)
    if waiting:
        raise UserError("--config needs a file.")
    return files, flags


def apply_flags(config: dict[str, Any], flags: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Put ``--model.option VALUE`` and ``--data.option VALUE`` into a copy of the configuration.

    The parser would read options of classes in these sections as strings: ``null`` as "None". Flags that choose a class
    are applied before its options, in any order on the command line. ``--model NAME`` keeps the options that the files
    give for the former class.

    Returns:
        The configuration and the remaining flags, for the parser.

    Raises:
        UserError: an option has no value, or is one that fgssl sets itself.
    """
    config, left, given_options = copy.deepcopy(config), [], []
    waiting = iter(flags)
    for flag in waiting:
        key, equals, value = flag.removeprefix("--").partition("=")
        if not flag.startswith("--") or key.split(".")[0] not in ("model", "data") or key.endswith(".help"):
            left.append(flag)
            continue
        given = value if equals else next(waiting, None)
        if given is None or (not equals and given.startswith("--")):
            raise UserError(f"--{key} needs a value.")
        given_options.append((key, read_value(given)))
        refuse_linked(key)
    for key, value in sorted(given_options, key=lambda option: _rank(option[0])):
        if key == "data" and not isinstance(value, dict):
            dataset = ALL[value.lower()].__name__ if str(value).lower() in ALL else "NAME"
            raise UserError(f"--data takes a mapping, not '{value}'. Did you mean '--data.dataset {dataset}'?")
        if key.endswith(".options"):  # arguments of a timm network: the flag replaces those of the files
            assign(config, key, None)
        if key in ("model", "model.class_path") and isinstance(config.get("model"), dict):
            config["model"]["class_path"] = value
        else:
            assign(config, key, value)
    return config, left


def refuse_linked(option: str) -> None:
    """Refuse an option that fgssl sets itself; the parser would drop the given value.

    Raises:
        UserError: says what sets it.
    """
    if option == "data.seed":
        raise UserError("--data.seed is set by --seed_everything. Give that one.")
    if option.replace(".init_args", "") in COUNTED:
        raise UserError(f"--{option} is counted in the data set. Leave it out.")


def _rank(option: str) -> tuple[bool, int]:
    """Options that choose a class or a network, and so decide which others exist, before these; outer classes first."""
    chooses = option in ("model", "data.dataset", "data.views") or option.endswith((".class_path", ".backbone.name"))
    return not chooses, option.count(".") if chooses else 0


def read_value(text: str) -> Any:
    """The value of an option: YAML (``0.1``, ``null``, ``[480, 512]``), or ``inf``."""
    if text in NUMBERS:
        return NUMBERS[text]
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


def class_of(spec: Any) -> tuple[str | None, dict[str, Any]]:
    """Class name of a section, or None, and its arguments."""
    if isinstance(spec, str):
        return spec, {}
    if not isinstance(spec, dict):
        return None, {}
    return spec.get("class_path"), spec.get("init_args") or {}
