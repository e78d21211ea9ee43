"""``fgssl probe``: a linear classifier on the frozen features of a checkpoint, a public or an untrained network.

It is ``fgssl fit`` of the method ``Probe`` with a configuration made here: network and data from the run, views and
settings from a published recipe. Its run folder is like any other, and it resumes like any other.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from fgssl.cli.command_parser import CommandParser
from fgssl.cli.compose import assign, read_yaml
from fgssl.commands.embed import refuse_misspelt, set_data, set_public_network
from fgssl.errors import UserError

EPOCHS = 100
RECIPES: dict[str, dict[str, Any]] = {
    # eval_linear.py of EsViT and CMD; the optimiser is Probe's default
    "cmd": {"model": {"blocks": 4}, "data": {"batch_size": 128, "eval_resample": "bicubic"}},
    # main_lincls.py of LCR, whose numbers are the ResNet-50 rows of CMD's Table I; there the rate is not scaled
    "lcr": {
        "model": {
            "blocks": 1,
            "unit_length": True,
            "optim": {
                "name": "sgd", "lr": 30.0, "momentum": 0.9, "weight_decay": 0.0, "warmup_epochs": 0,
                "reference_batch": None, "schedule": "steps", "milestones": [60, 80], "gamma": 0.1,
            },
        },
        "data": {"batch_size": 256, "eval_resample": "bilinear"},
    },
}  # fmt: skip
SHRINK = 256 / 224  # shorter side of a resized test image, relative to its central crop
OF_ANY_FIT = ("accelerator", "precision")  # trainer options that a probe takes over from its run


def main(argv: list[str]) -> int:
    """Run ``fgssl probe <argv>``."""
    parser = _parser()
    args, flags = parser.parse_known_args(argv)
    refuse_misspelt(flags, [action.dest for action in parser._actions])
    if not (args.ckpt_path or args.model or args.config):
        raise UserError(
            "fgssl probe needs a network: --ckpt_path RUN, --model timm/NAME, or --config FILE (an untrained one)."
        )
    if args.ckpt_path and args.model:
        raise UserError("--ckpt_path and --model exclude each other: a checkpoint has its own network.")

    from fgssl.cli.main import start  # torch from here on
    from fgssl.commands.restore import configuration

    config = configuration(args.ckpt_path, args.config)
    if args.data:
        set_data(config, args.data)
    if args.model:
        set_public_network(config, args.model, args.pretrained == "true", flags)
    if args.eval_size:
        assign(config, "data.eval_size", args.eval_size)
        assign(config, "data.eval_resize", None)
    probe_of(config, args)
    return start("fit", config, flags, config["run"]["experiment"])


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="fgssl probe",
        description="Train a linear classifier on frozen features. Reports top-1 and top-5 after the last epoch.",
        epilog="Every option of fgssl fit is taken too: --data.protocol.label_fraction 0.2 (labels for the classifier "
        "alone), --trainer.max_epochs 50, --model.optim.lr 0.01, --run.name NAME, --run.resume true.",
    )
    parser.add_argument("--ckpt_path", metavar="RUN", help="run folder or .ckpt file of a trained method")
    parser.add_argument(
        "--model", metavar="timm/NAME", help="public network instead of a checkpoint, at its own input size"
    )
    parser.add_argument(
        "--pretrained",
        choices=("true", "false"),
        default="true",
        help="load the published weights of --model; default true",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        default=[],
        help="experiment file; replaces the run's configuration",
    )
    parser.add_argument(
        "--data", metavar="NAME|FILE", help="another data set: its name (cub) or a file of configs/data/"
    )
    parser.add_argument(
        "--data.eval_size",
        metavar="PX",
        dest="eval_size",
        type=int,
        help="side of the crops in px; default: that of training",
    )
    parser.add_argument(
        "--network",
        choices=("student", "teacher"),
        help="network of the checkpoint to probe; default: the teacher where there is one",
    )
    parser.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        default="cmd",
        help="cmd (EsViT's and CMD's code): 4 blocks, batch 128, rate 0.001 x batch / 256, cosine, bicubic test view; "
        "lcr (LCR's code): pooled feature of unit length, batch 256, rate 30, divided by 10 after 60 and 80 epochs, "
        "bilinear test view; default cmd",
    )
    parser.add_argument(
        "--blocks",
        type=int,
        help="number of last blocks whose outputs are taken; 1: the pooled feature; default: the recipe's",
    )
    parser.add_argument(
        "--augment",
        choices=("true", "false"),
        default="true",
        help="train on random crops and flips; false: on central crops, whose features are computed once; default true",
    )
    return parser


def probe_of(config: dict[str, Any], args: argparse.Namespace) -> None:
    """Turn the configuration of a run into that of its probe, in place."""
    probed = config.get("model") or {}
    probed = probed if isinstance(probed, dict) else {"class_path": probed}
    config.pop("ckpt_path", None)
    recipe = RECIPES[args.recipe]
    model = {"backbone": backbone_of(probed), **recipe["model"], "augment": args.augment == "true"}
    model |= {} if args.blocks is None else {"blocks": args.blocks}
    model |= {"init_from": args.ckpt_path, "network": args.network, "of": name_of(probed, args)}
    config["model"] = {"class_path": "Probe", "init_args": model}
    set_views(config.setdefault("data", {}))
    config["data"] |= recipe["data"]
    trainer = config.get("trainer") or {}
    config["trainer"] = {option: trainer[option] for option in OF_ANY_FIT if option in trainer}
    config["trainer"] |= {"max_epochs": EPOCHS, "log_every_n_steps": 10}
    config["checkpoint"] = {"monitor": "val/top1", "every_n_epochs": max(1, EPOCHS // 10)}
    assign(config, "retrieval.grid", 0)
    name_run(config, args)


def backbone_of(model: dict[str, Any]) -> dict[str, Any]:
    """Backbone settings of a method's configuration, with the method's defaults.

    Raises:
        UserError: there is no such method, or its constructor has no ``backbone``.
    """
    from fgssl.cli.defaults import backbone_default
    from fgssl.methods.base import method_class

    method = method_class(str(model.get("class_path")))
    default = backbone_default(method)
    if default is None:
        raise UserError(f"model {method.__name__} has no option backbone, so that its network cannot be built again.")
    return default | ((model.get("init_args") or {}).get("backbone") or {})


def name_of(model: dict[str, Any], args: argparse.Namespace) -> str:
    """Name of the probed network in the tables: ``MaskCon/grafit``, ``timm/resnet50``, ``MaskCon (untrained)``."""
    from fgssl.report.runs import label

    if args.model:
        return args.model + ("" if args.pretrained == "true" else " (random weights)")
    if not args.ckpt_path:
        return f"{str(model['class_path']).rsplit('.', 1)[-1]} (untrained)"
    from fgssl.checkpoint import checkpoint_file, read_checkpoint

    path = checkpoint_file(args.ckpt_path)
    results = path.parent.parent / "results.json"
    said = json.loads(results.read_text()) if results.is_file() else read_checkpoint(str(path))
    return label(str(said.get("method")), said.get("variant"))


def set_views(data: dict[str, Any]) -> None:
    """Set random crops with flip for training and central crops for testing, at the run's evaluation size."""
    size = data.get("eval_size") or view_size(data.get("views"))
    data["eval_size"] = size
    data["eval_resize"] = data.get("eval_resize") or round(SHRINK * size)
    data["views"] = {"class_path": "SingleView", "init_args": {"size": size}}
    data |= {"images_per_class": None, "replacement": False}


