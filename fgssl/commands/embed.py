"""``fgssl embed``: the embeddings, labels and paths of a data set by a checkpoint of ours or a public network.

The test rows are evaluated on the way, by the protocol of every other run: the folder has a ``results.json``, so that a
public network stands in the same table of ``fgssl compare``.
"""

import argparse
from pathlib import Path
from typing import Any

from fgssl.cli.command_parser import CommandParser
from fgssl.cli.compose import assign, read_section
from fgssl.errors import UserError, did_you_mean

POINTS = 3_000  # images in a map: t-SNE takes about ten seconds for them, a minute for 8,000
HOW_SEEN = ("views", "eval_size", "eval_resize", "eval_resample", "mean", "std")  # of a data section
ROWS = 50_000  # images a file: 400 MB of a ResNet-50's features


def main(argv: list[str]) -> int:
    """Run ``fgssl embed <argv>``."""
    parser = _parser()
    args, flags = parser.parse_known_args(argv)
    refuse_misspelt(flags, [action.dest for action in parser._actions])
    if not (args.ckpt_path or args.model or args.config):
        raise UserError("embed what? Give --ckpt_path RUN, --model timm/NAME, or --config FILE (an untrained network).")
    if args.ckpt_path and args.model:
        raise UserError("--ckpt_path and --model: a checkpoint has its own network. Give one of them.")
    if args.rows < 1:
        raise UserError(f"--rows is {args.rows}; a file holds at least one image.")
    if args.points < 0:
        raise UserError(f"--points is {args.points}; it must be 0 (all images) or more.")

    from fgssl.cli.main import start  # torch from here on
    from fgssl.commands.restore import configuration

    config = configuration(args.ckpt_path, args.config)
    if args.data:
        set_data(config, args.data)
    if args.model:
        set_public_network(config, args.model, args.pretrained == "true", flags)
    name_run(config, args)

    import torch

    from fgssl.callbacks.shards import Shards
    from fgssl.cli.application import Application
    from fgssl.evaluation.embedding import Embeddings
    from fgssl.evaluation.store import read_embeddings

    class Embedding(Application):
        """A test whose embeddings are kept; of other rows than the test's, the embeddings alone."""

        def _callbacks(self) -> list:
            folder = self.folder / "embeddings"
            if folder.exists():
                raise UserError(f"{folder} is there already. Choose another --run.name.")
            kept = [c for c in super()._callbacks() if args.part == "test" or c is not self.retrieval]
            return [*kept, Shards(folder, args.part, args.rows)]

        def test(self, **options: Any) -> None:
            if args.part == "test":
                self.trainer.test(**options)
                return
            data = self.datamodule
            if args.part == "val" and not data.has_validation:
                raise UserError("--part val: the protocol holds no validation rows out (data.protocol.val_fraction).")
            data.predict_dataloader = data.gallery_loader if args.part == "train" else data.val_dataloader
            self.trainer.predict(self.model, data, ckpt_path=self.options.get("ckpt_path"), return_predictions=False)

        def after_test(self) -> None:
            if args.part == "test":
                super().after_test()
                self._draw()
            if self.trainer.is_global_zero:
                print(f"embeddings: {self.folder / 'embeddings'}")

        def _draw(self) -> None:
            if not (self.retrieval.grid and self.trainer.is_global_zero):
                return
            from fgssl.report.pictures import draw_maps

            stored = read_embeddings(self.folder)
            columns = (torch.from_numpy(column) for column in (stored.embedding, stored.fine, stored.index))
            draw_maps(Embeddings(*columns), self.datamodule.parts.index, self.folder, self.trainer.loggers, args.points)

    return start("test", config, flags, config["run"]["experiment"], Embedding)


