"""``fgssl embed``: embeddings, labels and paths of a data set, from a checkpoint or a public network.

The test rows are also evaluated as by ``fgssl test``, so that ``fgssl compare`` includes public networks.
"""

import argparse
from pathlib import Path
from typing import Any

from fgssl.cli.command_parser import CommandParser
from fgssl.commands.networks import (
    add_data_flag,
    add_network_flags,
    check_network_flags,
    name_run,
    network_configuration,
    take_backbone,
)
from fgssl.errors import UserError, did_you_mean

POINTS = 3_000  # images in a map: about 10 s of t-SNE; 8,000 take a minute
ROWS = 50_000  # images per file: 400 MB of ResNet-50 features


def main(argv: list[str]) -> int:
    """Run ``fgssl embed <argv>``."""
    parser = _parser()
    args, flags = parser.parse_known_args(argv)
    refuse_misspelt(flags, [action.dest for action in parser._actions])
    check_network_flags(args, untrained=True)
    if args.rows < 1:
        raise UserError(f"--rows is {args.rows}; it must be 1 or more.")
    if args.points < 0:
        raise UserError(f"--points is {args.points}; it must be 0 (all images) or more.")

    from fgssl.cli.main import start  # torch from here on

    config = network_configuration(args, flags)
    take_backbone(config, args)
    name_run(config, args, "embed", "" if args.part == "test" else args.part)

    import numpy as np
    import torch
    from lightning.pytorch.callbacks import LambdaCallback

    from fgssl.callbacks.shards import Shards
    from fgssl.cli.application import Application
    from fgssl.evaluation.embedding import Embeddings
    from fgssl.evaluation.store import read_embeddings
    from fgssl.run import shown

    class Embedding(Application):
        """Writes embeddings; the test rows are also evaluated."""

        def _callbacks(self) -> list:
            refuse_unfinished(self.folder, self.options.run.resume)
            kept = [c for c in super()._callbacks() if args.part == "test" or c is not self.retrieval]
            draw = LambdaCallback(on_test_end=lambda *_: self._draw())  # before the run counts as finished
            weights = (self.checkpoint or {}).get("state_dict")
            return [draw, *kept, Shards(self.folder / "embeddings", args.part, args.rows, weights)]

        def test(self, **options: Any) -> None:
            data = self.datamodule
            if args.part == "test" and len(data.parts.test) == 0:
                raise UserError(f"{data.dataset.name} has no test images. Embed all images with --part all.")
            if args.part == "test":
                self.trainer.test(**options)
                return
            if args.part == "val" and not data.has_validation:
                raise UserError("--part val: there are no validation rows. Set data.protocol.val_fraction above 0.")
            every = np.arange(len(data.parts.index))
            loaders = {"train": data.gallery_loader, "val": data.val_dataloader}
            data.predict_dataloader = loaders.get(args.part) or (lambda: data.gallery_loader(every))
            self.trainer.predict(self.model, data, ckpt_path=self.options.get("ckpt_path"), return_predictions=False)

        def after_test(self) -> None:
            if args.part == "test":
                super().after_test()
            if self.trainer.is_global_zero:
                print(f"embeddings: {shown(self.folder / 'embeddings')}")

        def _draw(self) -> None:
            if not (self.retrieval.grid and self.trainer.is_global_zero):
                return
            from fgssl.report.pictures import draw_maps

            stored = read_embeddings(self.folder)
            columns = (torch.from_numpy(column) for column in (stored.embedding, stored.fine, stored.index))
            draw_maps(Embeddings(*columns), self.datamodule.parts.index, self.folder, self.trainer.loggers, args.points)

    return start("test", config, flags, config["run"]["experiment"], Embedding)


def refuse_unfinished(run: Path, resume: bool) -> None:
    """Refuse a folder with the embeddings of an earlier start, unless ``--run.resume`` asks to write them anew.

    Args:
        run: run folder.
        resume: ``--run.resume``.

    Raises:
        UserError: there are embeddings, and ``resume`` is false.
    """
    folder = run / "embeddings"
    if folder.exists() and not resume:
        raise UserError(f"{folder} is unfinished. --run.resume true writes it anew; or choose another --run.name.")


def refuse_misspelt(flags: list[str], own: list[str]) -> None:
    """Refuse unknown flags that resemble a flag of this command; others are left to ``fgssl test`` or ``fgssl fit``.

    Args:
        flags: unknown flags.
        own: names of the flags of this command.

    Raises:
        UserError: names the similar flag.
    """
    for flag in flags:
        name = flag.removeprefix("--").split("=")[0]
        hint = did_you_mean(name, own) if flag.startswith("--") and "." not in name else ""
        if hint:
            raise UserError(f"unknown option --{name}.{hint}")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="fgssl embed",
        description="Write embeddings, labels and paths to <run folder>/embeddings/*.npz, and evaluate the test rows.",
        epilog="Accepts all options of fgssl test too, such as --retrieval.grid 0 (no pictures), --run.name NAME or "
        "--run.resume true (write unfinished embeddings anew).",
    )
    add_network_flags(parser)
    add_data_flag(parser)
    parser.add_argument(
        "--part", choices=("test", "train", "val", "all"), default="test", help="rows to embed; default test"
    )
    parser.add_argument(
        "--points",
        type=int,
        default=POINTS,
        help=f"images in tsne.png and umap.png; 0: all; default {POINTS:,}",
    )
    parser.add_argument("--rows", type=int, default=ROWS, help=f"images per .npz file; default {ROWS:,}")
    return parser
