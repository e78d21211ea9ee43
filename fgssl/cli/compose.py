"""Experiments as YAML: fragments by relative path, overrides by dotted keys, later files win.

    model: ../configs/model/maskcon.yaml     # a section from a file, relative to this one
    model.tau: 0.05                          # one number of it, as on the command line
    trainer.callbacks+: [...]                # appended to the list that is there

Nothing here imports torch, so that a mistake is said at once.
"""

import copy
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fgssl.errors import UserError, did_you_mean

SECTIONS = ("seed_everything", "model", "data", "trainer", "retrieval", "checkpoint", "logger", "run")
FLAGS = (
    "ckpt_path",
    "weights_only",
    "verbose",
    "return_predictions",
)  # of the commands; a saved configuration has them


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once, and 1e-4 is a number."""


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key, line = loader.construct_object(key_node), key_node.start_mark.line + 1
        if key in seen:
            raise UserError(f"{node.start_mark.name}: key '{key}' stands on line {seen[key]} and again on line {line}.")
        seen[key] = line
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)
_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(  # YAML 1.1 reads 1e-4 as text
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_section(path: str | Path) -> dict[str, Any]:
    """Read a fragment (``configs/data/cub.yaml``): the content of one section.

    Raises:
        UserError: the file is missing or is not YAML, or a key stands twice.
    """
    section: dict[str, Any] = {}
    _merge(section, read_yaml(Path(path)))
    return section


def compose(paths: Sequence[str | Path]) -> dict[str, Any]:
    """Read experiment files in order and merge them into one configuration.

    Raises:
        UserError: a file is missing or is not YAML, a key stands twice, or a section is unknown.
    """
    config: dict[str, Any] = {}
    for path in paths:
        _apply_file(config, Path(path))
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
        assign(config, str(key), _resolve(value, path))


def _resolve(value: Any, beside: Path) -> Any:
    """A section given as a path becomes that file's content; its own paths resolve against that file."""
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        path = beside.parent / value
        return _resolve(read_yaml(path, asked_by=beside), path)
    return value


def read_yaml(path: Path, asked_by: Path | None = None) -> Any:
    """A YAML file as it stands. Raises UserError where it is missing or is no YAML, or a key stands twice."""
    named = f" (named in {asked_by})" if asked_by else ""
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise UserError(f"config file not found: {path}{named}.{did_you_mean(path.name, near)}")
    try:
        with path.open() as file:
            return yaml.load(file, _Loader)
    except yaml.YAMLError as fault:
        raise UserError(f"{path}{named} is not valid YAML: {fault}") from None


def assign(config: dict[str, Any], dotted: str, value: Any) -> None:
    """Set ``config`` at a dotted key; mappings merge, ``key+`` appends, ``init_args`` may be left out."""
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
            config[last] = {}
        _merge(config[last], value)
    elif last == "class_path":
        _choose_class(config, value)
    elif isinstance(value, str) and isinstance(config.get(last), dict) and "class_path" in config[last]:
        _choose_class(config[last], value)
    else:
        if last == "name" and isinstance(value, str):
            _leave_options(config, value)
        config[last] = value


def _choose_class(section: dict[str, Any], name: str) -> None:
    """Another class leaves the former class's arguments behind; ``MaskCon`` and its dotted path are one class."""
    if str(section.get("class_path")).rpartition(".")[2] != name.rpartition(".")[2]:
        section.clear()
    section["class_path"] = name


def _leave_options(backbone: dict[str, Any], name: str) -> None:
    """Another network leaves the ``options`` behind that came with the former one; a pretrained tag is no other."""
    if "options" in backbone and name.partition(".")[0] != str(backbone.get("name", name)).partition(".")[0]:
        del backbone["options"]


def _arguments_of(config: dict[str, Any], key: str) -> dict[str, Any]:
    """Where an option of a class is kept: a mapping with a ``class_path`` keeps them under ``init_args``."""
    if "class_path" in config and key not in ("class_path", "init_args", "dict_kwargs"):
        return config.setdefault("init_args", {})
    return config


def _merge(config: dict[str, Any], update: dict[str, Any]) -> None:
    """Deep merge; another ``class_path`` leaves the former class's arguments behind."""
    if "class_path" in update:
        _choose_class(config, update["class_path"])
    if isinstance(update.get("name"), str):
        _leave_options(config, update["name"])
    for key, value in update.items():
        assign(config, str(key), value)


# ---- the command line ------------------------------------------------------------------------------------------------

NUMBERS = {"inf": math.inf, "+inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def split_config_files(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Take the ``--config FILE`` pairs out of the arguments."""
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

    These two sections hold classes, whose options the parser would read as text: ``null`` would be the word "None". A
    flag that chooses a class acts before its options, wherever it stands. ``--model NAME`` keeps the options that the
    files have for the former class.

    Returns:
        The configuration, and the flags that are left for the parser.

    Raises:
        UserError: an option without a value.
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
    for key, value in sorted(given_options, key=lambda option: not _chooses_class(option[0])):
        if key.endswith(".options"):  # free arguments of a timm network: those of the flag, not added to the files'
            assign(config, key, None)
        if key in ("model", "model.class_path") and isinstance(config.get("model"), dict):
            config["model"]["class_path"] = value
        else:
            assign(config, key, value)
    return config, left


def _chooses_class(option: str) -> bool:
    return option in ("model", "data.dataset", "data.views") or option.endswith(".class_path")


def read_value(text: str) -> Any:
    """The value of an option: YAML (``0.1``, ``null``, ``[480, 512]``), or ``inf``."""
    if text in NUMBERS:
        return NUMBERS[text]
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


def class_of(spec: Any) -> tuple[str | None, dict[str, Any]]:
    """The class that a section names, or None, and its arguments."""
    if isinstance(spec, str):
        return spec, {}
    if not isinstance(spec, dict):
        return None, {}
    return spec.get("class_path"), spec.get("init_args") or {}
