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
    embeddings: Embeddings, index: Index, path: Path, *, queries: int = 8, neighbours: int = 8, seed: int = 0
) -> Path:
    """Draw queries (left) and their nearest neighbours: a green frame where the class is right, red where wrong.

    The queries are drawn at random, the same for every run on the same rows, so that two runs can be laid side by side.

    Args:
        embeddings: the evaluated set; rows point into ``index``.
        index: the data set, for the images and the class names.
        path: where the PNG goes.
        queries: rows of the picture.
        neighbours: columns beside the query.
        seed: of the choice of queries.
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, nothing left open

    count = len(embeddings.fine)
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:queries])
    positions = torch.from_numpy(chosen).to(embeddings.fine.device)
    k = min(neighbours, count - 1)
    _, ids = search(embeddings.embedding[positions], embeddings.embedding, k, exclude=positions)
    rows, fine = embeddings.index.cpu().numpy(), embeddings.fine.cpu().numpy()

    figure = Figure(figsize=(1.25 * (k + 1) + 0.3, 1.55 * len(chosen) + 0.5), dpi=120, layout="constrained")
    axes = figure.subplots(len(chosen), k + 1, squeeze=False)
    figure.suptitle("query, then its nearest neighbours (green: same class, red: another)", fontsize=10)
    for line, query, near in zip(axes, chosen, ids.cpu().numpy(), strict=True):
        _show(line[0], _image(index, rows[query]), index.fine_names[fine[query]], QUERY, bold=True)
        for axis, other in zip(line[1:], near, strict=True):
            colour = RIGHT if fine[other] == fine[query] else WRONG
            _show(axis, _image(index, rows[other]), index.fine_names[fine[other]], colour)
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
