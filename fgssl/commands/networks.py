"""Flags that name a network and its data, shared by the commands that take a network."""

import argparse
import importlib
import re
from pathlib import Path
from typing import Any

from fgssl.cli.compose import assign, class_of, read_section
from fgssl.errors import UserError, did_you_mean

# Options of the data section that belong to the network, not to the data set.
HOW_SEEN = ("views", "eval_size", "eval_resize", "eval_resample", "mean", "std")
EVALUATED, FOLLOWING = "the one that its method evaluates", "the teacher if it has one, else the student"


def add_network_flags(parser: argparse.ArgumentParser, default: str = EVALUATED) -> None:
    """Add ``--ckpt_path``, ``--model``, ``--pretrained``, ``--weights``, ``--network`` and ``--config``.

    Args:
        parser: parser of the command.
        default: network of a checkpoint that is used without ``--network``, as text for the help.
    """
    flags = parser.add_argument_group("network")
    flags.add_argument("--ckpt_path", metavar="RUN", help="run folder or .ckpt file of any method")
    flags.add_argument(
        "--model",
        metavar="timm/NAME",
        help="public network instead of a checkpoint, with the image size, mean and deviation of its training",
    )
    flags.add_argument(
        "--pretrained",
        choices=("true", "false"),
        default="true",
        help="load timm's weights for --model; default true",
    )
    flags.add_argument(
        "--weights",
        metavar="FILE",
        help="weights for --model instead of timm's: state dict of timm or torchvision (.pth, .safetensors), "
        "checkpoint of MoCo, SimSiam, DINO, iBOT, EsViT or FLSL, or run folder",
    )
    flags.add_argument(
        "--network",
        choices=("student", "teacher"),
        help=f"network of a checkpoint, or of --weights with both; default for a checkpoint: {default}",
    )
    flags.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        default=[],
        help="experiment file instead of the run's configuration; can be repeated",
    )


def add_data_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--data``."""
    parser.add_argument(
        "--data",
        metavar="NAME|FILE",
        help="data to use instead of the run's: name of a data set (cub), dotted path of a class (my_data.Birds) or "
        "file of configs/data/",
    )


def add_size_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--data.eval_size``."""
    parser.add_argument(
        "--data.eval_size",
        metavar="PX",
        dest="eval_size",
        type=int,
        help="side of the crops in px; default: the evaluation size of the run, or the size of its first view",
    )


def size_of(data: dict[str, Any]) -> int:
    """Side in px of an evaluated image; 224 where the data section gives none."""
    views = data.get("views")
    options = (views.get("init_args") or views) if isinstance(views, dict) else {}
    first = (options.get("crops") or [options])[0]
    return data.get("eval_size") or first.get("size", 224)


def check_network_flags(args: argparse.Namespace, untrained: bool = False) -> None:
    """Check that the flags name exactly one network.

    Args:
        args: flags of ``add_network_flags``.
        untrained: accept ``--config`` alone, for an untrained network.

    Raises:
        UserError: no network or two networks are named, or a flag does not apply to the network.
    """
    choices = ["--ckpt_path RUN", "--model timm/NAME", *(["--config FILE (an untrained network)"] if untrained else [])]
    if not (args.ckpt_path or args.model or (untrained and args.config)):
        raise UserError(f"no network is named. Give {', '.join(choices[:-1])} or {choices[-1]}.")
    if args.ckpt_path and args.model:
        raise UserError("--ckpt_path and --model both name a network. Give one of them.")
    if args.weights and not args.model:
        raise UserError("--weights needs --model timm/NAME, the network of the weights.")
    if args.weights and not Path(args.weights).exists():
        raise UserError(f"--weights: no file {args.weights}.")
    if args.network and not (args.ckpt_path or args.weights):
        raise UserError(
            "--network chooses a network of a checkpoint or of --weights: give --ckpt_path RUN or --weights FILE."
        )


def parse_network(text: str) -> argparse.Namespace:
    """Parse a network that is given as a single argument into the flags of ``add_network_flags``.

    Args:
        text: run folder, .ckpt file, ``timm/NAME`` or ``timm/NAME=FILE``.
    """
    model, _, weights = text.partition("=") if text.startswith("timm/") else ("", "", "")
    named = {"ckpt_path": None if model else text, "model": model or None, "weights": weights or None}
    args = argparse.Namespace(**named, pretrained="true", network=None, config=[], data=None)
    check_network_flags(args)
    return args


def network_configuration(args: argparse.Namespace, flags: list[str] = []) -> dict[str, Any]:  # noqa: B006
    """Configuration of a run with its checkpoint, or of a public network, on the chosen data.

    Args:
        args: flags of ``add_network_flags``, and of ``add_data_flag`` if the command has it.
        flags: other options of the command line; options of the ``data`` section override those of a public network.
    """
    from fgssl.cli.saved import configuration

    config = configuration(args.ckpt_path, args.config)
    if getattr(args, "data", None):
        set_data(config, args.data)
    if args.model:
        set_public_network(config, args, flags)
    return config


