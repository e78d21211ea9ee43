"""``fgssl init``: write a commented experiment of one's own, ready for ``fgssl fit --config``."""

import argparse
import os
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import yaml

from fgssl.cli.command_parser import CommandParser
from fgssl.cli.compose import class_of, compose
from fgssl.cli.shipped import experiments
from fgssl.data.datasets import ALL, Folder
from fgssl.errors import UserError, did_you_mean

# Methods by the prefix of their experiments.
METHODS = {"cmd": "CMD", "flsl": "FLSL", "maskcon": "MaskCon", "mls": "MLS", "obd_sd": "OBDSD"}
TEST_FRACTION = 0.2  # of images that come without parts
WIDTH = 100  # of the comments
TRAINER = {
    "max_epochs": "Passes over the training images.",
    "accelerator": "Device: cpu, gpu or auto.",
    "devices": "Number of devices; auto: all.",
    "precision": "32-true, or bf16-mixed for less memory on a recent GPU.",
    "log_every_n_steps": "Steps between rows of metrics.csv.",
}


def main(argv: list[str]) -> int:
    """Run ``fgssl init <argv>``."""
    args = _parser().parse_args(argv)
    path = Path(args.name if args.name.endswith((".yaml", ".yml")) else f"{args.name}.yaml")
    if path.exists():
        raise UserError(f"{path} exists already. Choose another name, or delete it.")
    prefix, dataset = prefix_of(args.method), dataset_of(args.data)
    config, base = starting_point(prefix, dataset)
    notes = fit_to_folder(config, dataset, path) if isinstance(dataset, Folder) else []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document(path, config, base, args.data), encoding="utf-8")
    for line in (f"{path}: {METHODS[prefix]} on {args.data}, from our experiment {base}", *notes):
        print(line)
    print(f"next: fgssl fit --config {shlex.quote(str(path))}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="fgssl init",
        description="Write a commented experiment file to begin with. It holds every setting that differs from a "
        "method's defaults, each with its explanation.",
    )
    parser.add_argument("name", help="file to write; .yaml is added where it is missing")
    parser.add_argument("--method", required=True, help=f"one of {', '.join(METHODS)}")
    parser.add_argument(
        "--data",
        default="digits",
        help="name of a data set (fgssl list data), or your own images: a folder, or a CSV or text file of paths; "
        "default digits",
    )
    return parser


def prefix_of(method: str) -> str:
    """Prefix of the experiments of a method that is named by it or by its class, in any case.

    Raises:
        UserError: there is no such method.
    """
    known = {name.lower(): prefix for prefix, cls in METHODS.items() for name in (prefix, cls)}
    if method.lower() not in known:
        raise UserError(
            f"--method: unknown method '{method}'.{did_you_mean(method.lower(), known)} Known: {', '.join(METHODS)}."
        )
    return known[method.lower()]


def dataset_of(data: str) -> Any:
    """The data set of a name, or of a folder of images.

    Raises:
        UserError: it is neither.
    """
    if Path(data).exists():
        return Folder(data)
    if data.lower() in ALL:
        return ALL[data.lower()]()
    raise UserError(
        f"--data: '{data}' is neither a data set nor a folder.{did_you_mean(data.lower(), ALL)} See fgssl list data."
    )


def starting_point(prefix: str, dataset: Any) -> tuple[dict[str, Any], str]:
    """Configuration of the nearest experiment of fgssl on a data set, and the experiment's name."""
    known = experiments()
    base = next(name for name in (f"{prefix}_{dataset.name}", f"{prefix}_cub") if name in known)
    config = compose([known[base]])
    config.pop("run", None)  # the row of the paper is not that of another experiment
    if isinstance(dataset, Folder):
        config["data"].pop("protocol", None)  # its own train and test part
        config["data"]["dataset"] = {"class_path": "Folder", "init_args": {"root": str(dataset.root)}}
    elif base != f"{prefix}_{dataset.name}":
        config["data"]["dataset"] = type(dataset).__name__
    return config, base


