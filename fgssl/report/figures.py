"""Pictures of retrieval results and embeddings."""

import importlib.util
import textwrap
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fgssl.data.images import read_row
from fgssl.data.index import Index
from fgssl.evaluation.embedding import Embeddings
from fgssl.evaluation.search import search

RIGHT, WRONG, QUERY, UNKNOWN = "#2a9d4a", "#d1352b", "#333333", "#777777"
FEW = 1000  # points that are laid out on one thread
SAMPLE = 3000  # most images in pictures that need all pairs or t-SNE
COLUMN, SIDE = 1.25, 1.15  # inches: distance of two pictures in a row, and side of a picture
LARGEST = 500_000  # bytes of a picture of photographs
COLOURED = 18  # most coloured groups in a map: matplotlib's twenty colours without the two greys


def retrieval_grid(
    queries: Embeddings,
    gallery: Embeddings | None,
    index: Index,
    path: Path,
    *,
    title: str = "",
    count: int = 8,
    neighbours: int = 8,
    seed: int = 0,
) -> Path:
    """Draw queries (left) and their nearest neighbours: a green frame where the class is right, red where wrong.

    The cosine similarity stands above each neighbour. The queries are drawn at random, the same for every run on the
    same rows, so that two runs can be laid side by side.

    Args:
        queries: the evaluated set; rows point into ``index``.
        gallery: where they are searched; None: among themselves, each left out, so that there have to be two.
        index: the data set, for the images and the class names.
        path: picture to write; as .jpg it takes less than 500 KB.
        title: first line of the picture, such as the run and its metrics.
        count: queries shown, one a row.
        neighbours: columns beside the query.
        seed: of the choice of queries.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(queries.fine))[:count])
    positions = torch.from_numpy(chosen).to(queries.fine.device)
    searched, exclude = (queries, positions) if gallery is None else (gallery, None)
    k = min(neighbours, len(searched.fine) - (gallery is None))
    cosine, ids = search(queries.embedding[positions], searched.embedding, k, exclude=exclude)
    lines = []
    for query, cosine_k, near_k in zip(chosen, cosine.tolist(), ids.cpu(), strict=True):
        label = int(queries.fine[query])
        line = [(image_of(index, int(queries.index[query])), index.fine_names[label], QUERY)]
        for similarity, other in zip(cosine_k, near_k, strict=True):
            found = int(searched.fine[other])
            colour = RIGHT if found == label else WRONG
            name = f"{index.fine_names[found]}\n{similarity:.2f}"
            line.append((image_of(index, int(searched.index[other])), name, colour))
        lines.append(line)
    reading = "query, then its nearest neighbours by cosine similarity (green: same class, red: another)"
    return picture_rows(lines, f"{title}\n{reading}".strip(), path)


def picture_rows(lines: list[list[tuple[np.ndarray, str, str]]], title: str, path: Path) -> Path:
    """Draw rows of pictures; each is an image [H, W, 3], the text above it and the colour of its frame."""
    from matplotlib.figure import Figure  # instead of pyplot, which keeps figures open

    columns = max(len(line) for line in lines)
    names = [[wrapped(name) for _, name, _ in line] for line in lines]
    above = [0.3 + 0.11 * max(name.count("\n") for name in row) for row in names]  # inches of text and gap of each row
    width = COLUMN * columns + 0.1
    title = "\n".join(textwrap.fill(line, int(14 * width)) for line in title.splitlines())
    top = 0.1 + 0.17 * len(title.splitlines())
    height = top + sum(above) + SIDE * len(lines) + 0.1
    figure = Figure(figsize=(width, height), dpi=120)
    figure.suptitle(title, fontsize=10, y=1 - 0.1 / height, va="top")
    # One axes, in inches, for all pictures: an axes for each takes several times as long to lay out and draw.
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    for line, texts, text_height in zip(lines, names, above, strict=True):
        top += text_height
        for place, ((image, _, colour), text) in enumerate(zip(line, texts, strict=True)):
            left = 0.1 + COLUMN * place
            _show(axis, image, (left, top), text, colour, bold=place == 0)
        top += SIDE
    axis.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    return save_photographs(figure, path)


def save_photographs(figure, path: Path) -> Path:
    """Save a figure; as .jpg in less than 500 KB, of many pictures with fewer pixels."""
    if Path(path).suffix.lower() not in (".jpg", ".jpeg"):
        figure.savefig(path)
        return path
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    for size, quality in ((1, 88), (1, 75), (0.75, 75), (0.5, 75), (0.33, 60)):
        smaller = picture.resize((round(size * picture.width), round(size * picture.height)))
        smaller.save(path, quality=quality, optimize=True)
        if Path(path).stat().st_size < LARGEST:
            break
    return path


def similarity_histogram(
    queries: Embeddings, gallery: Embeddings | None, path: Path, *, seed: int = 0
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Draw histograms of the cosine similarity of pairs of the same class and of different classes.

    The axis reaches from the smallest to the largest similarity. Pairs among at most 3,000 images, drawn at random; no
    image is paired with itself.

    Returns:
        ``same_class`` and ``other_class``: counts [50] and bin edges [51], as numpy's histogram gives them.
    """
    from matplotlib.figure import Figure

    left, right = _sample(queries, seed), _sample(gallery or queries, seed)
    cosine_QG = (F.normalize(left.embedding) @ F.normalize(right.embedding).T).cpu()
    same_QG = (left.fine[:, None] == right.fine).cpu()
    pairs_QG = (left.index[:, None] != right.index).cpu()
    low, high = (bound.item() for bound in cosine_QG[pairs_QG].aminmax()) if pairs_QG.any() else (0.0, 1.0)
    edges = np.linspace(low, max(high, low + 1e-6), 51)
    counts = {
        "same_class": np.histogram(cosine_QG[same_QG & pairs_QG], edges),
        "other_class": np.histogram(cosine_QG[~same_QG & pairs_QG], edges),
    }
    figure = Figure(figsize=(6.5, 3.6), dpi=120, layout="constrained")
    axis = figure.subplots()
    for (name, (count, _)), colour in zip(counts.items(), (RIGHT, WRONG), strict=True):
        share = 100 * count / max(count.sum(), 1)
        label = f"{name.replace('_', ' ')} ({count.sum():,} pairs)"
        axis.stairs(share, edges, fill=True, color=colour, alpha=0.45, label=label)
    axis.set_xlabel("cosine similarity")
    axis.set_ylabel("share of the pairs, %")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(path)
    return counts


