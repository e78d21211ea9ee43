"""MLS with other labels than its own, to see what the labels do; and the precision of its own over time.

fgssl fit --config experiments/evidence/mls.yaml --config experiments/evidence/mls/true_labels.yaml
"""

from typing import Literal

import torch
from torch import Tensor

from fgssl.data.batch import Batch
from fgssl.methods.base import StepResult
from fgssl.methods.mls import MLS


class LabelledMLS(MLS):
    """MLS (Zhu, Fu & Wu, ICCV 2023) whose labels can be replaced, with ``train/label_precision``.

    Shapes: B batch, D dictionary length, F feature.

    Args:
        labels: ``pseudo``: the k nearest entries, as in MLS; ``none``: all labels 0; ``true``: the entries of the
            image's fine class.
        options: Those of MLS.
    """

    def __init__(self, labels: Literal["pseudo", "none", "true"] = "pseudo", **options):
        super().__init__(**options)
        self.labels = labels

    def labels_needed(self) -> set[Literal["fine", "coarse"]]:
        return {"fine"}

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.fine_of_row = torch.as_tensor(self.trainer.datamodule.parts.index.fine, device=self.device)  # type: ignore[attr-defined]

    def step(self, batch: Batch) -> StepResult:
        self._true_BD = (batch.fine[:, None] == self.fine_of_row[self.memory.index]).float()
        result = super().step(batch)
        result.parts["label_precision"] = self._precision
        return result

    def labels_of(self, features_BF: Tensor, queue_DF: Tensor) -> Tensor:
        y_BD = super().labels_of(features_BF, queue_DF)
        self._precision = (y_BD * self._true_BD).sum() / y_BD.sum()  # of MLS's own labels, whichever are used
        return {"pseudo": y_BD, "none": torch.zeros_like(y_BD), "true": self._true_BD}[self.labels]