def view_size(views: Any) -> int:
    """Side of the first view of a data section in px."""
    options = (views.get("init_args") or views) if isinstance(views, dict) else {}
    first = (options.get("crops") or [options])[0]
    return first.get("size", 224)


def name_run(config: dict[str, Any], args: argparse.Namespace) -> None:
    """Set the run's folder: ``<probed run>_probe``, or ``runs/probe/<network>_<data set>``; flags take precedence.

    The name of a recipe other than the default is appended.
    """
    run = config.setdefault("run", {})
    recipe = "" if args.recipe == "cmd" else f"_{args.recipe}"
    if args.ckpt_path:
        from fgssl.checkpoint import checkpoint_file

        folder = checkpoint_file(args.ckpt_path).resolve().parent.parent
        if (folder / "config.yaml").is_file():
            data = f"_{Path(args.data).stem.lower()}" if args.data else ""
            run |= {"root": str(folder.parent.parent), "experiment": folder.parent.name}
            run |= {"name": f"{folder.name}_probe{recipe}{data}"}
            run.setdefault("paper", (read_yaml(folder / "config.yaml").get("run") or {}).get("paper"))
            return
    network = args.model.partition("/")[2] if args.model else "checkpoint" if args.ckpt_path else "untrained"
    dataset = config["data"].get("dataset") or "data"
    dataset = dataset["class_path"].rsplit(".", 1)[-1] if isinstance(dataset, dict) else dataset
    run |= {"experiment": "probe", "name": f"{network}_{dataset.lower()}{recipe}"}
