"""Pictures of retrieval results and embeddings."""

import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from fgssl.data.images import read_row
from fgssl.data.index import Index
from fgssl.evaluation.embedding import Embeddings
from fgssl.evaluation.search import search

RIGHT, WRONG, QUERY, UNKNOWN = "#2a9d4a", "#d1352b", "#333333", "#777777"
SAMPLE = 3000  # most images in pictures that need all pairs or t-SNE
NAMED = 20  # most groups in a matrix
COLOURED = 18  # most coloured groups in a map: matplotlib's twenty colours without the two greys


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
    chosen = np.sort(np.random.default_rng(seed).permutation(len(queries.fine))[:count])
    positions = torch.from_numpy(chosen).to(queries.fine.device)
    searched, exclude = (queries, positions) if gallery is None else (gallery, None)
    k = min(neighbours, len(searched.fine) - 1)
    _, ids = search(queries.embedding[positions], searched.embedding, k, exclude=exclude)
    lines = []
    for query, near_k in zip(chosen, ids.cpu(), strict=True):
        label = int(queries.fine[query])
        line = [(image_of(index, int(queries.index[query])), index.fine_names[label], QUERY)]
        for other in near_k:
            found = int(searched.fine[other])
            colour = RIGHT if found == label else WRONG
            line.append((image_of(index, int(searched.index[other])), index.fine_names[found], colour))
        lines.append(line)
    return picture_rows(lines, "query, then its nearest neighbours (green: same class, red: another)", path)


def picture_rows(lines: list[list[tuple[np.ndarray, str, str]]], title: str, path: Path) -> Path:
    """Draw rows of pictures; each is an image [H, W, 3], the text above it and the colour of its frame."""
    from matplotlib.figure import Figure  # instead of pyplot, which keeps figures open

    columns = max(len(line) for line in lines)
    height = 1.55 * len(lines) + 0.3 + 0.2 * len(title.splitlines())
    figure = Figure(figsize=(1.25 * columns + 0.3, height), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axes, line in zip(figure.subplots(len(lines), columns, squeeze=False), lines, strict=True):
        for place, (axis, (image, name, colour)) in enumerate(zip(axes, line, strict=True)):
            _show(axis, image, name, colour, bold=place == 0)
    figure.savefig(path)
    return path


def similarity_histogram(
    queries: Embeddings, gallery: Embeddings | None, path: Path, *, seed: int = 0
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Draw histograms of the cosine similarity of pairs of the same class and of different classes.

    Pairs among at most 3,000 images, drawn at random; no image is paired with itself.

    Returns:
        ``same_class`` and ``other_class``: counts [50] and bin edges [51], as numpy's histogram gives them.
    """
    from matplotlib.figure import Figure

    left, right = _sample(queries, seed), _sample(gallery or queries, seed)
    cosine_QG = (F.normalize(left.embedding) @ F.normalize(right.embedding).T).cpu()
    same_QG = (left.fine[:, None] == right.fine).cpu()
    pairs_QG = (left.index[:, None] != right.index).cpu()
    edges = np.linspace(min(0.0, float(cosine_QG.min())), 1.0, 51)
    counts = {
        "same_class": np.histogram(cosine_QG[same_QG & pairs_QG].clamp(max=1), edges),
        "other_class": np.histogram(cosine_QG[~same_QG & pairs_QG].clamp(max=1), edges),
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


def coarse_confusion(queries: Embeddings, gallery: Embeddings | None, index: Index, path: Path, *, seed: int = 0):
    """Draw the coarse group of the nearest neighbour against that of the query, in percent of each row.

    At most 3,000 queries, drawn at random; of more than 20 groups the 20 largest.

    Returns:
        ``path``, or None where the data set has no coarse groups.
    """
    from matplotlib.figure import Figure

    if index.coarse is None:
        return None
    positions = torch.from_numpy(_chosen(len(queries.fine), seed)).to(queries.fine.device)
    searched, exclude = (queries, positions) if gallery is None else (gallery, None)
    _, ids = search(queries.embedding[positions], searched.embedding, 1, exclude=exclude)
    ours = index.coarse[queries.index[positions].cpu().numpy()]
    theirs = index.coarse[searched.index[ids[:, 0]].cpu().numpy()]
    names = index.coarse_names
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (ours, theirs), 1)
    shown = np.sort(np.argsort(-counts.sum(axis=1), kind="stable")[:NAMED])
    share = 100 * counts[shown] / np.maximum(counts[shown].sum(axis=1, keepdims=True), 1)
    share = share[:, shown]

    side = 1.8 + 0.5 * len(shown)
    figure = Figure(figsize=(side + 1.0, side), dpi=120, layout="constrained")
    axis = figure.subplots()
    axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for (row, column), value in np.ndenumerate(share):
        if value >= 0.5:  # cells of 0 stay empty
            colour = "white" if value > 55 else "black"
            axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    labels = [_short(names[group]) for group in shown]
    axis.set_xticks(range(len(shown)), labels, rotation=45, ha="right", rotation_mode="anchor", fontsize=7)
    axis.set_yticks(range(len(shown)), labels, fontsize=7)
    axis.set_xlabel("group of the nearest neighbour", fontsize=8)
    axis.set_ylabel("group of the image", fontsize=8)
    of = f", the {len(shown)} largest of {len(names)} groups" if len(shown) < len(names) else ""
    figure.suptitle(f"nearest neighbours by coarse group, %{of}", fontsize=9)
    figure.savefig(path)
    return path


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

    perplexity = min(30.0, (len(features_NF) - 1) / 3)
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
        axis.scatter(
            *points_N2[labels == group].T, s=9, color=palette[place], linewidths=0, label=_short(names[group], 18)
        )
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_aspect("equal", adjustable="datalim")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, markerscale=2, frameon=False)


def _sample(embeddings: Embeddings, seed: int, most: int | None = None) -> Embeddings:
    chosen = torch.from_numpy(_chosen(len(embeddings.fine), seed, most)).to(embeddings.fine.device)
    return Embeddings(*(column[chosen] for column in embeddings))


def _chosen(count: int, seed: int, most: int | None = None) -> np.ndarray:
    """At most ``most`` positions (default SAMPLE), ascending."""
    return np.sort(np.random.default_rng(seed).permutation(count)[: most or SAMPLE])


def image_of(index: Index, row: int) -> np.ndarray:
    """Image of a row of the data set, [H, W, 3] uint8."""
    return np.asarray(read_row(index, row))


def _show(axis, image: np.ndarray, name: str, colour: str, bold: bool = False) -> None:
    axis.imshow(_square(image))
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(3)
    axis.set_title(_short(name), fontsize=7, color=colour, fontweight="bold" if bold else "normal", pad=3)


def _square(image: np.ndarray) -> np.ndarray:
    """Centre crop of a fixed size for grids of pictures."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def _short(name: str, width: int = 18) -> str:
    """``001.Black_footed_Albatross`` as ``Black footed Alba…``, to stay within its picture; each line by itself."""
    if "\n" in name:
        return "\n".join(_short(line, width) for line in name.split("\n"))
    number, _, rest = name.partition(".")
    name = (rest if number.isdigit() and rest[:1].isalpha() else name).replace("_", " ")
    return name if len(name) <= width else name[: width - 1] + "…"
