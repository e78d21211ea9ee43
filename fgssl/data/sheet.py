"""Sheet of sample images, one row for each class."""

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from fgssl.data.images import read_row
from fgssl.data.index import Index
from fgssl.errors import UserError

ROWS, COLUMNS = 12, 8
PAIRS = 4  # pairs of duplicates in a line
TILE = 96  # px
GAP = 4  # px between images
LABEL_WIDTH = 260  # px
LABEL_LETTERS, LABEL_LINES = 30, 5  # of a name in that width and beside a tile


def write_sheet(index: Index, file: Path) -> None:
    """Write a sheet of up to 12 classes with up to 8 images each.

    Classes and images are evenly spaced in their lists, so that equal data give equal sheets. Bounding boxes are drawn
    in red. Unreadable images leave their place empty.
    """
    rows = sample_rows(index)
    step = TILE + GAP
    sheet = Image.new("RGB", (LABEL_WIDTH + COLUMNS * step, len(rows) * step), "white")
    draw, font = ImageDraw.Draw(sheet), _font()
    for y, (label, members) in enumerate(rows.items()):
        place = (6, y * step + TILE // 2)
        draw.multiline_text(place, _in_lines(label), fill="black", font=font, anchor="lm")
        for x, row in enumerate(members):
            try:
                sheet.paste(_tile(index, row), (LABEL_WIDTH + x * step, y * step))
            except UserError:
                continue
    _save(sheet, file)


def write_pairs(index: Index, pairs: list[tuple[int, int]], file: Path) -> None:
    """Write a sheet of up to 48 pairs of rows, four pairs in a line, with a line around each pair."""
    pairs, tile = pairs[: ROWS * PAIRS], TILE + GAP
    width, height = 2 * tile + GAP, tile + GAP
    sheet = Image.new("RGB", (PAIRS * width, -(-len(pairs) // PAIRS) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, pair in enumerate(pairs):
        x, y = place % PAIRS * width, place // PAIRS * height
        for column, row in enumerate(pair):
            sheet.paste(_tile(index, row), (x + GAP + column * tile, y + GAP))
        draw.rectangle([x + 1, y + 1, x + width - 2, y + height - 2], outline="grey")
    _save(sheet, file)


def _save(sheet: Image.Image, file: Path) -> None:
    try:
        sheet.save(file)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the picture sheet {file}: {error}") from error


def _font() -> ImageFont.FreeTypeFont:
    """The font of the other pictures; that of PIL has no letters but those of English."""
    from matplotlib.font_manager import findfont

    return ImageFont.truetype(findfont("DejaVu Sans"), 12)


def _in_lines(label: str) -> str:
    """The lines of a label, long ones in several."""
    lines = [part for line in label.split("\n") for part in textwrap.wrap(line, LABEL_LETTERS)]
    return "\n".join(lines if len(lines) <= LABEL_LINES else [*lines[: LABEL_LINES - 1], "…"])


def sample_rows(index: Index) -> dict[str, np.ndarray]:
    """Rows to show, by the label of the row in the sheet."""
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
    """Up to ``count`` evenly spaced items, including the first and the last."""
    if len(items) <= count:
        return items
    return items[np.linspace(0, len(items) - 1, count).round().astype(int)]


def _tile(index: Index, row: int) -> Image.Image:
    image = read_row(index, row)
    if index.boxes is not None and not np.isnan(index.boxes[row]).any():
        line = max(1, max(image.size) // 100)
        ImageDraw.Draw(image).rectangle([float(side) for side in index.boxes[row]], outline="red", width=line)
    return ImageOps.pad(image, (TILE, TILE), color="white")
