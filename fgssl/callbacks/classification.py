"""Evaluates a classifier on the validation and test rows."""

import torch
from lightning.pytorch import Trainer

from fgssl.callbacks.evaluation import Evaluation, log_exactly
from fgssl.evaluation.embedding import collect, with_label
from fgssl.metrics.classification import mean_average_precisions, topk_accuracy


class Classification(Evaluation):
    """Top-1 and top-5 accuracy of the ``logits`` of a method's evaluation step, over the rows of all ranks.

    Images without a label are left out. Mean average precisions instead where an image has several labels.
    """

    def keep(self, trainer: Trainer, method, outputs, batch) -> dict:
        return {**outputs, "embedding": outputs["logits"]}

    def evaluate(self, trainer: Trainer, method, outputs: list[dict], part: str) -> None:
        rows, targets = collect(outputs), trainer.datamodule.parts.index.targets
        rows = with_label(rows) if targets is None else rows
        logits_NC, fine_N, index_N = (column.cpu() for column in rows)
        if targets is not None:
            metrics = mean_average_precisions(logits_NC, torch.from_numpy(targets[index_N.numpy()]))
        elif len(fine_N):
            metrics = topk_accuracy(logits_NC, fine_N)
        else:
            metrics = {}
        log_exactly(method, part, metrics)
