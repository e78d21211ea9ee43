"""Evaluates a classifier on the validation and test rows."""

import torch
from lightning.pytorch import Callback, Trainer

from fgssl.evaluation.embedding import collect
from fgssl.metrics.classification import mean_average_precisions, topk_accuracy


class Classification(Callback):
    """Top-1 and top-5 accuracy of the ``logits`` that a method's evaluation step gives; of several labels an image
    the mean average precisions. Over the rows of all ranks, each once.
    """

    def __init__(self) -> None:
        self._outputs: list[dict] = []

    def on_validation_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int, dataloader_idx=0):
        self._outputs.append({**outputs, "embedding": outputs["logits"]})

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, method) -> None:
        self._evaluate(trainer, method, "val")

    def on_test_epoch_end(self, trainer: Trainer, method) -> None:
        self._evaluate(trainer, method, "test")

    def _evaluate(self, trainer: Trainer, method, part: str) -> None:
        outputs, self._outputs = self._outputs, []
        logits_NC, fine_N, index_N = (column.cpu() for column in collect(outputs))
        targets = trainer.datamodule.parts.index.targets
        if targets is None:
            metrics = topk_accuracy(logits_NC, fine_N)
        else:
            metrics = mean_average_precisions(logits_NC, torch.from_numpy(targets[index_N.numpy()]))
        # float64: Lightning rounds a plain number to float32
        values = {f"{part}/{name}": torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}
        method.log_dict(values, batch_size=1)
