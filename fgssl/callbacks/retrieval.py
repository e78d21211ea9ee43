"""Evaluates retrieval on the validation and test rows, and writes embeddings on predict."""

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer

from fgssl.distributed import is_distributed
from fgssl.evaluation.embedding import Embeddings, collect
from fgssl.metrics.retrieval import finish, retrieval_statistics


class Retrieval(Callback):
    """Recall@K, mAP, mAP@R and R-precision of the features that ``Method.embed`` gives.

    Leave-one-out over the evaluated rows, exact. Queries are sharded over the ranks; the result is the same for any
    number of them.

    Args:
        ks: the K of Recall@K.
        grid: queries in the picture of nearest neighbours that a test writes (0: no picture).
    """

    def __init__(self, ks: list[int] = [1, 2, 5, 10, 50, 100], grid: int = 8):  # noqa: B006
        self.ks, self.grid = list(ks), grid
        self.folder: Path | None = None  # the run folder, set by the application; None writes no files
        self._outputs: list[dict] = []

    def on_validation_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int, dataloader_idx=0):
        self._outputs.append(outputs)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, method) -> None:
        self._evaluate(method, "val")

    def on_test_epoch_end(self, trainer: Trainer, method) -> None:
        embeddings = self._evaluate(method, "test")
        if self.folder and self.grid and trainer.is_global_zero:
            from fgssl.report.figures import retrieval_grid  # matplotlib, only where a picture is drawn

            retrieval_grid(embeddings, trainer.datamodule.parts.index, self.folder / "retrieval.png", queries=self.grid)

    def on_predict_epoch_end(self, trainer: Trainer, method) -> None:
        embeddings = self._take()
        if self.folder and trainer.is_global_zero:
            arrays = {name: value.cpu().numpy() for name, value in embeddings._asdict().items()}
            paths = np.asarray(trainer.datamodule.parts.index.paths)[arrays["index"]]
            np.savez(self.folder / "embeddings.npz", paths=paths, **arrays)

    def _evaluate(self, method, part: str) -> Embeddings:
        embeddings = self._take()
        metrics = finish(statistics_over_ranks(embeddings, self.ks))
        # float64: Lightning rounds a plain number to float32
        values = {f"{part}/{name}": torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}
        method.log_dict(values, batch_size=1)
        return embeddings

    def _take(self) -> Embeddings:
        outputs, self._outputs = self._outputs, []
        return collect(outputs)


def statistics_over_ranks(embeddings: Embeddings, ks: list[int]) -> dict:
    """Each rank answers every world-th query against the whole gallery; sums are added up over the ranks."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)
    queries = torch.arange(rank, len(embeddings.fine), world, device=embeddings.fine.device)
    statistics = retrieval_statistics(
        embeddings.embedding[queries],
        embeddings.fine[queries],
        embeddings.embedding,
        embeddings.fine,
        exclude=queries,
        ks=ks,
    )
    if is_distributed():
        for value in statistics.values():
            dist.all_reduce(value)
    return statistics
