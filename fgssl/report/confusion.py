"""Confusion of classes: the class of an image against that of its nearest neighbour.

Of up to 20 classes the whole matrix is drawn, of more the 20 worst pairs of classes.
"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fgssl.evaluation.embedding import Embeddings
from fgssl.evaluation.search import search
from fgssl.report.figures import RIGHT, UNKNOWN, WRONG, chosen_rows, short

MOST = 20  # most classes in a matrix, and most pairs in a list
ARROW = "\N{RIGHTWARDS ARROW}"
FEW = 5  # images of a class below which its shares are by chance


class Pair(NamedTuple):
    """Images of one class whose nearest neighbour is of another class.

    Attributes:
        ours: class of the images.
        theirs: class of the neighbours.
        images: number of images of the class ``ours``.
        same: how many of them have a neighbour of their own class.
        confused: how many of them have a neighbour of the class ``theirs``.
    """

    ours: int
    theirs: int
    images: int
    same: int
    confused: int

    @property
    def other(self) -> int:
        """Number of images whose neighbour is of a third class."""
        return self.images - self.same - self.confused


class Nearest(NamedTuple):
    """Images and their nearest neighbours, as rows of the data set, [Q] int64 each; ``of``: number of all images."""

    rows: np.ndarray
    neighbours: np.ndarray
    of: int


def nearest(queries: Embeddings, gallery: Embeddings | None, *, seed: int = 0) -> Nearest:
    """Find the nearest neighbour of at most 3,000 queries, drawn at random.

    Args:
        queries: the evaluated images.
        gallery: where they are searched; None: among themselves, each left out.
        seed: of the choice of queries.
    """
    positions = torch.from_numpy(chosen_rows(len(queries.fine), seed)).to(queries.fine.device)
    searched, exclude = (queries, positions) if gallery is None else (gallery, None)
    _, ids = search(queries.embedding[positions], searched.embedding, 1, exclude=exclude)
    rows, neighbours = queries.index[positions], searched.index[ids[:, 0]]
    return Nearest(rows.cpu().numpy(), neighbours.cpu().numpy(), len(queries.fine))


def worst_pairs(ours: np.ndarray, theirs: np.ndarray, most: int = MOST) -> list[Pair]:
    """The pairs of different classes with the largest share of the images of the first class, largest first.

    Among equal shares the pair with more images is first. Classes of fewer than 5 images come last, since their shares
    are by chance.

    Args:
        ours: [Q] labels of the images.
        theirs: [Q] labels of their nearest neighbours.
        most: largest number of pairs.
    """
    images = Counter(ours.tolist())
    confused = Counter(zip(ours.tolist(), theirs.tolist(), strict=True))
    pairs = [
        Pair(one, other, images[one], confused[one, one], count)
        for (one, other), count in sorted(confused.items())
        if one != other
    ]
    return sorted(pairs, key=lambda pair: (pair.images < FEW, -pair.confused / pair.images, -pair.confused))[:most]


def whole_percent(counts: np.ndarray) -> np.ndarray:
    """Rows [R, C] in whole percent that sum to 100, by the largest remainders; a row of zeros stays zero."""
    exact = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    whole = np.floor(exact).astype(np.int64)
    for row, (floor, remainder) in enumerate(zip(whole, exact - whole, strict=True)):
        missing = round(exact[row].sum()) - int(floor.sum())
        floor[np.argsort(-remainder, kind="stable")[:missing]] += 1
    return whole


def draw_confusion(found: Nearest, labels: np.ndarray, names: tuple[str, ...], what: str, path: Path) -> Path:
    """Draw the class of the nearest neighbours against that of the images, in percent of the images of a class.

    Args:
        found: images and their neighbours.
        labels: [N] labels of the data set's rows.
        names: names of the labels.
        what: kind of label, such as ``class`` or ``coarse class``.
        path: picture to write.
    """
    ours, theirs = labels[found.rows], labels[found.neighbours]
    ours, theirs = (column[(ours >= 0) & (theirs >= 0)] for column in (ours, theirs))  # images without a label
    present = np.unique([ours, theirs])
    of = "" if len(found.rows) == found.of else f" ({len(found.rows):,} of {found.of:,} images)"
    if len(present) <= MOST:
        counts = np.zeros((len(present), len(present)))
        np.add.at(counts, (np.searchsorted(present, ours), np.searchsorted(present, theirs)), 1)
        title = f"{what} of the nearest neighbour, % of the images of a {what}{of}"
        figure = _matrix(whole_percent(counts), [names[label] for label in present], what, title)
    else:
        pairs = worst_pairs(ours, theirs)
        title = f"{what} of the image {ARROW} {what} of its nearest neighbour"
        shown = f"the worst {len(pairs)} pairs of {len(present)}" if pairs else "always the same"
        figure = _bars(pairs, names, f"{title}: {shown}{of}")
    figure.savefig(path)
    return path


def _matrix(percent: np.ndarray, names: list[str], what: str, title: str):
    from matplotlib.figure import Figure

    side = 1.8 + 0.5 * len(names)
    figure = Figure(figsize=(max(side + 1.0, 5), max(side, 4)), dpi=120, layout="constrained")
    axis = figure.subplots()
    axis.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for (row, column), value in np.ndenumerate(percent):
        if value:
            colour = "white" if value > 55 else "black"
            axis.text(column, row, f"{value}", ha="center", va="center", fontsize=8, color=colour)
    labels = [short(name) for name in names]
    axis.set_xticks(range(len(names)), labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axis.set_yticks(range(len(names)), labels, fontsize=8)
    axis.set_xlabel(f"{what} of the nearest neighbour", fontsize=8)
    axis.set_ylabel(f"{what} of the image", fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure


def _bars(pairs: list[Pair], names: tuple[str, ...], title: str):
    """One bar of 100 % a pair: neighbours of the same class, of the other class of the pair, of any other class."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.1 + 0.3 * len(pairs)), dpi=120, layout="constrained")
    axis = figure.subplots()
    percent = whole_percent(np.array([[p.same, p.confused, p.other] for p in pairs]).reshape(-1, 3))
    left = np.zeros(len(pairs))
    parts = ("same class", "the second class", "other classes")
    for values, colour, part in zip(percent.T, (RIGHT, WRONG, UNKNOWN), parts, strict=True):
        axis.barh(range(len(pairs)), values, left=left, color=colour, alpha=0.8, label=part, height=0.78)
        for place, value in enumerate(values):
            if value >= 3:
                axis.text(
                    left[place] + value / 2, place, f"{value}", ha="center", va="center", fontsize=8, color="white"
                )
        left += values
    labels = [f"{short(names[p.ours])} \N{RIGHTWARDS ARROW} {short(names[p.theirs])}  ({p.images})" for p in pairs]
    axis.set_yticks(range(len(pairs)), labels, fontsize=8)
    axis.set_ylim(max(len(pairs), 1) - 0.5, -0.5)
    axis.set_xlim(0, 100)
    axis.set_xlabel("% of the images of the first class (their number in brackets)", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=9)
    return figure
