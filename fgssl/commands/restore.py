"""A method restored from a checkpoint, with its data module, for search, maps and export."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fgssl.cli.application import Application, checkpoint_file
from fgssl.cli.compose import assign, compose
from fgssl.cli.main import start
from fgssl.data.batch import Batch
from fgssl.data.datamodule import DataModule
from fgssl.data.images import open_image
from fgssl.errors import UserError

OF_THE_FIT = ("run", "logger", "ckpt_path", "trainer.devices", "trainer.num_nodes", "trainer.strategy")


class Restored(Application):
    """Builds method and data as ``fgssl test`` does and loads the checkpoint; evaluates and writes nothing."""

    def test(self, **kwargs: Any) -> None:
        if self.checkpoint is not None:
            self.model.load_state_dict(self.checkpoint["state_dict"])
        self.model.eval()

    def after_test(self) -> None:
        """Print no summary."""


def configuration(ckpt_path: str | None, files: list[str]) -> dict[str, Any]:
    """Configuration of the files, or of the run of a checkpoint without the options in ``OF_THE_FIT``.

    Args:
        ckpt_path: checkpoint or run folder; None: no checkpoint.
        files: configuration files; empty: ``config.yaml`` of the run folder.

    Raises:
        UserError: there are no files, and the checkpoint is in no run folder.
    """
    if not files and ckpt_path:
        saved = checkpoint_file(ckpt_path).parent.parent / "config.yaml"
        if not saved.is_file():
            raise UserError(f"{ckpt_path} is in no run folder. Give its experiment with --config FILE.")
        config = compose([saved])
        for option in OF_THE_FIT:
            *parents, last = option.split(".")
            section = config
            for name in parents:
                section = section.get(name) or {}
            section.pop(last, None)
    else:
        config = compose(files)
    if ckpt_path:
        assign(config, "ckpt_path", str(Path(ckpt_path)))
    return config


def restore(config: dict[str, Any], flags: list[str]) -> Restored:
    """Build method and data module of a configuration, with the weights of its ``ckpt_path``.

    Raises:
        UserError: as for ``fgssl test``.
    """
    built: list[Restored] = []

    class Kept(Restored):
        def after_test(self) -> None:
            built.append(self)

    start("test", config, [*flags, "--trainer.devices", "1"], "restored", Kept)
    return built[0]


def look(data: DataModule, paths: list[str]) -> tuple[Tensor, Tensor]:
    """Image files through the evaluation view, [B, 3, S, S]: as uint8, and normalised for the network."""
    view, unknown = data.eval_view, torch.full((len(paths),), -1)
    (numbers,) = view.numbers(0, np.array([-1]))
    images = []
    for path in paths:
        with open_image(path) as file:
            images += view.read(file, numbers)
    seen = torch.stack(images)
    return seen, data.on_after_batch_transfer(Batch([seen], unknown, unknown, unknown, unknown), 0).views[0]
