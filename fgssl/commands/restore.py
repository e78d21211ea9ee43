"""A trained method brought back from its checkpoint, with its data: what embed, search and export begin with."""

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
from fgssl.data.views import decode
from fgssl.errors import UserError

OF_THE_FIT = ("run", "logger", "ckpt_path", "trainer.devices", "trainer.num_nodes", "trainer.strategy")


class Restored(Application):
    """Everything that a test would begin with, the checkpoint's weights loaded, and nothing run or written."""

    def test(self, **kwargs: Any) -> None:
        if self.checkpoint is not None:
            self.model.load_state_dict(self.checkpoint["state_dict"])
        self.model.eval()

    def after_test(self) -> None:
        """No summary: nothing was evaluated."""


def configuration(ckpt_path: str | None, files: list[str]) -> dict[str, Any]:
    """The configuration files, or that of the run that a checkpoint lies in; without what was said of the fit alone.

    Raises:
        UserError: there are no files, and the checkpoint lies in no run folder.
    """
    if not files and ckpt_path:
        saved = checkpoint_file(ckpt_path).parent.parent / "config.yaml"
        if not saved.is_file():
            raise UserError(f"{ckpt_path} lies in no run folder: say with --config which experiment it is of.")
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
    """Build what a configuration names, with the weights of its ``ckpt_path``.

    Raises:
        UserError: as the command line.
    """
    built: list[Restored] = []

    class Kept(Restored):
        def after_test(self) -> None:
            built.append(self)

    start("test", config, [*flags, "--trainer.devices", "1"], "restored", Kept)
    return built[0]


def look(data: DataModule, paths: list[str]) -> tuple[Tensor, Tensor]:
    """Image files as the run's evaluation sees its own, [B, 3, S, S]: uint8 to show, and normalised for a network."""
    view, unknown = data.eval_view, torch.full((len(paths),), -1)
    (numbers,) = view.numbers(0, np.array([-1]))
    images = []
    for path in paths:
        with open_image(path) as file:
            image_3HW, boxes = decode(file, view.boxes(file.size, numbers), view.crops)
        images.append(view.cut(image_3HW, boxes, numbers)[0])
    seen = torch.stack(images)
    return seen, data.on_after_batch_transfer(Batch([seen], unknown, unknown, unknown, unknown), 0).views[0]