def embedding_map(
    embeddings: Embeddings,
    index: Index,
    path: Path,
    *,
    way: Literal["tsne", "umap"] = "tsne",
    count: int = SAMPLE,
    seed: int = 0,
) -> Path:
    """Draw the embeddings in two dimensions, coloured by fine label and, if the data set has them, by coarse label.

    With more than 18 groups, 18 evenly spaced ones are coloured and the others are grey. The title states the number
    of images.

    Args:
        embeddings: what to draw; rows point into ``index``.
        index: the data set, for labels and names.
        path: where the PNG goes.
        way: t-SNE (scikit-learn) or UMAP (umap-learn), both by cosine.
        count: most images to draw, chosen at random; 0 draws all.
        seed: of the choice of images and of the layout.
    """
    from matplotlib.figure import Figure

    shown = _sample(embeddings, seed, count) if count else embeddings
    points_N2 = layout(F.normalize(shown.embedding).cpu().numpy(), way, seed)
    rows = shown.index.cpu().numpy()
    panels = [("fine label", shown.fine.cpu().numpy(), index.fine_names)]
    if index.coarse is not None:
        panels.append(("coarse label", index.coarse[rows], index.coarse_names))

    figure = Figure(figsize=(6.6 * len(panels), 5), dpi=120, layout="constrained")
    for axis, (title, labels, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _scatter(axis, points_N2, labels, names)
        axis.set_title(title, fontsize=10)
    of = "all" if len(rows) == len(embeddings.fine) else f"{len(rows):,} of"
    name = "t-SNE" if way == "tsne" else "UMAP"
    figure.suptitle(f"{name} of {of} {len(embeddings.fine):,} images of {index.name}", fontsize=11)
    figure.savefig(path)
    return path


def layout(features_NF: np.ndarray, way: Literal["tsne", "umap"], seed: int) -> np.ndarray:
    """Two-dimensional layout [N, 2] of features [N, F] of unit length."""
    if way == "umap":
        from umap import UMAP

        neighbours = min(15, len(features_NF) - 1)
        return UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1).fit_transform(features_NF)
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(30.0, (len(features_NF) - 1) / 3)
    # Threads wait for each other at every step: few points on a busy machine take 40 times as long with two.
    with threadpool_limits(1 if len(features_NF) < FEW else None):
        return TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=seed).fit_transform(features_NF)