def refuse_misspelt(flags: list[str], own: list[str]) -> None:
    """Say of a flag that is left for ``fgssl test`` that one of ours was meant."""
    for flag in flags:
        name = flag.removeprefix("--").split("=")[0]
        hint = did_you_mean(name, own) if flag.startswith("--") and "." not in name else ""
        if hint:
            raise UserError(f"unknown option --{name}.{hint}")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="fgssl embed",
        description="Write embeddings, labels and paths to <run folder>/embeddings/*.npz, and evaluate the test rows.",
        epilog="Every option of fgssl test is taken too, such as --retrieval.grid 0 (no pictures) or --run.name NAME.",
    )
    parser.add_argument(
        "--ckpt_path", metavar="RUN", help="a run folder or .ckpt file of ours; its configuration is used"
    )
    parser.add_argument("--model", metavar="timm/NAME", help="a public network instead, with its own input size")
    parser.add_argument("--pretrained", choices=("true", "false"), default="true", help="of --model; default true")
    parser.add_argument(
        "--config", metavar="FILE", action="append", default=[], help="experiment instead of the run's own"
    )
    parser.add_argument("--data", metavar="NAME|FILE", help="other data: a data set (cub) or a file of configs/data/")
    parser.add_argument("--part", choices=("test", "train", "val"), default="test", help="which rows; default test")
    parser.add_argument(
        "--points", type=int, default=POINTS, help=f"most images in tsne.png and umap.png; 0: all; default {POINTS:,}"
    )
    parser.add_argument("--rows", type=int, default=ROWS, help=f"images a file; default {ROWS:,}")
    return parser


def set_data(config: dict[str, Any], data: str) -> None:
    """Replace the data set by name, or the data section by a file; images are seen as before where it says nothing."""
    from fgssl.data.datasets import ALL

    if data.endswith((".yaml", ".yml")):
        seen = {option: value for option, value in (config.get("data") or {}).items() if option in HOW_SEEN}
        config["data"] = seen | read_section(data)
        return
    known = {cls.__name__.lower(): cls.__name__ for cls in ALL.values()}
    if data.lower() not in known:
        raise UserError(f"--data: no data set '{data}'.{did_you_mean(data.lower(), known)} See fgssl data list.")
    assign(config, "data.dataset", {"class_path": known[data.lower()]})


def set_public_network(config: dict[str, Any], model: str, pretrained: bool, flags: list[str]) -> None:
    """Take a timm network as the method, and show it images as it was trained on: size, crop, mean and deviation."""
    import timm

    family, _, name = model.partition("/")
    if family != "timm" or not name:
        raise UserError(f"--model: '{model}' is not of the form timm/NAME, such as timm/resnet50.a1_in1k.")
    config["model"] = {"class_path": "Frozen", "init_args": {"backbone": {"name": name, "pretrained": pretrained}}}
    trained = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if trained is None:
        return  # an unknown name is said, with a suggestion, when the network is built
    size = trained.input_size[-1]
    options: dict[str, Any] = {"eval_size": size, "eval_resize": round(size / (trained.crop_pct or 1))}
    options |= {"mean": list(trained.mean), "std": list(trained.std)}
    for option, value in options.items():
        if not any(flag.split("=")[0] == f"--data.{option}" for flag in flags):
            assign(config, f"data.{option}", value)


def name_run(config: dict[str, Any], args: argparse.Namespace) -> None:
    """The folder: that of the run with ``_embed``, or ``runs/embed/<network>_<data set>``; flags may say otherwise."""
    part = "" if args.part == "test" else f"_{args.part}"
    run = config.setdefault("run", {})
    if args.ckpt_path and not args.config:
        from fgssl.cli.application import checkpoint_file

        folder = checkpoint_file(args.ckpt_path).resolve().parent.parent
        data = f"_{Path(args.data).stem.lower()}" if args.data else ""
        run |= {"root": str(folder.parent.parent), "experiment": folder.parent.name}
        run["name"] = f"{folder.name}_embed{part}{data}"
        return
    network = args.model.partition("/")[2] if args.model else "checkpoint" if args.ckpt_path else "untrained"
    dataset = (config.get("data") or {}).get("dataset") or "data"
    dataset = dataset["class_path"].rsplit(".", 1)[-1] if isinstance(dataset, dict) else dataset
    run |= {"experiment": "embed", "name": f"{network}_{dataset.lower()}{part}"}
