"""A method restored from a checkpoint, with its data module, for search, maps and export."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fgssl.cli.application import Application
from fgssl.cli.main import start
from fgssl.data.batch import Batch
from fgssl.data.datamodule import DataModule
from fgssl.data.images import open_image


class Restored(Application):
    """Builds method and data as ``fgssl test`` does and loads the checkpoint; evaluates and writes nothing."""

    def test(self, **kwargs: Any) -> None:
        if self.checkpoint is not None:
            self.model.load_state_dict(self.checkpoint["state_dict"])
        self.model.eval()

    def after_test(self) -> None:
        """Print no summary."""


def restore(config: dict[str, Any], flags: list[str], needs_data: bool = True) -> Restored:
    """Build method and data module of a configuration, with the weights of its ``ckpt_path``.

    Args:
        config: composed configuration.
        flags: options that override it.
        needs_data: refuse missing files of the data set. False: for its preprocessing alone; the class counts are those
            of the checkpoint, from version 0.3.0 on.

    Raises:
        UserError: as for ``fgssl test``.
    """
    built: list[Restored] = []

    class Kept(Restored):
        def after_test(self) -> None:
            built.append(self)

    alone = ["--trainer.devices", "1", "--trainer.compile", "false"]  # for a few images compiling takes too long
    start("test", config, [*flags, *alone], "restored", Kept, needs_data)
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
