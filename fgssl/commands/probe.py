"""``fgssl probe``: a linear classifier on the frozen features of a checkpoint, a public or an untrained network.

It runs ``fgssl fit`` with the task ``Probe``. Network and data come from the run of the checkpoint, views and settings
from a published recipe. Its run folder and resuming are those of ``fgssl fit``.
"""

import argparse
import json
from typing import Any

from fgssl.cli.command_parser import CommandParser
from fgssl.cli.compose import assign, class_of, read_yaml
from fgssl.commands.embed import refuse_misspelt
from fgssl.commands.networks import (
    FOLLOWING,
    add_data_flag,
    add_network_flags,
    add_size_flag,
    backbone_of,
    check_network_flags,
    name_run,
    network_configuration,
    size_of,
)

EPOCHS = 100
RECIPES: dict[str, dict[str, Any]] = {
    # eval_linear.py of EsViT and CMD; the optimiser is the default of Probe
    "cmd": {"model": {"blocks": 4}, "data": {"batch_size": 128, "eval_resample": "bicubic"}},
    # main_lincls.py of LCR, whose results are the ResNet-50 rows of CMD's Table I; learning rate not scaled
    "lcr": {
        "model": {
            "blocks": 1,
            "unit_length": True,
            "optim": {
                "name": "sgd", "lr": 30.0, "momentum": 0.9, "weight_decay": 0.0, "warmup": 0,
                "reference_batch": None, "schedule": "steps", "milestones": [60, 80], "gamma": 0.1,
            },
        },
        "data": {"batch_size": 256, "eval_resample": "bilinear"},
    },
}  # fmt: skip
SHRINK = 256 / 224  # shorter side of a resized test image, relative to its central crop
OF_ANY_FIT = ("accelerator", "precision")  # trainer options that are copied from the run


def main(argv: list[str]) -> int:
    """Run ``fgssl probe <argv>``."""
    parser = _parser()
    args, flags = parser.parse_known_args(argv)
    refuse_misspelt(flags, [action.dest for action in parser._actions])
    check_network_flags(args, untrained=True)

    from fgssl.cli.defaults import method_of  # torch from here on
    from fgssl.cli.main import check_embeds, start

    config = network_configuration(args, flags)
    check_embeds(method_of(config))
    if args.eval_size is not None:
        assign(config, "data.eval_size", args.eval_size)
        assign(config, "data.eval_resize", None)
    probe_of(config, args)
    return start("fit", config, flags, config["run"]["experiment"])


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="fgssl probe",
        description="Train a linear classifier on frozen features. Reports top-1 and top-5 accuracy after training.",
        epilog="Accepts all options of fgssl fit too: --data.protocol.label_fraction 0.2 (fraction of labels for the "
        "classifier), --trainer.max_epochs 50, --model.optim.lr 0.01, --run.name NAME, --run.resume true.",
    )
    add_network_flags(parser, default=FOLLOWING)
    add_data_flag(parser)
    add_size_flag(parser)
    parser.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        default="cmd",
        help="cmd (code of EsViT and CMD): 4 blocks, batch size 128, learning rate 0.001 x batch size / 256, cosine "
        "schedule, bicubic test view; lcr (code of LCR): pooled feature of unit length, batch size 256, learning rate "
        "30, divided by 10 after 60 and 80 epochs, bilinear test view; default cmd",
    )
    parser.add_argument(
        "--blocks",
        type=int,
        help="number of last blocks whose outputs are used; 1: the pooled feature; default: as in the recipe",
    )
    parser.add_argument(
        "--augment",
        choices=("true", "false"),
        default="true",
        help="train on random crops and flips; false: on central crops, whose features are computed once; default true",
    )
    return parser


def probe_of(config: dict[str, Any], args: argparse.Namespace) -> None:
    """Turn the configuration of a run into the configuration of its probe, in place."""
    probed = config.get("model")
    config.pop("ckpt_path", None)
    recipe = RECIPES[args.recipe]
    model = {"backbone": backbone_of(probed), **recipe["model"], "augment": args.augment == "true"}
    model |= {} if args.blocks is None else {"blocks": args.blocks}
    model |= {"init_from": args.ckpt_path, "network": args.network if args.ckpt_path else None}
    model |= {"of": name_of(probed, args)}
    config["model"] = {"class_path": "Probe", "init_args": model}
    config["data"] = of_data_module(config.get("data") or {})
    set_views(config["data"])
    config["data"] |= recipe["data"]
    trainer = config.get("trainer") or {}
    config["trainer"] = {option: trainer[option] for option in OF_ANY_FIT if option in trainer}
    config["trainer"] |= {"max_epochs": EPOCHS, "log_every_n_steps": 10}
    config["checkpoint"] = {"monitor": "val/top1", "every_n_epochs": max(1, EPOCHS // 10)}
    assign(config, "retrieval.grid", 0)
    name_run(config, args, "probe", "" if args.recipe == "cmd" else args.recipe)
    if args.ckpt_path:
        config["run"].setdefault("paper", paper_of(args.ckpt_path))


def name_of(model: Any, args: argparse.Namespace) -> str:
    """Name of the probed network in tables: ``MaskCon/grafit``, ``timm/resnet50``, ``MaskCon (untrained)``."""
    from fgssl.report.runs import label, public_label

    if args.model:
        return public_label(args.model.partition("/")[2], args.pretrained == "true", args.weights, args.network)
    if not args.ckpt_path:
        return f"{str(class_of(model)[0]).rsplit('.', 1)[-1]} (untrained)"
    from fgssl.checkpoint import checkpoint_file, read_checkpoint

    path = checkpoint_file(args.ckpt_path)
    results = path.parent.parent / "results.json"
    said = json.loads(results.read_text()) if results.is_file() else read_checkpoint(str(path))
    return label(str(said.get("method")), said.get("variant"))


def paper_of(ckpt_path: str) -> str | None:
    """``run.paper`` of the run of a checkpoint, or None."""
    from fgssl.checkpoint import checkpoint_file

    saved = checkpoint_file(ckpt_path).parent.parent / "config.yaml"
    return (read_yaml(saved).get("run") or {}).get("paper") if saved.is_file() else None


def of_data_module(data: dict[str, Any]) -> dict[str, Any]:
    """The options that the probe's data module has; a method of one's own may have a data module with others."""
    from jsonargparse._parameter_resolvers import get_signature_parameters

    from fgssl.data.datamodule import DataModule

    accepted = {parameter.name for parameter in get_signature_parameters(DataModule, None)}
    left_out = [f"data.{option}" for option in data if option not in accepted]
    if left_out:
        print(f"Not used by the probe: {', '.join(left_out)}, of the method's own data module.")
    return {option: value for option, value in data.items() if option in accepted}


def set_views(data: dict[str, Any]) -> None:
    """Set random crops with flips for training and central crops for testing, at the evaluation size of the run."""
    size = size_of(data)
    data["eval_size"] = size
    data["eval_resize"] = data.get("eval_resize") or round(SHRINK * size)
    data["views"] = {"class_path": "SingleView", "init_args": {"size": size}}
    data |= {"images_per_class": None, "replacement": False}