def fit_to_folder(config: dict[str, Any], dataset: Folder, path: Path) -> list[str]:
    """Bound batch and memory by the number of training images; set test images aside and add coarse labels if needed.

    Returns:
        Lines for the user.
    """
    index = dataset.index()
    if not len(index.rows("test")) and index.fine_names:
        config["data"]["dataset"]["init_args"]["test_fraction"] = TEST_FRACTION
        dataset = Folder(str(dataset.root), test_fraction=TEST_FRACTION)
        index = dataset.index()
    images, model, notes = len(index.rows("train")), config["model"]["init_args"], []
    largest = 2 ** (images.bit_length() - 1)
    config["data"]["num_workers"] = min(config["data"]["num_workers"], os.cpu_count() or 1)
    config["data"]["batch_size"] = min(config["data"]["batch_size"], largest)
    if "memory" in model:
        model["memory"] = min(model["memory"], largest)
    if config["model"]["class_path"] in ("MaskCon", "OBDSD") and not index.fine_names:
        raise UserError(
            f"{dataset.root} has no class folders, and {config['model']['class_path']} learns from labels. Take cmd, "
            "flsl or mls, or sort the images into one folder a class."
        )
    if config["model"]["class_path"] == "MaskCon" and not index.coarse_names:
        coarse = path.with_name(f"{path.stem}_coarse.csv")
        note = "the coarse class of each class; your file is kept as it is"
        if not coarse.exists():
            note = "the coarse class of each class; edit it: each class stands there for itself"
            lines = ["class,coarse", *(f"{name},{name}" for name in index.fine_names)]
            coarse.parent.mkdir(parents=True, exist_ok=True)
            coarse.write_text("\n".join(lines) + "\n", encoding="utf-8")
        config["data"]["dataset"]["init_args"]["coarse_map"] = str(coarse)
        notes.append(f"{coarse}: {note}")
    return notes


# ---- the file --------------------------------------------------------------------------------------------------------


def document(path: Path, config: dict[str, Any], base: str, data: str) -> str:
    """The experiment file: each option of the configuration under its explanation."""
    from lightning.pytorch import Trainer

    from fgssl.callbacks.retrieval import Retrieval
    from fgssl.cli.defaults import fill_in, method_of
    from fgssl.data.datamodule import DataModule

    method = method_of(config)
    assert method is not None
    config = fill_in(config, method)  # the method's views, where the experiment names none
    name = class_of(config["model"])[0]
    head = comment(
        f"{name} on {data}. Begun by fgssl init from our experiment {base}.\n"
        f"fgssl fit --config {shlex.quote(str(path))}\n"
        f"All options: fgssl fit --config {shlex.quote(str(path))} --help model (or data, trainer, retrieval, run)"
    )
    helps = {"data": DataModule, "trainer": Trainer, "retrieval": Retrieval}
    parts = [head, f"model:\n  class_path: {name}\n  init_args:\n" + options(class_of(config["model"])[1], method, 4)]
    for section, cls in helps.items():
        if section in config:
            parts.append(f"{section}:\n" + options(config[section], cls, 2, TRAINER if section == "trainer" else None))
    return "\n".join(parts)


def options(values: dict[str, Any], cls: type, indent: int, texts: dict[str, str] | None = None) -> str:
    """Options as YAML, each under the first sentence of its help.

    Args:
        values: options and their values.
        cls: class that has the options.
        indent: number of spaces before each line.
        texts: help by option, instead of that of ``cls``.
    """
    from jsonargparse._parameter_resolvers import get_signature_parameters

    helps = texts or {parameter.name: str(parameter.doc or "") for parameter in get_signature_parameters(cls, None)}
    lines = []
    for option, value in values.items():
        lines.append(comment(first_sentence(helps.get(option) or "")) if helps.get(option) else "")
        flow = None if isinstance(value, dict | list) else False  # the innermost mappings and lists on one line
        lines.append(yaml.safe_dump({option: value}, sort_keys=False, default_flow_style=flow, width=WIDTH))
    return textwrap.indent("".join(lines), " " * indent)


def first_sentence(text: str) -> str:
    """The first sentence of a help text, without the marks of reStructuredText."""
    plain = " ".join(str(text).replace("``", "").split())
    sentence = re.split(r"(?<!\bEq)(?<!\bFig)(?<!\bal)[.;](?:\s|$)", plain)[0]
    return sentence[:1].upper() + sentence[1:] + "."


def comment(text: str) -> str:
    """Text as the lines of a YAML comment."""
    return "".join(
        f"# {line}\n"
        for paragraph in text.splitlines()
        for line in textwrap.wrap(paragraph, WIDTH, break_on_hyphens=False)
    )
