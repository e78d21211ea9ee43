"""Evaluates a segmenter on the validation and test rows, and writes its masks on predict."""

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image

from fgssl.callbacks.evaluation import log_exactly, short_paths
from fgssl.distributed import from_rank_zero
from fgssl.metrics.segmentation import confusion, segmentation_scores
from fgssl.run import folder_of, shown


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

    def on_test_start(self, trainer: Trainer, method) -> None:
        method.check_classes(trainer.datamodule.parts.index)

    on_validation_start = on_test_start

    def on_predict_start(self, trainer: Trainer, method) -> None:
        method.check_classes(trainer.datamodule.parts.index)
        # Processes that torchrun or srun starts name an unnamed run by their own clocks.
        self._folder = Path(from_rank_zero(lambda: str(folder_of(trainer.loggers)))) / "masks"
        self._folder.mkdir(parents=True, exist_ok=True)
        parts = trainer.datamodule.parts
        self._files = dict(zip(parts.test.tolist(), mask_files(parts.index.paths[parts.test]), strict=True))

    def on_predict_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int, dataloader_idx=0):
        """Write ``masks/<name of the image>.png`` in the format of the data set's masks: 8 bits a pixel."""
        index = trainer.datamodule.parts.index
        for row, predicted_HW in zip(batch.index.tolist(), outputs["predicted"], strict=True):
            path = self._folder / self._files[row]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(index.values[predicted_HW.cpu().numpy()]).save(path)

    def on_predict_end(self, trainer: Trainer, method) -> None:
        if trainer.is_global_zero:
            print(f"masks: {shown(self._folder)}")

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


def mask_files(paths: Sequence[str]) -> list[str]:
    """File of the mask of each image: its name; with its folders where two images have the same name."""
    names = [f"{Path(path).stem}.png" for path in paths]
    if len(set(names)) == len(names):
        return names
    return [str(Path(path).with_suffix(".png")) for path in short_paths(paths)]
