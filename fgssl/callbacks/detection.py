"""Evaluates a detector on the validation and test rows, and writes its detections on predict."""

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from fgssl.callbacks.evaluation import Evaluation, log_exactly, short_paths
from fgssl.data.datasets.objects import ObjectIndex
from fgssl.distributed import from_rank_zero
from fgssl.evaluation.detection import Found, average_precision, coco_results, gather
from fgssl.run import folder_of, shown, write_json


class Detection(Evaluation):
    """Average precision of the ``detections`` of a method's evaluation step, over the rows of all ranks."""

    def keep(self, trainer: Trainer, method, outputs, batch) -> Found:
        return dict(zip(outputs["index"].tolist(), outputs["detections"], strict=True))

    on_predict_batch_end = Evaluation.on_validation_batch_end

    def on_predict_epoch_end(self, trainer: Trainer, method) -> None:
        """Write ``detections.json``: one entry a box, as COCO's results but with names in place of ids.

        ``file_name`` is the path below the folder that holds all predicted images: frames of two videos have the same
        name.
        """
        results, parts = coco_results(_joined(self.take()), masks=False), trainer.datamodule.parts
        index = parts.index
        names = dict(zip(parts.test.tolist(), short_paths(index.paths[parts.test]), strict=True))
        entries = [
            {
                "file_name": names[item["image_id"]],
                "category": index.fine_names[item["category_id"]],
                "bbox": item["bbox"],
                "score": item["score"],
            }
            for item in results
        ]
        if trainer.is_global_zero:
            path = folder_of(trainer.loggers) / "detections.json"
            write_json(path, {"detections": entries})
            print(f"detections: {shown(path)}")

    def on_test_start(self, trainer: Trainer, method) -> None:
        method.check_classes(trainer.datamodule.parts.index)

    on_validation_start = on_predict_start = on_test_start

    def evaluate(self, trainer: Trainer, method, outputs: list[Found], part: str) -> None:
        found, index = _joined(outputs), trainer.datamodule.parts.index
        log_exactly(method, part, from_rank_zero(lambda: _scores(index, found, method.masks)))


def _scores(index: ObjectIndex, found: Found, masks: bool) -> dict[str, float]:
    """Average precision; empty where the rows show no object. COCO's takes minutes: on one rank."""
    try:
        return average_precision(index, found, masks)
    except ValueError as fault:  # a few batches without an object
        rank_zero_warn(f"no average precision: {fault}.")
        return {}


def _joined(outputs: list[Found]) -> Found:
    """Detections of all batches and ranks, by data-set row."""
    return gather({row: found for batch in outputs for row, found in batch.items()})
