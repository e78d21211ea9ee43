"""The pages' commands in seconds: on tiny copies of the data sets, with small networks, or only parsed."""

import importlib
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import timm
import yaml
from safetensors.torch import save_file

from fgssl.checkpoint import checkpoint_file
from fgssl.cli.compose import apply_flags, compose, split_config_files
from fgssl.cli.defaults import fill_in, method_of
from fgssl.cli.help import LIGHTNING
from fgssl.cli.main import main, value_of
from fgssl.data.datasets import ALL
from tests import trees
from tests.evaluation.test_davis import make_davis
from tests.test_experiments import CMD_SMALL, SMALL_NETWORK, SMALL_VIT, TREES

ROOT = Path(__file__).parents[1]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
ONE_STEP = [
    *QUIET, "--trainer.max_steps", "1", "--trainer.limit_test_batches", "2", "--trainer.accelerator", "cpu",
    "--trainer.devices", "1", "--data.num_workers", "0", "--retrieval.grid", "0",
]  # fmt: skip


# ---- what the pages suppose to be there ------------------------------------------------------------------------------


def furnish(folder: Path, data: Path) -> None:
    """The files of the user that the pages name: photographs, weights, a video set, images in class folders."""
    (folder / "weights.safetensors").symlink_to(data / "weights.safetensors")
    for name in ("bird.jpg", "other.jpg", "photo.png", "query.jpg"):
        trees.write_image(folder / name, size=(90, 60))
    make_davis(folder / "DAVIS", one=(2, 0))
    for part, number in (("train", 1), ("train", 3), ("test", 2), ("test", 4)):
        for species in ("sparrow", "gull"):
            trees.write_image(folder / "photos" / part / species / f"{number}.jpg", seed=number)
    images = sorted(path.relative_to(folder) for path in (folder / "photos").rglob("*.jpg"))
    trees.write_lines(folder / "photos.csv", ["path,label", *(f"{path},{path.parent.name}" for path in images)])


def data_folder(root: Path) -> Path:
    """Tiny copies of the data sets under their official names and in their layouts, and weights of a network."""
    for cls in ALL.values():
        if cls.__name__ in TREES and not (root / cls.folder).exists():
            TREES[cls.__name__](root / cls.folder)
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    save_file(network.state_dict(), root / "weights.safetensors")
    return root


# ---- one command -----------------------------------------------------------------------------------------------------


def run(program: str, arguments: list[str], how: str) -> int:
    """Run one command of a page: ``run`` as it stands, ``short``, or ``parsed``."""
    if program == "pip":
        return pip(arguments)
    if program == "fgssl-python":
        exec(compile(sys.stdin.read(), "page", "exec"), {"__name__": "__main__"})
        return 0
    if program == "torchrun":
        return torchrun(arguments)
    if how == "run" or not arguments or asks_for_help(arguments):
        return main(arguments)
    command, *rest = arguments
    if how == "parsed":
        return parse(command, rest)
    return main([command, *rest, *short(command, rest)])


def asks_for_help(arguments: list[str]) -> bool:
    return any(word in ("--help", "--print_config", "--print_completion") or ".help" in word for word in arguments)


def parse(command: str, arguments: list[str]) -> int:
    """Check a command's options and values without running it."""
    if command in LIGHTNING:
        return main([command, *arguments, "--print_config"])
    if command == "sweep":
        return main([command, *arguments, "--dry_run"])
    importlib.import_module(f"fgssl.commands.{command}")._parser().parse_known_args(arguments)
    return 0


