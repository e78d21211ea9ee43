"""Evaluates retrieval on the validation and test rows, and writes embeddings on predict."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer

from fgssl.distributed import is_distributed
from fgssl.evaluation.embedding import Embeddings, collect
from fgssl.metrics.retrieval import finish, retrieval_statistics


class Retrieval(Callback):
    """Recall@K, mAP, mAP@R and R-precision of the features that ``Method.embed`` gives.

    Exact. Queries are sharded over the ranks; the result is the same for any number of them.

    Args:
        ks: the K of Recall@K.
        gallery: what a query is searched in: ``evaluated``, the evaluated rows without itself (leave-one-out), or
            ``train``, the training rows (plain views).
        grid: queries in the picture of nearest neighbours that a test writes; 0: neither it nor the other pictures.
    """

    def __init__(
        self,
        ks: list[int] = [1, 2, 5, 10, 50, 100],  # noqa: B006
        gallery: Literal["evaluated", "train"] = "evaluated",
        grid: int = 8,
    ):
        self.ks, self.gallery, self.grid = list(ks), gallery, grid
        self.folder: Path | None = None  # the run folder, set by the application; None writes no files
        self._outputs: list[dict] = []

    def on_validation_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int, dataloader_idx=0):
        self._outputs.append(outputs)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, method) -> None:
        self._evaluate(trainer, method, "val")

    def on_test_epoch_end(self, trainer: Trainer, method) -> None:
        queries, gallery = self._evaluate(trainer, method, "test")
        if self.folder and self.grid and trainer.is_global_zero:
            from fgssl.report.pictures import draw_retrieval  # matplotlib, only where a picture is drawn

            index = trainer.datamodule.parts.index
            draw_retrieval(queries, gallery, index, self.folder, trainer.loggers, self.grid)

    def on_predict_epoch_end(self, trainer: Trainer, method) -> None:
        embeddings = self._take()
        if self.folder and trainer.is_global_zero:
            arrays = {name: value.cpu().numpy() for name, value in embeddings._asdict().items()}
            paths = np.asarray(trainer.datamodule.parts.index.paths)[arrays["index"]]
            np.savez(self.folder / "embeddings.npz", paths=paths, **arrays)

    def _evaluate(self, trainer: Trainer, method, part: str) -> tuple[Embeddings, Embeddings | None]:
        queries = self._take()
        gallery = _embed(trainer, method, trainer.datamodule.gallery_loader()) if self.gallery == "train" else None
        metrics = finish(statistics_over_ranks(queries, gallery, self.ks))
        # float64: Lightning rounds a plain number to float32
        values = {f"{part}/{name}": torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}
        method.log_dict(values, batch_size=1)
        return queries, gallery

    def _take(self) -> Embeddings:
        outputs, self._outputs = self._outputs, []
        return collect(outputs)


@torch.no_grad()
def _embed(trainer: Trainer, method, loader) -> Embeddings:
    """Embed what another loader gives, with the evaluated network."""
    outputs = []
    for number, batch in enumerate(loader):
        batch = trainer.strategy.batch_to_device(batch)
        with trainer.precision_plugin.forward_context():
            outputs.append(method.validation_step(batch, number))
    return collect(outputs)


def statistics_over_ranks(queries: Embeddings, gallery: Embeddings | None, ks: list[int]) -> dict:
    """Each rank answers every world-th query against the whole gallery; sums are added up over the ranks.

    Without a gallery the queries are searched among themselves, each left out by its row.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)
    mine = torch.arange(rank, len(queries.fine), world, device=queries.fine.device)
    searched = gallery or queries
    statistics = retrieval_statistics(
        queries.embedding[mine],
        queries.fine[mine],
        searched.embedding,
        searched.fine,
        exclude=mine if gallery is None else None,
        ks=ks,
    )
    if is_distributed():
        for value in statistics.values():
            dist.all_reduce(value)
    return statistics
