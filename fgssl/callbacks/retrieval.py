"""Retrieval metrics of the validation and test rows; embeddings of ``fgssl predict``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from fgssl.callbacks.evaluation import Evaluation, log_exactly
from fgssl.distributed import from_rank_zero, is_distributed
from fgssl.evaluation.embedding import Embeddings, collect, embed_rows, with_label
from fgssl.evaluation.reranking import Rerank, expanded, reranked_keys
from fgssl.metrics.clustering import clustering_metrics
from fgssl.metrics.cmd_code import cmd_code_retrieval
from fgssl.metrics.retrieval import finish, retrieval_statistics
from fgssl.metrics.structure import embedding_density, spectral_decay
from fgssl.run import shown

Extra = Literal["clustering", "density", "spectral_decay", "cmd_code"]


class Retrieval(Evaluation):
    """Recall@K, mAP, mAP@R, R-precision and optional metrics of the features of ``Method.embed``.

    The search is exact, and the result does not depend on the number of processes. There are no such metrics for data
    with several labels per image (VOC2007) or none.

    Args:
        ks: values of K for Recall@K.
        gallery: images among which the neighbours of a query are searched. ``evaluated``: the other evaluated images
            (leave-one-out). ``train``: the training images, without augmentation.
        grid: number of queries in the picture of nearest neighbours that a test writes; 0: no pictures.
        extra: additional metrics. ``clustering``: NMI and AMI of k-means. ``density``: embedding density.
            ``spectral_decay``: spectral decay. ``cmd_code``: retrieval as in CMD's published script, which searches
            for every ninth image among the others and the training images.
        extra_in_fit: compute ``extra`` in each validation during fit too, not only in tests. k-means is slower than
            the other metrics.
        clusters: number of clusters of k-means; null: number of evaluated classes (OBD-SD's code: number of training
            classes).
        rerank: re-ranking of the neighbours, for the retrieval metrics alone; none by default. Such results stand in
            tables of their own.
    """

    def __init__(
        self,
        ks: list[int] = [1, 2, 5, 10, 50, 100],  # noqa: B006
        gallery: Literal["evaluated", "train"] = "evaluated",
        grid: int = 8,
        extra: list[Extra] = [],  # noqa: B006
        extra_in_fit: bool = False,
        clusters: int | None = None,
        rerank: Rerank = Rerank(),
    ):
        super().__init__()
        self.ks, self.gallery, self.grid = list(ks), gallery, grid
        self.extra, self.extra_in_fit, self.clusters = list(extra), extra_in_fit, clusters
        self.rerank = rerank
        self.folder: Path | None = None  # run folder, set by the application; None: no files

    def on_predict_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int, dataloader_idx=0) -> None:
        if self.folder:  # without it, Lightning returns the predictions
            self._outputs.append(outputs)

    def evaluate(self, trainer: Trainer, method, outputs: list[dict], part: str) -> None:
        queries = labelled(collect(outputs), part) if outputs else None
        if queries is None:
            return
        extra = self.extra if self.extra_in_fit or trainer.state.fn != "fit" else []
        needs_train = self.gallery == "train" or "cmd_code" in extra
        train = (
            labelled(embed_rows(trainer, method, trainer.datamodule.gallery_loader()), "train") if needs_train else None
        )
        if needs_train and train is None:
            return
        gallery = train if self.gallery == "train" else None
        metrics = finish(statistics_over_ranks(queries, gallery, self.ks, self.rerank))
        if extra:
            metrics |= from_rank_zero(lambda: extra_metrics(extra, queries, train, self.clusters))
        log_exactly(method, part, metrics)
        has_neighbours = gallery is not None or len(queries.fine) > 1
        if part == "test" and self.folder and self.grid and has_neighbours:
            from fgssl.report.pictures import draw_retrieval, title_of  # imports matplotlib

            index, title = trainer.datamodule.parts.index, title_of(self.folder, metrics)
            given = (queries, gallery, index, self.folder, trainer.loggers, self.grid, title)
            from_rank_zero(lambda: draw_retrieval(*given))

    def on_predict_epoch_end(self, trainer: Trainer, method) -> None:
        """Write ``embeddings.npz``: ``paths``, and ``embedding``, ``fine`` and ``index`` of ``Embeddings``."""
        if not self.folder:
            return
        embeddings = collect(self.take())
        if trainer.is_global_zero:
            arrays = {name: value.cpu().numpy() for name, value in embeddings._asdict().items()}
            paths = np.asarray(trainer.datamodule.parts.index.paths)[arrays["index"]]
            np.savez(self.folder / "embeddings.npz", paths=paths, **arrays)
            print(f"embeddings: {shown(self.folder / 'embeddings.npz')}")


def extra_metrics(
    names: Sequence[Extra], rows: Embeddings, train: Any = None, clusters: int | None = None
) -> dict[str, float]:
    """Metrics of ``Retrieval.extra``; computed on one rank, because k-means uses all cores of the machine.

    Args:
        names: what to measure.
        rows: the evaluated rows.
        train: the training rows, for ``cmd_code``.
        clusters: number of clusters of k-means; None: the number of classes.
    """
    measures = {
        "clustering": lambda: clustering_metrics(rows.embedding, rows.fine, n_clusters=clusters),
        "density": lambda: {"density": embedding_density(rows.embedding, rows.fine)},
        "spectral_decay": lambda: {"spectral_decay": spectral_decay(rows.embedding)},
        "cmd_code": lambda: cmd_code_retrieval(rows.embedding, rows.fine, train.embedding, train.fine),
    }
    metrics: dict[str, float] = {}
    for name in names:
        try:
            metrics |= measures[name]()
        except ValueError as fault:  # too few rows or classes
            rank_zero_warn(f"retrieval.extra: no {name} ({fault}).")
    return metrics


def labelled(rows: Embeddings, part: str) -> Embeddings | None:
    """The rows with a class label; None if there are none. Says what is left out."""
    kept = with_label(rows)
    images = {"val": "validation images", "test": "test images", "train": "training images"}[part]
    count = len(kept.fine)
    if count == 0:
        rank_zero_info(f"No retrieval metrics: none of the {len(rows.fine):,} {images} has a single class label.")
        return None
    left_out = len(rows.fine) - count
    if left_out:
        rank_zero_info(f"Retrieval: {left_out:,} of {len(rows.fine):,} {images} have no class label and are left out.")
    return kept


def statistics_over_ranks(
    queries: Embeddings, gallery: Embeddings | None, ks: list[int], rerank: Rerank = Rerank()
) -> dict:
    """Retrieval statistics, summed over the ranks, each of which searches for its share of the queries.

    Where there are fewer queries than ranks, the ranks without one search for a query of another, and add nothing.

    Args:
        queries: embeddings of all queries.
        gallery: embeddings to search; None: the queries, without the query itself.
        ks: values of K for Recall@K.
        rerank: re-ranking.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)
    number = len(queries.fine)
    mine = torch.arange(rank % number, number, world, device=queries.fine.device)
    searched = gallery or queries
    own = torch.arange(len(queries.fine), device=mine.device) if gallery is None else None
    query_rows, gallery_rows, keys = queries.embedding, searched.embedding, None
    if rerank.k_reciprocal:
        of_all = reranked_keys(query_rows, gallery_rows, rerank, own)
        keys = lambda query_B: of_all(mine[query_B])  # noqa: E731
    elif rerank != Rerank():
        query_rows, gallery_rows = expanded(query_rows, gallery_rows, rerank, own)
    statistics = retrieval_statistics(
        query_rows if world == 1 else query_rows[mine],  # no copy
        queries.fine[mine],
        gallery_rows,
        searched.fine,
        exclude=mine if gallery is None else None,
        ks=ks,
        keys=keys,
    )
    if is_distributed():
        for value in statistics.values():
            dist.all_reduce(value if rank < number else value.zero_())
    return statistics
