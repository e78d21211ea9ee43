"""Evaluates retrieval on the validation and test rows, and writes embeddings on predict."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from fgssl.distributed import is_distributed
from fgssl.evaluation.embedding import Embeddings, collect, embed_rows
from fgssl.metrics.clustering import clustering_metrics
from fgssl.metrics.cmd_code import cmd_code_retrieval
from fgssl.metrics.retrieval import finish, retrieval_statistics
from fgssl.metrics.structure import embedding_density, spectral_decay

Extra = Literal["clustering", "density", "spectral_decay", "cmd_code"]


class Retrieval(Callback):
    """Recall@K, mAP, mAP@R and R-precision of the features that ``Method.embed`` gives, and more from the same pass.

    Exact. Queries are sharded over the ranks; the result is the same for any number of them. Data without one
    class label an image (VOC2007) have no such metrics.

    Args:
        ks: the K of Recall@K.
        gallery: what a query is searched in: ``evaluated``, the evaluated rows without itself (leave-one-out), or
            ``train``, the training rows (plain views).
        grid: queries in the picture of nearest neighbours that a test writes; 0: neither it nor the other pictures.
        extra: further metrics of the evaluated rows: ``clustering`` (NMI and AMI of k-means), ``density``,
            ``spectral_decay``, ``cmd_code`` (retrieval as CMD's published script measures it: every ninth row
            against the others and the training rows).
        extra_in_fit: take them at every validation of a fit too, not only in a test: k-means costs more than the rest.
        clusters: k of k-means; null: the classes of the evaluated rows. (OBD-SD's code: those of the training rows.)
    """

    def __init__(
        self,
        ks: list[int] = [1, 2, 5, 10, 50, 100],  # noqa: B006
        gallery: Literal["evaluated", "train"] = "evaluated",
        grid: int = 8,
        extra: list[Extra] = [],  # noqa: B006
        extra_in_fit: bool = False,
        clusters: int | None = None,
    ):
        self.ks, self.gallery, self.grid = list(ks), gallery, grid
        self.extra, self.extra_in_fit, self.clusters = list(extra), extra_in_fit, clusters
        self.folder: Path | None = None  # the run folder, set by the application; None writes no files
        self._outputs: list[dict] = []

    def on_validation_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int, dataloader_idx=0):
        self._outputs.append(outputs)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, method) -> None:
        self._evaluate(trainer, method, "val")

    def on_test_epoch_end(self, trainer: Trainer, method) -> None:
        evaluated = self._evaluate(trainer, method, "test")
        if evaluated and self.folder and self.grid and trainer.is_global_zero:
            from fgssl.report.pictures import draw_retrieval  # matplotlib, only where a picture is drawn

            index = trainer.datamodule.parts.index
            draw_retrieval(*evaluated, index, self.folder, trainer.loggers, self.grid)

    def on_predict_epoch_end(self, trainer: Trainer, method) -> None:
        embeddings = self._take()
        if self.folder and trainer.is_global_zero:
            arrays = {name: value.cpu().numpy() for name, value in embeddings._asdict().items()}
            paths = np.asarray(trainer.datamodule.parts.index.paths)[arrays["index"]]
            np.savez(self.folder / "embeddings.npz", paths=paths, **arrays)

    def _evaluate(self, trainer: Trainer, method, part: str) -> tuple[Embeddings, Embeddings | None] | None:
        """Log the metrics; gives queries and gallery, or None where there is nothing to evaluate by."""
        queries = self._take()
        if (queries.fine < 0).all():  # several labels an image, or none: no neighbour is right or wrong
            return None
        gallery = embed_rows(trainer, method, trainer.datamodule.gallery_loader()) if self.gallery == "train" else None
        metrics = finish(statistics_over_ranks(queries, gallery, self.ks))
        if self.extra and (self.extra_in_fit or trainer.state.fn != "fit"):
            train = gallery
            if train is None and "cmd_code" in self.extra:
                train = embed_rows(trainer, method, trainer.datamodule.gallery_loader())
            measured = self._extra_metrics(queries, train) if trainer.is_global_zero else {}
            metrics |= trainer.strategy.broadcast(measured)
        # float64: Lightning rounds a plain number to float32
        values = {f"{part}/{name}": torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}
        method.log_dict(values, batch_size=1)
        return queries, gallery

    def _extra_metrics(self, rows: Embeddings, train: Any) -> dict[str, float]:
        """On one rank alone: k-means takes all cores of its machine."""
        measures = {
            "clustering": lambda: clustering_metrics(rows.embedding, rows.fine, n_clusters=self.clusters),
            "density": lambda: {"density": embedding_density(rows.embedding, rows.fine)},
            "spectral_decay": lambda: {"spectral_decay": spectral_decay(rows.embedding)},
            "cmd_code": lambda: cmd_code_retrieval(rows.embedding, rows.fine, train.embedding, train.fine),
        }
        metrics: dict[str, float] = {}
        for name in self.extra:
            try:
                metrics |= measures[name]()
            except ValueError as fault:  # too few rows or classes: no reason to lose the other metrics
                rank_zero_warn(f"retrieval.extra: no {name} ({fault}).")
        return metrics

    def _take(self) -> Embeddings:
        outputs, self._outputs = self._outputs, []
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