def short(command: str, arguments: list[str]) -> list[str]:
    """Options that make a command a matter of seconds."""
    if command in LIGHTNING:
        return [*small(configuration(arguments)), *ONE_STEP]
    if command == "probe":
        model = public(arguments)
        if "--config" in arguments:
            flags = small(configuration(arguments))
            pairs = zip(flags[::2], flags[1::2], strict=True)
            model = [word for pair in pairs if pair[0].startswith(("--model.backbone", "--data")) for word in pair]
        steps = ["--trainer.max_epochs", "1", "--data.batch_size", "8", "--data.num_workers", "0"]
        return [*model, *QUIET, *steps, "--trainer.accelerator", "cpu"]
    if command == "embed":
        return [*public(arguments), *QUIET, "--retrieval.grid", "0", "--data.num_workers", "0"]
    if command == "data" and arguments[:1] == ["check"] and arguments[1] != "folder":
        return ["--partial"]
    return {"sweep": ["--dry_run"], "davis": ["--partial"], "export": []}.get(command, [])


def public(arguments: list[str]) -> list[str]:
    """For a network of timm: no download, small images, a data set that is no full copy."""
    if "--model" not in arguments:
        return []
    partial = [] if value_of("--data", arguments) == "digits" else ["--data.dataset.partial", "true"]
    weights = [] if "--weights" in arguments else ["--pretrained", "false"]
    return [*weights, *partial, "--data.eval_size", "64", "--data.eval_resize", "64"]


def configuration(arguments: list[str]) -> dict[str, Any]:
    """The composed configuration of a command: that of its files, or of the run of ``--ckpt_path``."""
    files, flags = split_config_files(arguments)
    run = value_of("--ckpt_path", flags)
    if run and not files:
        files = [str(checkpoint_file(run).parent.parent / "config.yaml")]
    config, _ = apply_flags(compose(files), flags)
    return config


def small(config: dict[str, Any]) -> list[str]:
    """Options for a network, images and memory of the smallest size that an experiment's method can take."""
    model, data = config["model"], config["data"]
    method, dataset = (short_name(section) for section in (model, data["dataset"]))
    flags = ["--data.batch_size", "2"]
    if dataset == "Digits":
        flags = ["--data.batch_size", "16", "--data.protocol.label_fraction", "0.05"]
        flags = flags if method != "OBDSD" else ["--data.batch_size", "16"]
    elif dataset != "Folder":
        flags += ["--data.dataset.partial", "true"]
    backbone = (model.get("init_args") or {}).get("backbone") or {}
    transformer = str(backbone.get("name", "")).startswith("vit")
    options = {**backbone.get("options", {}), **SMALL_VIT} if transformer else yaml.safe_load(SMALL_NETWORK)
    flags += ["--model.backbone.pretrained", "false", "--model.backbone.options", json.dumps(options)]
    views = fill_in(config, method_of(config))["data"].get("views")
    if dataset != "Digits" and views and "crops" not in (views.get("init_args") or {}):
        flags += ["--data.views.size", "32"]
    if method == "CMD":
        flags += [*CMD_SMALL, *(["--data.views.local_size", "16"] if dataset != "Digits" else [])]
    flags += {
        "MaskCon": ["--model.memory", "4"],
        "MLS": ["--model.memory", "4"],
        "OBDSD": ["--data.images_per_class", "2"],
        "Detect": ["--model.sizes", "[64]", "--model.width", "8"],
        "Segment": ["--data.size", "32", "--model.width", "8"],
    }.get(method, [])
    return flags


def short_name(section: Any) -> str:
    """``CUB`` for ``CUB``, ``{class_path: CUB}`` and ``{class_path: fgssl.data.datasets.CUB}``."""
    name = section if isinstance(section, str) else section["class_path"]
    return name.rpartition(".")[2]


def torchrun(arguments: list[str]) -> int:
    """Parse torchrun's own options, and those of the fgssl command behind them."""
    from torch.distributed.run import parse_args

    told = parse_args(arguments)
    assert told.module
    assert told.training_script == "fgssl"
    command, *rest = told.training_script_args
    return parse(command, rest)


def pip(arguments: list[str]) -> int:
    """Check that ``pip install 'fgssl[extra]'`` names extras that exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert arguments[0] == "install"
    for wanted in arguments[1:]:
        name, inside = re.fullmatch(r"(\w+)\[([\w,]+)\]", wanted).groups()
        assert name == "fgssl"
        assert set(inside.split(",")) <= extras.keys()
    return 0
