"""Explorer of embeddings: a page with a map of the images, their photographs and nearest neighbours.

The folder of an explorer holds ``index.html``, ``data.js`` (positions, labels, neighbours) and thumbnails in sheets,
``small-<n>.jpg`` for the map and ``large-<n>.jpg``, which are read when a photograph is shown in detail.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from fgssl.data.images import open_image, to_rgb
from fgssl.errors import UserError
from fgssl.evaluation.search import search
from fgssl.evaluation.store import Stored
from fgssl.report.confusion import Pair, worst_pairs
from fgssl.report.figures import chosen_rows, has_umap, layout, plain

NEIGHBOURS = 8
RANGE = 10_000  # of the positions in a map
GREY = (128, 128, 128)  # of photographs that cannot be read
SHEETS = {"small": (40, 50), "large": (128, 8)}  # side of a thumbnail in px, thumbnails in a row of a square sheet

Photograph = Callable[[int], Image.Image]  # image of a position among the embedded rows, at least as large as needed


class Explored(NamedTuple):
    """What was written.

    Attributes:
        images: number of images in the map.
        pairs: classes that are confused most often among them.
        missing: number of photographs that could not be read.
    """

    images: int
    pairs: list[Pair]
    missing: int


def write_explorer(stored: Stored, photograph: Photograph, folder: Path, points: int, seed: int = 0) -> Explored:
    """Write ``data.js`` and the sheets of thumbnails.

    Args:
        stored: embeddings of a run.
        photograph: image of a position in ``stored``.
        folder: where the files go.
        points: most images in the map, drawn at random; neighbours are searched among them. 0: all.
        seed: of the choice of images and of the layout.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chosen = chosen_rows(len(stored.index), seed, points or len(stored.index))
    features = torch.from_numpy(stored.embedding[chosen])
    fine, coarse = stored.fine[chosen], stored.coarse[chosen]
    cosine, near = neighbours_of(features)
    labelled = fine >= 0
    first = near[labelled, 0] if near.shape[1] else np.zeros(0, dtype=int)
    pairs = worst_pairs(fine[labelled], fine[first]) if near.shape[1] else []
    missing = write_sheets((tile(photograph, int(position)) for position in chosen), folder)
    data = {
        "maps": {name: positions(features, way, seed) for name, way in ways().items()},
        "fine": fine.tolist(),
        "fineNames": [plain(name) for name in stored.about["fine_names"]],
        "coarse": coarse.tolist() if (coarse >= 0).any() else None,
        "coarseNames": [plain(name) for name in stored.about["coarse_names"]],
        "rows": stored.index[chosen].tolist(),
        "files": ["/".join(Path(path).parts[-2:]) for path in stored.paths[chosen].tolist()],
        "k": near.shape[1],
        "near": near.ravel().tolist(),
        "cosine": (1000 * cosine).round().astype(int).ravel().tolist(),
        "pairs": [pair[:5] for pair in pairs],
        "sheets": {kind: {"side": side, "columns": columns} for kind, (side, columns) in SHEETS.items()},
    }
    (folder / "data.js").write_text(f"window.FGSSL = {json.dumps(data, separators=(',', ':'))};\n")
    return Explored(len(chosen), pairs, missing)


def neighbours_of(features: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Cosine similarities and positions [N, k] of the nearest others of each image; k is at most 8."""
    k = min(NEIGHBOURS, len(features) - 1)
    if k < 1:
        return np.zeros((len(features), 0)), np.zeros((len(features), 0), dtype=int)
    cosine, near = search(features, features, k, exclude=torch.arange(len(features)))
    return cosine.numpy(), near.numpy()


def ways() -> dict[str, Any]:
    """Layouts by their name in the page: t-SNE, and UMAP where umap-learn is installed."""
    return {"t-SNE": "tsne"} | ({"UMAP": "umap"} if has_umap() else {})


def positions(features: torch.Tensor, way: Any, seed: int) -> list[int]:
    """Layout of the images as whole numbers x0, y0, x1, y1, ... from 0 to 10,000, with equal units in x and y."""
    if len(features) < 4:  # t-SNE needs more images than its perplexity
        return [RANGE * place // 4 for place in range(2 * len(features))]
    points_N2 = layout(F.normalize(features).numpy(), way, seed)
    points_N2 = points_N2 - points_N2.min(axis=0)
    return (RANGE * points_N2 / max(points_N2.max(), 1e-9)).round().astype(int).ravel().tolist()


# ---- thumbnails -----------------------------------------------------------------------------------------------------


def photographs_of(paths: np.ndarray, pixels: np.ndarray | None) -> Photograph:
    """Images of embedded rows: from memory ([N, H, W, 3]), or from their files, of a large JPEG at a reduced size."""

    def of(position: int) -> Image.Image:
        if pixels is not None:
            return Image.fromarray(pixels[position])
        with open_image(str(paths[position])) as file:
            file.draft("RGB", (2 * SHEETS["large"][0],) * 2)  # 1/2, 1/4 or 1/8 of the size of a JPEG
            return to_rgb(file)

    return of


def tile(photograph: Photograph, position: int) -> Image.Image | None:
    """Square thumbnail from the middle of an image; None if it cannot be read."""
    side = SHEETS["large"][0]
    try:
        image = photograph(position)
    except UserError:
        return None
    resample = Image.Resampling.NEAREST if max(image.size) < side // 2 else Image.Resampling.LANCZOS
    return ImageOps.fit(image, (side, side), resample)


def write_sheets(tiles: Iterator[Image.Image | None], folder: Path) -> int:
    """Write the sheets of all sizes; returns the number of images that are missing, grey in the sheets."""
    missing = 0
    open_sheets = {kind: Sheet(folder, kind, *size) for kind, size in SHEETS.items()}
    for image in tiles:
        missing += image is None
        for sheet in open_sheets.values():
            sheet.add(image)
    for sheet in open_sheets.values():
        sheet.save()
    return missing


class Sheet:
    """Thumbnails of one size, written to ``<kind>-<n>.jpg`` row by row.

    Args:
        folder: where the files go.
        kind: first part of their names.
        side: side of a thumbnail, px.
        columns: thumbnails in a row and in a column.
    """

    def __init__(self, folder: Path, kind: str, side: int, columns: int):
        self.folder, self.kind, self.side, self.columns = folder, kind, side, columns
        self.number = self.held = 0

    def add(self, image: Image.Image | None) -> None:
        if self.held == 0:
            self.canvas = Image.new("RGB", (self.side * self.columns,) * 2, GREY)
        place = (self.side * (self.held % self.columns), self.side * (self.held // self.columns))
        if image is not None:
            self.canvas.paste(image.resize((self.side, self.side), Image.Resampling.LANCZOS), place)
        self.held += 1
        if self.held == self.columns**2:
            self.save()

    def save(self) -> None:
        """Write the sheet, cut after its last row."""
        if self.held:
            height = self.side * -(-self.held // self.columns)
            cut = self.canvas.crop((0, 0, self.canvas.width, height))
            cut.save(self.folder / f"{self.kind}-{self.number}.jpg", quality=85)
            self.number, self.held = self.number + 1, 0
