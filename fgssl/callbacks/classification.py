"""Evaluates a classifier on the validation and test rows, and writes its classes on predict."""

import csv
from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from fgssl.callbacks.evaluation import Evaluation, log_exactly
from fgssl.data.datasets.base import some
from fgssl.evaluation.embedding import collect, with_label
from fgssl.metrics.classification import mean_average_precisions, topk_accuracy
from fgssl.run import folder_of, shown


def by_name(fine_N: torch.Tensor, names: Sequence[str], classes: Sequence[str]) -> tuple[torch.Tensor, list[str]]:
    """Labels [N] of data as numbers of the classes of a network, and the names that those do not have.

    Args:
        fine_N: labels, 0 or more.
        names: name of each label.
        classes: names of the classes of the network.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    unknown = [str(names[label]) for label in fine_N.unique().tolist() if str(names[label]) not in numbers]
    of_label = torch.tensor([numbers.get(str(name), -1) for name in names])
    return of_label[fine_N.long()], unknown


class Classification(Evaluation):
    """Top-1 and top-5 accuracy of the ``logits`` of a method's evaluation step, over the rows of all ranks.

    Images without a label are left out. Classes of other data are compared by their names; there is no accuracy where
    the network was not trained on one of them. Mean average precisions instead where an image has several labels.
    """

    def keep(self, trainer: Trainer, method, outputs, batch) -> dict:
        return {**outputs, "embedding": outputs["logits"]}

    def evaluate(self, trainer: Trainer, method, outputs: list[dict], part: str) -> None:
        index, rows = trainer.datamodule.parts.index, collect(outputs)
        targets = index.targets
        rows = with_label(rows) if targets is None else rows
        logits_NC, fine_N, index_N = (column.cpu() for column in rows)
        if not method.knows_classes_of(index):
            fine_N, unknown = by_name(fine_N, index.fine_names, method.classes)
            if unknown or targets is not None:
                rank_zero_warn(
                    f"No accuracy: {index.name} has classes that the network was not trained on "
                    f"({some(unknown or list(index.fine_names))})."
                )
                return
        if targets is not None:
            metrics = mean_average_precisions(logits_NC, torch.from_numpy(targets[index_N.numpy()]))
        elif len(fine_N):
            metrics = topk_accuracy(logits_NC, fine_N)
        else:
            metrics = {}
        log_exactly(method, part, metrics)

    on_predict_batch_end = Evaluation.on_validation_batch_end

    def on_predict_epoch_end(self, trainer: Trainer, method) -> None:
        """Write ``predictions.csv``: path, most probable class and its probability, 0 to 1, of each image.

        The probability is the softmax over the classes, or the sigmoid of the class where the network was trained on
        images with several labels.
        Classes are numbers where a checkpoint of an earlier version does not name them.
        """
        logits_NC, _, index_N = (column.cpu() for column in collect(self.take()))
        if not trainer.is_global_zero or not trainer.loggers:  # without a run folder, Lightning returns the predictions
            return
        index = trainer.datamodule.parts.index
        probability_NC = logits_NC.sigmoid() if method.several else logits_NC.softmax(dim=1)
        names = method.classes or range(logits_NC.shape[1])
        rows = zip(index_N.tolist(), *(column.tolist() for column in probability_NC.max(dim=1)), strict=True)
        path = folder_of(trainer.loggers) / "predictions.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "class", "probability"])
            writer.writerows([index.paths[row], names[best], f"{value:.4f}"] for row, value, best in rows)
        print(f"predictions: {shown(path)}")
