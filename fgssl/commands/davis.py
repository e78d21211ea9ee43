"""``fgssl davis``: video object segmentation by label propagation with the patch features of a trained network."""

import argparse
import hashlib
import os
import time
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import yaml

from fgssl.cli.command_parser import CommandParser
from fgssl.commands.networks import (
    FOLLOWING,
    add_network_flags,
    backbone_of,
    check_network_flags,
    network_configuration,
    public_name,
)
from fgssl.errors import UserError
from fgssl.evaluation.davis import Davis, check, evaluate, sequences

SEED = 0  # of an untrained network


def main(argv: list[str]) -> int:
    """Run ``fgssl davis <argv>``."""
    args = _parser().parse_args(argv)
    check_network_flags(args)
    options = options_of(args)
    check(options)
    folder = Path(args.run_root) / "davis" / (args.name or name_of(args))
    if (folder / "results.json").is_file():
        raise UserError(f"{folder} already contains a result. Choose another --run.name.")
    make_folder(folder, "--run.root")
    if options.save:
        make_folder(Path(options.save), "--save")

    import torch

    from fgssl.data.augment import normalise
    from fgssl.report.summary import print_summary
    from fgssl.run import provenance, shown, write_json

    began = time.time()
    config = network_configuration(args)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    network = build(config, args).to(device).eval()
    mean, std = mean_and_std(config)

    def prepare(images: torch.Tensor) -> torch.Tensor:
        return normalise(images.to(device).float().div_(255), mean, std)

    figures = evaluate(network, options, prepare)
    results = {
        "experiment": "davis", "run": folder.name, "method": method_of(config, args), "dataset": "davis2017",
        "seed": SEED, "status": "finished", "metrics": {f"test/{name}": value for name, value in figures.items()},
        "ckpt_path": args.ckpt_path, "data": described(options), "duration_s": round(time.time() - began, 1),
        **provenance(),
    }  # fmt: skip
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"davis": {**vars(args), "root": options.root}, "model": config.get("model")})
    )
    write_json(folder / "results.json", results)
    print_summary(results, shown(folder))
    return 0


def make_folder(folder: Path, option: str) -> None:
    """Make a folder that is written to after the evaluation of a video, or of all.

    Raises:
        UserError: nothing can be written to it; names the option.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as fault:
        raise UserError(f"{option}: nothing can be written to {folder} ({fault.strerror}).") from fault


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="fgssl davis",
        description="Video object segmentation on DAVIS 2017. Propagates the objects of the first frame by the "
        "similarity of patch features. Reports region similarity J and contour accuracy F.",
    )
    add_network_flags(parser, default=FOLLOWING)
    parser.add_argument(
        "--root", metavar="FOLDER", help="folder with JPEGImages, Annotations and ImageSets; default $FGSSL_DATA/DAVIS"
    )
    parser.add_argument(
        "--run.root", dest="run_root", default="runs", metavar="FOLDER", help="folder of all runs; default runs"
    )
    parser.add_argument("--run.name", dest="name", metavar="NAME", help="name of the run; default: name of the network")
    parser.add_argument(
        "--short_side",
        type=int,
        default=480,
        metavar="PX",
        help="shorter side of the resized frames; default 480",
    )
    parser.add_argument(
        "--topk",
        type=int,
        default=5,
        help="most similar patches that vote for a label; default 5",
    )
    parser.add_argument(
        "--radius",
        type=int,
        default=12,
        help="largest distance of a voting patch, in patches; default 12",
    )
    parser.add_argument("--frames", type=int, default=7, help="previous frames that vote with the first; default 7")
    parser.add_argument("--temperature", type=float, default=0.1, help="temperature of the votes' softmax; default 0.1")
    parser.add_argument("--partial", action="store_true", help="accept a val.txt that does not name 30 sequences")
    parser.add_argument("--save", metavar="FOLDER", help="folder for the predicted masks, as palette PNGs")
    return parser


def options_of(args: argparse.Namespace) -> Davis:
    """Options of the evaluation."""
    given = {field.name: getattr(args, field.name) for field in fields(Davis)}
    return Davis(**{**given, "root": args.root or os.path.join(os.environ.get("FGSSL_DATA", "."), "DAVIS")})


def name_of(args: argparse.Namespace) -> str:
    """Name of a public network, such as ``vit_small_patch16_224.dino``, or of the run."""
    if args.model:
        return public_name(args)
    path = Path(args.ckpt_path)
    return (path.parent.parent if path.suffix == ".ckpt" else path).name + (f"_{args.network}" if args.network else "")


def method_of(config: dict[str, Any], args: argparse.Namespace) -> str:
    """Name of the network in tables: ``Frozen`` for a public one, ``FLSL``, ``DINO (student)``."""
    from fgssl.report.runs import run_of

    if args.model:
        return "Frozen"
    run = run_of(args.ckpt_path)
    name = run.method if run else str(config["model"]["class_path"]).rsplit(".", 1)[-1]
    return name + (f" ({args.network})" if args.network else "")


def build(config: dict[str, Any], args: argparse.Namespace) -> Any:
    """The network with its weights, for images of any size."""
    import torch

    from fgssl.checkpoint import load_backbone
    from fgssl.nn.backbones import Backbone, of_any_size

    torch.manual_seed(SEED)  # of the weights that no file gives
    backbone = Backbone(**backbone_of(config["model"]))
    if not args.ckpt_path:
        return of_any_size(backbone)
    network = of_any_size(replace(backbone, pretrained=False, weights=None))
    load_backbone(network, args.ckpt_path, args.network, option="--ckpt_path")
    return network


def mean_and_std(config: dict[str, Any]) -> Any:
    """Channel means and deviations of a configuration; in place of null, those of its starting weights."""
    from fgssl.data.normalisation import normalisation
    from fgssl.nn.backbones import Backbone

    data = config.get("data") or {}
    mean, std = data.get("mean"), data.get("std")
    known = mean and std  # a run's own: its starting weights need not be there any more
    return normalisation(mean, std, None if known else Backbone(**backbone_of(config["model"])).normalisation())


def described(options: Davis) -> dict[str, Any]:
    """The evaluated data; ``fgssl compare`` compares only runs on equal data."""
    names = sequences(options)
    rows = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
    nothing = {"images": 0, "classes": 0, "rows_hash": "-"}
    return {
        "dataset": "davis2017",
        "split": "val",
        "train": nothing,
        "test": {**nothing, "images": len(names), "rows_hash": rows},
    }
