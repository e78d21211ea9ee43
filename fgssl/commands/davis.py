"""``fgssl davis``: video object segmentation by label propagation, by the patches of a trained network."""

import argparse
import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from fgssl.cli.command_parser import Parser
from fgssl.commands.networks import (
    FOLLOWING,
    add_network_flags,
    backbone_of,
    check_network_flags,
    network_configuration,
    public_name,
)
from fgssl.errors import UserError


def main(argv: list[str]) -> int:
    """Run ``fgssl davis <argv>``."""
    import fgssl.evaluation.davis as davis

    parser = _parser()
    davis.add_arguments(parser)
    args = parser.parse_args(argv)
    check_network_flags(args)
    args.root = args.root or os.path.join(os.environ.get("FGSSL_DATA", "."), "DAVIS")
    davis.check(args)
    folder = Path(args.run_root) / "davis" / (args.name or name_of(args))
    if (folder / "results.json").is_file():
        raise UserError(f"{folder} holds a result already. Choose another --run.name.")

    import torch

    from fgssl.data.augment import IMAGENET_MEAN, IMAGENET_STD, normalise
    from fgssl.report.summary import print_summary
    from fgssl.run import provenance, write_json

    began = time.time()
    config = network_configuration(args)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = build(config, args).to(device).eval()
    data = config.get("data") or {}
    mean, std = tuple(data.get("mean") or IMAGENET_MEAN), tuple(data.get("std") or IMAGENET_STD)

    def prepare(images: torch.Tensor) -> torch.Tensor:
        return normalise(images.to(device).float().div_(255), mean, std)

    figures = davis.evaluate(network, args, prepare)
    results = {
        "experiment": "davis", "run": folder.name, "method": name_of(args), "dataset": "davis2017", "seed": 0,
        "status": "finished", "metrics": {f"test/{name}": value for name, value in figures.items()},
        "ckpt_path": args.ckpt_path, "data": described(args), "duration_s": round(time.time() - began, 1),
        **provenance(),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"davis": vars(args), "model": config.get("model")}))
    write_json(folder / "results.json", results)
    print_summary(results, folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="fgssl davis",
        description="DAVIS 2017: carry the first frame's objects through each video by the likeness of patches; "
        "region similarity J and contour accuracy F.",
    )
    add_network_flags(parser, default=FOLLOWING)
    parser.add_argument("--root", metavar="FOLDER", help="holds JPEGImages/ ...; default: $FGSSL_DATA/DAVIS")
    parser.add_argument("--run.root", dest="run_root", default="runs", metavar="FOLDER", help="of all runs")
    parser.add_argument("--run.name", dest="name", metavar="NAME", help="of this one; default: the network's")
    return parser


def name_of(args: argparse.Namespace) -> str:
    """Of the network: ``vit_small_patch16_224.dino``, or that of the run."""
    if args.model:
        return public_name(args)
    path = Path(args.ckpt_path)
    return (path.parent.parent if path.suffix == ".ckpt" else path).name + (f"_{args.network}" if args.network else "")


def build(config: dict[str, Any], args: argparse.Namespace) -> Any:
    """The network with its weights, for images of any size."""
    from fgssl.checkpoint import load_backbone
    from fgssl.nn.backbones import Backbone, of_any_size

    backbone = Backbone(**backbone_of(config["model"]))
    if not args.ckpt_path:
        return of_any_size(backbone)
    network = of_any_size(replace(backbone, pretrained=False, weights=None))
    load_backbone(network, args.ckpt_path, args.network, option="--ckpt_path")
    return network


def described(args: argparse.Namespace) -> dict[str, Any]:
    """What was evaluated, so that ``fgssl compare`` sets like beside like."""
    import fgssl.evaluation.davis as davis

    names = davis.sequences(args)
    rows = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
    nothing = {"images": 0, "classes": 0, "rows_hash": "-"}
    return {
        "dataset": "davis2017",
        "split": "val",
        "train": nothing,
        "test": {**nothing, "images": len(names), "rows_hash": rows},
    }
