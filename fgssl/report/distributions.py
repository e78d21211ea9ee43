"""Charts of the sizes of a data set's classes (MaskCon, Fig. 5 and Tables 8 and 9)."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure  # instead of pyplot, which keeps figures open

from fgssl.data.check import class_counts, coarse_sizes
from fgssl.data.index import Index

COLOUR = "#332288"
BARS = 40  # most bars of the left chart; wider ones for more different sizes


def draw_distributions(index: Index, path: Path) -> Path:
    """Draw the number of classes by their number of images and, with coarse labels, the classes of each of them."""
    counts = class_counts(index, np.arange(len(index)))
    counts = counts[counts > 0]
    coarse = coarse_sizes(index)
    size = (5.5 + (5.5 if coarse else 0), max(3.8, 1 + 0.16 * len(coarse)))  # room for a line a coarse class
    figure = Figure(size, dpi=120, layout="constrained")
    axes = figure.subplots(1, 2 if coarse else 1, squeeze=False)[0]
    _sizes(axes[0], counts)
    if coarse:
        _bars(axes[1], coarse)
    for ruler in (axes[0].xaxis, axes[0].yaxis, *(axis.xaxis for axis in axes[1:])):  # all count something
        ruler.get_major_locator().set_params(integer=True, min_n_ticks=1)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    figure.suptitle(f"{index.name}: {len(index):,} images, {len(counts):,} classes", fontsize=10)
    figure.savefig(path)
    return path


def _sizes(axis, counts: np.ndarray) -> None:
    """Number of classes by number of images; counts in bars of equal width where there are many sizes."""
    low, high = (int(counts.min()), int(counts.max())) if len(counts) else (0, 0)
    width = -(-(high - low + 1) // BARS)
    edges = np.arange(low, high + width + 1, width) - 0.5
    axis.hist(counts, edges, color=COLOUR, alpha=0.85, rwidth=0.9)
    axis.set_xlabel("images of a class" + (f", in steps of {width}" if width > 1 else ""))
    axis.set_ylabel("classes")


def _bars(axis, coarse: dict[str, int]) -> None:
    """Number of classes of each coarse class."""
    axis.barh(range(len(coarse)), list(coarse.values()), color=COLOUR, alpha=0.85)
    for place, count in enumerate(coarse.values()):
        axis.text(count, place, f" {count:,}", va="center", fontsize=7)
    axis.set_yticks(range(len(coarse)), list(coarse))
    axis.margins(y=0.01)
    axis.invert_yaxis()
    axis.set_xlabel("classes of a coarse class")
