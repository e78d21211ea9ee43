"""Pictures of an evaluation, as PNG files and in the loggers, under fixed names."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import Logger

from fgssl.data.index import Index
from fgssl.evaluation.embedding import Embeddings
from fgssl.report import figures


def draw_retrieval(
    queries: Embeddings, gallery: Embeddings | None, index: Index, folder: Path, loggers: Iterable[Logger], count: int
) -> None:
    """Draw ``retrieval.png``, ``similarity.png`` and, with coarse labels, ``confusion.png``; log them as ``test/...``.

    Args:
        queries: Embeddings of the evaluated images.
        gallery: Embeddings that they are searched in; None: the queries themselves.
        index: the data set.
        folder: the run folder.
        loggers: Loggers of the trainer; used if they take images.
        count: queries in the retrieval grid.
    """
    loggers = list(loggers)
    figures.retrieval_grid(queries, gallery, index, folder / "retrieval.png", count=count)
    histograms = figures.similarity_histogram(queries, gallery, folder / "similarity.png")
    confusion = figures.coarse_confusion(queries, gallery, index, folder / "confusion.png")
    log_picture(loggers, "test/retrieval_grid", folder / "retrieval.png")
    log_picture(loggers, "test/similarity", folder / "similarity.png")
    for name, histogram in histograms.items():
        log_histogram(loggers, f"test/similarity_{name}", histogram)
    if confusion is not None:
        log_picture(loggers, "test/coarse_confusion", confusion)


def draw_maps(
    embeddings: Embeddings, index: Index, folder: Path, loggers: Iterable[Logger], count: int = figures.SAMPLE
) -> list[Path]:
    """Draw ``tsne.png`` and, where umap-learn is installed, ``umap.png``; log them as ``test/tsne``, ``test/umap``.

    Args:
        embeddings: what to draw; rows point into ``index``.
        index: the data set.
        folder: the run folder.
        loggers: Loggers of the trainer; used if they take images.
        count: most images to draw; 0 draws all.
    """
    loggers = list(loggers)
    drawn = [figures.embedding_map(embeddings, index, folder / "tsne.png", way="tsne", count=count)]
    if figures.has_umap():
        drawn.append(figures.embedding_map(embeddings, index, folder / "umap.png", way="umap", count=count))
    for path in drawn:
        log_picture(loggers, f"test/{path.stem}", path)
    return drawn


def log_picture(loggers: Iterable[Logger], name: str, path: Path) -> None:
    """Log a PNG to the loggers that take images (W&B)."""
    for logger in loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(name, [str(path)])


def log_histogram(loggers: Iterable[Logger], name: str, histogram: tuple[np.ndarray, np.ndarray]) -> None:
    """Log a histogram, given as counts and bin edges, to W&B."""
    for logger in loggers:
        if hasattr(logger, "log_image"):
            import wandb

            logger.log_metrics({name: wandb.Histogram(np_histogram=histogram)})  # type: ignore[dict-item]
