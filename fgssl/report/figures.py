"""Pictures, where people would rather look than read."""

from pathlib import Path

import numpy as np
import torch

from fgssl.data.images import read_image
from fgssl.data.index import Index
from fgssl.evaluation.embedding import Embeddings
from fgssl.evaluation.search import search

RIGHT, WRONG, QUERY = "#2a9d4a", "#d1352b", "#333333"


def retrieval_grid(
    queries: Embeddings,
    gallery: Embeddings | None,
    index: Index,
    path: Path,
    *,
    count: int = 8,
    neighbours: int = 8,
    seed: int = 0,
) -> Path:
    """Draw queries (left) and their nearest neighbours: a green frame where the class is right, red where wrong.

    The queries are drawn at random, the same for every run on the same rows, so that two runs can be laid side by side.

    Args:
        queries: the evaluated set; rows point into ``index``.
        gallery: where they are searched; None: among themselves, each left out.
        index: the data set, for the images and the class names.
        path: where the PNG goes.
        count: queries shown, one a row.
        neighbours: columns beside the query.
        seed: of the choice of queries.
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, nothing left open

    chosen = np.sort(np.random.default_rng(seed).permutation(len(queries.fine))[:count])
    positions = torch.from_numpy(chosen).to(queries.fine.device)
    searched, exclude = (queries, positions) if gallery is None else (gallery, None)
    k = min(neighbours, len(searched.fine) - 1)
    _, ids = search(queries.embedding[positions], searched.embedding, k, exclude=exclude)
    near_Qk = ids.cpu()

    figure = Figure(figsize=(1.25 * (k + 1) + 0.3, 1.55 * len(chosen) + 0.5), dpi=120, layout="constrained")
    axes = figure.subplots(len(chosen), k + 1, squeeze=False)
    figure.suptitle("query, then its nearest neighbours (green: same class, red: another)", fontsize=10)
    for line, query, near_k in zip(axes, chosen, near_Qk, strict=True):
        label = int(queries.fine[query])
        _show(line[0], _image(index, int(queries.index[query])), index.fine_names[label], QUERY, bold=True)
        for axis, other in zip(line[1:], near_k, strict=True):
            found = int(searched.fine[other])
            colour = RIGHT if found == label else WRONG
            _show(axis, _image(index, int(searched.index[other])), index.fine_names[found], colour)
    figure.savefig(path)
    return path


def _image(index: Index, row: int) -> np.ndarray:
    """[H, W, 3] uint8."""
    return index.pixels[row] if index.pixels is not None else np.asarray(read_image(index.paths[row]))


def _show(axis, image: np.ndarray, name: str, colour: str, bold: bool = False) -> None:
    axis.imshow(_square(image))
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(3)
    axis.set_title(_short(name), fontsize=6, color=colour, fontweight="bold" if bold else "normal", pad=3)


def _square(image: np.ndarray) -> np.ndarray:
    """Centre crop, so that all pictures of a grid have one size."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def _short(name: str, width: int = 20) -> str:
    """``001.Black_footed_Albatross`` as ``Black footed Albatr.``, to stay within its picture."""
    number, _, rest = name.partition(".")
    name = (rest if number.isdigit() and rest else name).replace("_", " ")
    return name if len(name) <= width else name[: width - 1] + "…"
