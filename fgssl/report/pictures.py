"""Pictures of an evaluation, as files and in the loggers, under fixed names."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import Logger, WandbLogger

from fgssl.data.index import Index
from fgssl.evaluation.embedding import Embeddings
from fgssl.report import figures
from fgssl.report.confusion import draw_confusion, nearest
from fgssl.report.tables import number


def draw_retrieval(
    queries: Embeddings,
    gallery: Embeddings | None,
    index: Index,
    folder: Path,
    loggers: Iterable[Logger],
    count: int,
    title: str,
) -> None:
    """Draw ``retrieval.jpg``, ``similarity.png``, ``confusion.png`` and, with coarse labels, ``coarse_confusion.png``.

    They are logged as ``test/retrieval_grid``, ``test/similarity``, ``test/confusion`` and ``test/coarse_confusion``.

    Args:
        queries: Embeddings of the evaluated images.
        gallery: Embeddings that they are searched in; None: the queries themselves.
        index: the data set.
        folder: the run folder.
        loggers: Loggers of the trainer; used if they take images.
        count: queries in the retrieval grid.
        title: first line of the retrieval grid.
    """
    loggers = list(loggers)
    figures.retrieval_grid(queries, gallery, index, folder / "retrieval.jpg", title=title, count=count)
    histograms = figures.similarity_histogram(queries, gallery, folder / "similarity.png")
    found = nearest(queries, gallery)
    draw_confusion(found, index.fine, index.fine_names, "class", folder / "confusion.png")
    log_picture(loggers, "test/retrieval_grid", folder / "retrieval.jpg")
    log_picture(loggers, "test/confusion", folder / "confusion.png")
    log_picture(loggers, "test/similarity", folder / "similarity.png")
    for name, histogram in histograms.items():
        log_histogram(loggers, f"test/similarity_{name}", histogram)
    if index.coarse is not None:
        path = folder / "coarse_confusion.png"
        draw_confusion(found, index.coarse, index.coarse_names, "coarse class", path)
        log_picture(loggers, "test/coarse_confusion", path)


def title_of(folder: Path, metrics: dict[str, float]) -> str:
    """Run and metrics, for a picture: ``maskcon_cub/seed0: Recall@1 59.70 %, mAP 27.07 %``."""
    return f"{folder.parent.name}/{folder.name}: {in_words(metrics)}"


def in_words(metrics: dict[str, float]) -> str:
    """``Recall@1 59.70 %, mAP 27.07 %``: the first two of these metrics that there are."""
    known = {"recall@1": "Recall@1", "map": "mAP", "map@r": "mAP@R"}
    found = [f"{word} {number(name, metrics[name])} %" for name, word in known.items() if name in metrics]
    return ", ".join(found[:2])


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
    """Log a picture file to the loggers that take images (W&B, TensorBoard, MLflow)."""
    for logger in loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(name, [str(path)])


def log_histogram(loggers: Iterable[Logger], name: str, histogram: tuple[np.ndarray, np.ndarray]) -> None:
    """Log a histogram, given as counts and bin edges, to W&B."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            logger.log_metrics({name: wandb.Histogram(np_histogram=histogram)})  # type: ignore[dict-item]