def set_data(config: dict[str, Any], data: str) -> None:
    """Replace the data set, or the data section by a file, in place.

    Options in ``HOW_SEEN`` keep their values unless the file sets them.

    Args:
        config: configuration, changed in place.
        data: name of a data set, dotted path of a class, or YAML file.

    Raises:
        UserError: there is no such data set, class or file.
    """
    from fgssl.data.datasets import ALL

    if data.endswith((".yaml", ".yml")):
        seen = {option: value for option, value in (config.get("data") or {}).items() if option in HOW_SEEN}
        config["data"] = seen | read_section(data)
        return
    module, _, name = data.rpartition(".")
    if module:
        try:
            getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as fault:
            raise UserError(f"--data: '{data}' is no YAML file, and no class that can be imported ({fault}).") from None
        assign(config, "data.dataset", {"class_path": data})
        return
    known = {cls.__name__.lower(): cls.__name__ for cls in ALL.values()}
    if data.lower() not in known:
        raise UserError(f"--data: unknown data set '{data}'.{did_you_mean(data.lower(), known)} See fgssl data list.")
    assign(config, "data.dataset", {"class_path": known[data.lower()]})


def without_data(config: dict[str, Any]) -> None:
    """Set a data set that needs no files, for commands that read no data set."""
    config.setdefault("data", {}).setdefault("dataset", "Digits")


def take_backbone(config: dict[str, Any], args: argparse.Namespace) -> None:
    """Replace the method of a run by the backbone that ``--network`` chooses from its checkpoint, in place."""
    if not (args.ckpt_path and args.network):
        return
    weights = {"pretrained": False, "weights": config.pop("ckpt_path"), "weights_of": args.network}
    config["model"] = {"class_path": "Frozen", "init_args": {"backbone": backbone_of(config["model"]) | weights}}


def set_public_network(config: dict[str, Any], args: argparse.Namespace, flags: list[str]) -> None:
    """Set a timm network as the method, and its own size, crop, interpolation, mean and deviation, in place."""
    from fgssl.data.preprocessing import Preprocessing
    from fgssl.nn.backbones import Backbone, timm_with_ours

    timm = timm_with_ours()
    family, _, name = args.model.partition("/")
    if family != "timm" or not name:
        raise UserError(f"--model: '{args.model}' is not of the form timm/NAME. Did you mean 'timm/{args.model}'?")
    backbone = {"name": name, "pretrained": args.pretrained == "true" and not args.weights}
    backbone |= {"weights": args.weights, "weights_of": args.network if args.weights else None}
    config["model"] = {"class_path": "Frozen", "init_args": {"backbone": backbone}}
    of_weights = Backbone(**backbone).normalisation()
    trained = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if trained is None:
        return  # an unknown name is refused when the network is built
    seen = Preprocessing.of_timm(trained, of_weights)
    options: dict[str, Any] = {"eval_size": seen.size, "eval_resize": seen.resize, "eval_resample": seen.resample}
    options |= {"mean": list(seen.mean), "std": list(seen.std)}
    for option, value in options.items():
        if not any(flag.split("=")[0] == f"--data.{option}" for flag in flags):
            assign(config, f"data.{option}", value)


def backbone_of(model: Any) -> dict[str, Any]:
    """Options of the backbone in a model section, completed by the method's defaults.

    Raises:
        UserError: there is no such method, or its constructor has no ``backbone``.
    """
    from fgssl.cli.defaults import backbone_default
    from fgssl.methods.registry import method_class

    named, arguments = class_of(model)
    method = method_class(str(named))
    default = backbone_default(method)
    if default is None:
        raise UserError(f"model {method.__name__} has no option backbone, so its network cannot be rebuilt.")
    return default | (arguments.get("backbone") or {})


def public_name(args: argparse.Namespace) -> str:
    """Folder name of a public network: ``resnet50``, ``resnet50_random``, ``resnet50_moco_v2``."""
    name = args.model.partition("/")[2]
    if not args.weights:
        return name + ("_random" if args.pretrained == "false" else "")
    file = re.sub(r"(\.(safetensors|pth|tar|pt|bin|ckpt))+$", "", Path(args.weights).name)
    chosen = f"_{args.network}" if args.network else ""
    return (file if file.startswith(name) else f"{name}_{file}") + chosen


def data_name(data: str) -> str:
    """Name of the data of ``--data`` in a run's name: that of the file, or of the class without its package."""
    name = Path(data).stem if data.endswith((".yaml", ".yml")) else data.rpartition(".")[2]
    return name.lower()


def name_run(config: dict[str, Any], args: argparse.Namespace, command: str, part: str = "") -> None:
    """Set the ``run`` section for the evaluation of a network; ``--run`` options override it.

    For a checkpoint of a run: beside the run, with its name and the command. For other networks:
    ``runs/<command>/<network>_<data set>``.

    Args:
        config: configuration, changed in place.
        args: flags of ``add_network_flags`` and ``add_data_flag``.
        command: name of the command.
        part: suffix of the name, such as the embedded part; empty: no suffix.
    """
    from fgssl.checkpoint import checkpoint_file

    run, end = config.setdefault("run", {}), f"_{part}" if part else ""
    if args.ckpt_path and not args.config:
        folder = checkpoint_file(args.ckpt_path).resolve().parent.parent
        if (folder / "config.yaml").is_file():
            chosen = f"_{args.network}" if args.network else ""
            data = f"_{data_name(args.data)}" if args.data else ""
            run |= {"root": str(folder.parent.parent), "experiment": folder.parent.name}
            run |= {"name": f"{folder.name}_{command}{chosen}{end}{data}"}
            return
    network = public_name(args) if args.model else "checkpoint" if args.ckpt_path else "untrained"
    dataset = (config.get("data") or {}).get("dataset") or "data"
    dataset = dataset["class_path"].rsplit(".", 1)[-1] if isinstance(dataset, dict) else dataset
    run |= {"experiment": command, "name": f"{network}_{dataset.lower()}{end}"}
