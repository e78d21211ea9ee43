"""Evaluates a detector on the validation and test rows, and writes what it finds on predict."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from fgssl.evaluation.detection import Found, average_precision, coco_results, gather
from fgssl.run import write_json


class Detection(Callback):
    """Average precision of the ``detections`` that a method's evaluation step gives, over the rows of all ranks."""

    def __init__(self) -> None:
        self._found: Found = {}

    def on_validation_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int, dataloader_idx=0):
        self._found |= zip(outputs["index"].tolist(), outputs["detections"], strict=True)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, method) -> None:
        self._evaluate(trainer, method, "val")

    def on_test_epoch_end(self, trainer: Trainer, method) -> None:
        self._evaluate(trainer, method, "test")

    def on_predict_epoch_end(self, trainer: Trainer, method) -> None:
        """``detections.json``: one entry a box, in the form of COCO's results but for names instead of ids."""
        results, index = coco_results(self._take(), masks=False), trainer.datamodule.parts.index
        entries = [
            {
                "file_name": Path(index.paths[item["image_id"]]).name,
                "category": index.fine_names[item["category_id"]],
                "bbox": item["bbox"],
                "score": item["score"],
            }
            for item in results
        ]
        if trainer.is_global_zero:
            write_json(Path(trainer.loggers[0].log_dir or ".") / "detections.json", {"detections": entries})

    def _evaluate(self, trainer: Trainer, method, part: str) -> None:
        found, metrics = self._take(), {}
        if trainer.is_global_zero:  # COCO's takes minutes: once is enough
            try:
                metrics = average_precision(trainer.datamodule.parts.index, found, method.masks)
            except ValueError as fault:  # a few batches without an object
                rank_zero_warn(f"no average precision: {fault}.")
        metrics = trainer.strategy.broadcast(metrics)
        # float64: Lightning rounds a plain number to float32
        values = {f"{part}/{name}": torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}
        method.log_dict(values, batch_size=1)

    def _take(self) -> Found:
        found, self._found = self._found, {}
        return gather(found)
