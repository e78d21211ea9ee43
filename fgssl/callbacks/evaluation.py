"""Base of the callbacks that evaluate the validation and test rows."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer


def log_exactly(method, prefix: str, metrics: dict[str, float]) -> None:
    """Log ``<prefix>/<name>`` in float64; Lightning rounds plain numbers to float32."""
    values = {f"{prefix}/{name}": torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}
    method.log_dict(values, batch_size=1)


def short_paths(paths: Sequence[str]) -> list[str]:
    """Paths of images below the folder that holds all of them."""
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, common) for path in paths]


class Evaluation(Callback):
    """Collects the outputs of a method's evaluation step and evaluates them at the end of the pass.

    A subclass writes ``evaluate``, and ``keep`` where it does not need the outputs as they are.
    """

    def __init__(self) -> None:
        self._outputs: list[Any] = []

    def keep(self, trainer: Trainer, method, outputs: dict[str, Any], batch) -> Any:
        """Part of a batch's outputs to collect; None for nothing."""
        return outputs

    def evaluate(self, trainer: Trainer, method, outputs: list[Any], part: str) -> None:
        """Evaluate and log the collected outputs of this rank; ``part`` is ``val`` or ``test``."""
        raise NotImplementedError

    def take(self) -> list[Any]:
        """Return the collected outputs and start an empty list."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def on_validation_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int, dataloader_idx=0):
        kept = self.keep(trainer, method, outputs, batch)
        if kept is not None:
            self._outputs.append(kept)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, method) -> None:
        if trainer.sanity_checking:  # a few batches before training
            self.take()
            return
        self.evaluate(trainer, method, self.take(), "val")

    def on_test_epoch_end(self, trainer: Trainer, method) -> None:
        self.evaluate(trainer, method, self.take(), "test")