def has_umap() -> bool:
    """Whether the optional umap-learn is installed."""
    return importlib.util.find_spec("umap") is not None


def _scatter(axis, points_N2: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> None:
    from matplotlib import colormaps

    present = np.unique(labels[labels >= 0])
    coloured = (
        present[np.unique(np.linspace(0, len(present) - 1, COLOURED).round().astype(int))] if len(present) else []
    )
    rest = ~np.isin(labels, coloured)
    if rest.any():
        label = f"{len(present) - len(coloured)} others" if len(present) > len(coloured) else "no label"
        axis.scatter(*points_N2[rest].T, s=5, color="#dddddd", linewidths=0, label=label)
    few = len(coloured) <= 10
    palette = colormaps["tab10" if few else "tab20"](np.arange(10) if few else np.delete(np.arange(20), (14, 15)))
    for place, group in enumerate(coloured):
        axis.scatter(*points_N2[labels == group].T, s=9, color=palette[place], linewidths=0, label=short(names[group]))
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_aspect("equal", adjustable="datalim")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, markerscale=2, frameon=False)


def _sample(embeddings: Embeddings, seed: int, most: int | None = None) -> Embeddings:
    chosen = torch.from_numpy(chosen_rows(len(embeddings.fine), seed, most)).to(embeddings.fine.device)
    return Embeddings(*(column[chosen] for column in embeddings))


def chosen_rows(count: int, seed: int, most: int | None = None) -> np.ndarray:
    """At most ``most`` positions (default SAMPLE), ascending."""
    return np.sort(np.random.default_rng(seed).permutation(count)[: most or SAMPLE])


def image_of(index: Index, row: int) -> np.ndarray:
    """Image of a row of the data set, [H, W, 3] uint8."""
    return np.asarray(read_row(index, row))


def _show(axis, image: np.ndarray, corner: tuple[float, float], name: str, colour: str, bold: bool = False) -> None:
    """An image with its upper left corner at ``corner``, in inches, its frame, and its name above it."""
    from matplotlib.patches import Rectangle

    left, top = corner
    axis.imshow(_square(image), extent=(left, left + SIDE, top + SIDE, top))
    axis.add_patch(Rectangle(corner, SIDE, SIDE, fill=False, edgecolor=colour, linewidth=3))
    weight = "bold" if bold else "normal"
    axis.text(left + SIDE / 2, top - 0.06, name, ha="center", va="bottom", fontsize=7, color=colour, fontweight=weight)


def _square(image: np.ndarray) -> np.ndarray:
    """Centre crop of a fixed size for grids of pictures."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def short(name: str, width: int = 30) -> str:
    """``001.Black_footed_Albatross`` as ``Black footed Albatross``, cut at ``width`` to stay within its picture."""
    name = plain(name)
    return name if len(name) <= width else name[: width - 1] + "…"


def wrapped(name: str, width: int = 20, lines: int = 2) -> str:
    """A name in up to ``lines`` lines of ``width`` characters; each line of the given text by itself."""
    parts = [textwrap.wrap(plain(line), width, max_lines=lines, placeholder="…") for line in name.split("\n")]
    return "\n".join(line for part in parts for line in part)


def plain(name: str) -> str:
    """``001.Black_footed_Albatross`` as ``Black footed Albatross``."""
    number, _, rest = name.partition(".")
    return (rest if number.isdigit() and rest[:1].isalpha() else name).replace("_", " ")
