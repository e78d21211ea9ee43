"""A picture sheet: sample images of some classes, one row a class, to see at a glance what a data set holds."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from fgssl.data.images import read_image
from fgssl.data.index import Index
from fgssl.errors import UserError

ROWS, COLUMNS = 12, 8
TILE = 96  # px
GAP = 4  # px between images
LABEL_WIDTH = 260  # px


def write_sheet(index: Index, file: str) -> None:
    """Write a sheet of at most 12 classes, spread evenly over the class list, with 8 images each.

    Images and classes are evenly spaced, not drawn: the same sheet for the same data. Bounding boxes are drawn in red.
    An unreadable image leaves its place empty.
    """
    rows = sample_rows(index)
    step = TILE + GAP
    sheet = Image.new("RGB", (LABEL_WIDTH + COLUMNS * step, len(rows) * step), "white")
    draw = ImageDraw.Draw(sheet)
    for y, (label, members) in enumerate(rows.items()):
        draw.multiline_text((6, y * step + TILE // 3), label, fill="black", font=ImageFont.load_default(13))
        for x, row in enumerate(members):
            try:
                sheet.paste(_tile(index, row), (LABEL_WIDTH + x * step, y * step))
            except UserError:
                continue
    try:
        sheet.save(file)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the picture sheet {file}: {error}") from error


def sample_rows(index: Index) -> dict[str, np.ndarray]:
    """Rows to show, by the text beside them."""
    if not index.fine_names:
        return {"no labels": _spread(np.arange(len(index)), COLUMNS)}
    samples = {}
    for label in _spread(np.arange(len(index.fine_names)), ROWS):
        members = np.flatnonzero(index.fine == label if index.targets is None else index.targets[:, label] == 1)
        text = index.fine_names[label]
        if index.coarse is not None and len(members):
            text += f"\n({index.coarse_names[index.coarse[members[0]]]})"
        samples[text] = _spread(members, COLUMNS)
    return samples


def _spread(items: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` of the items, evenly spaced, from the first to the last."""
    if len(items) <= count:
        return items
    return items[np.linspace(0, len(items) - 1, count).round().astype(int)]


def _tile(index: Index, row: int) -> Image.Image:
    image = read_image(index.paths[row]) if index.pixels is None else Image.fromarray(index.pixels[row])
    if index.boxes is not None and not np.isnan(index.boxes[row]).any():
        line = max(1, max(image.size) // 100)
        ImageDraw.Draw(image).rectangle([float(side) for side in index.boxes[row]], outline="red", width=line)
    return ImageOps.pad(image, (TILE, TILE), color="white")
