"""Evaluates a segmenter on the validation and test rows, and writes its masks on predict."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image

from fgssl.callbacks.evaluation import log_exactly
from fgssl.metrics.segmentation import confusion, segmentation_scores
from fgssl.run import folder_of


class Segmentation(Callback):
    """Mean IoU, mean class accuracy and pixel accuracy of the ``predicted`` classes of a method's evaluation step.

    From one confusion matrix over the images of all ranks. Images that pad the ranks to equal length (``EvalShard``)
    are counted once.
    """

    def on_validation_epoch_start(self, trainer: Trainer, method) -> None:
        classes = len(trainer.datamodule.parts.index.fine_names)
        self._matrix = torch.zeros(classes, classes, dtype=torch.int64, device=method.device)
        self._shown = 0  # images of this rank

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int, dataloader_idx=0):
        self._count(trainer, len(trainer.datamodule.parts.val), outputs["predicted"], batch.masks)

    def on_test_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int, dataloader_idx=0):
        self._count(trainer, len(trainer.datamodule.parts.test), outputs["predicted"], batch.masks)

    def on_validation_epoch_end(self, trainer: Trainer, method) -> None:
        self._evaluate(trainer, method, "val")

    def on_test_epoch_end(self, trainer: Trainer, method) -> None:
        self._evaluate(trainer, method, "test")

    def on_predict_start(self, trainer: Trainer, method) -> None:
        # That of the first process: processes that torchrun or srun starts name an unnamed run by their own clocks.
        self._folder = Path(trainer.strategy.broadcast(str(folder_of(trainer.loggers)))) / "masks"
        self._folder.mkdir(parents=True, exist_ok=True)

    def on_predict_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int, dataloader_idx=0):
        """Write ``masks/<name of the image>.png`` in the format of the data set's masks: 8 bits a pixel."""
        index = trainer.datamodule.parts.index
        for row, predicted_HW in zip(batch.index.tolist(), outputs["predicted"], strict=True):
            name = Path(index.paths[row]).stem
            Image.fromarray(index.values[predicted_HW.cpu().numpy()]).save(self._folder / f"{name}.png")

    def _count(self, trainer: Trainer, images: int, predicted: list, masks: list) -> None:
        first = trainer.global_rank * -(-images // trainer.world_size) + self._shown
        for place, (found, mask) in enumerate(zip(predicted, masks, strict=True), start=first):
            if place < images:
                self._matrix += confusion(found, mask, len(self._matrix))
        self._shown += len(masks)

    def _evaluate(self, trainer: Trainer, method, part: str) -> None:
        matrix = trainer.strategy.reduce(self._matrix, reduce_op="sum")
        try:
            scores = segmentation_scores(matrix.cpu())
        except ValueError as fault:  # a few batches without a label
            rank_zero_warn(f"no mean IoU: {fault}.")
            return
        log_exactly(method, part, scores)
