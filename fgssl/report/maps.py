"""Heat maps and marked patches, drawn over photographs, and patches laid out as points."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from fgssl.report.figures import wrapped

Box = tuple[int, int, int, int]

RED = (214, 39, 40)
COLOURS = "turbo"  # matplotlib's colour map of the heat
SMALLEST, LARGEST, WIDEST = 224, 1000, 4000  # px: width of a photograph in the picture, and of the picture
DPI, GAP, LINE = 100, 12, 18  # pixels an inch; px between photographs, and of a line of text


class Panel(NamedTuple):
    """A map drawn over the photograph.

    Attributes:
        title: text above the picture.
        heat_HW: [H, W] non-negative values of any scale, drawn as a heat map; None: no heat map.
        marked_HW: [H, W] bool, patches to frame in red; None: no frames.
        points_HW2: [H, W, 2] a point of each patch, drawn in the colour of the patch in place of the photograph; None:
            the photograph is drawn.
    """

    title: str
    heat_HW: np.ndarray | None = None
    marked_HW: np.ndarray | None = None
    points_HW2: np.ndarray | None = None


class Line(NamedTuple):
    """One row of a picture: a photograph, and what is drawn over it.

    Attributes:
        name: text above the photograph.
        photograph: the whole image.
        box: part that the network saw, in pixels of the photograph: x0, y0, x1, y1.
        panels: maps over the part.
    """

    name: str
    photograph: Image.Image
    box: Box
    panels: list[Panel]


def paint(photograph: Image.Image, box: Box, panel: Panel) -> Image.Image:
    """The photograph at its own size with the heat map of a panel, scaled to a maximum of 1, and its frames.

    What lies outside the box is darkened.
    """
    from matplotlib import colormaps

    x0, y0, x1, y1 = box
    size = (x1 - x0, y1 - y0)
    seen = np.asarray(photograph.convert("RGB").crop(box), dtype=np.float32)
    if panel.heat_HW is not None:
        heat = np.asarray(panel.heat_HW, dtype=np.float32)
        heat = heat / max(float(heat.max()), 1e-12)
        heat = np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
        share = (0.2 + 0.4 * heat)[..., None]  # of the colour; what is cold stays visible
        seen = (1 - share) * seen + share * 255 * colormaps[COLOURS](heat)[..., :3]
    whole = Image.fromarray((0.45 * np.asarray(photograph.convert("RGB"), dtype=np.float32)).astype(np.uint8))
    whole.paste(Image.fromarray(seen.round().astype(np.uint8)), (x0, y0))
    if panel.marked_HW is not None:
        height, width = panel.marked_HW.shape
        draw = ImageDraw.Draw(whole)
        thick = max(2, min(size) // 100)
        for row, column in np.argwhere(panel.marked_HW).tolist():
            left, right = (x0 + size[0] * edge // width for edge in (column, column + 1))
            top, bottom = (y0 + size[1] * edge // height for edge in (row, row + 1))
            frame = (left, top, right - 1, bottom - 1)
            draw.rectangle(frame, outline="white", width=2 * thick)  # what is hot is red too
            draw.rectangle(frame, outline=RED, width=thick)
    return whole


def scatter(photograph: Image.Image, box: Box, points_HW2: np.ndarray) -> Image.Image:
    """Points of the patches on white, at the size of the photograph, each in the mean colour of its patch."""
    height, width = points_HW2.shape[:2]
    colours = np.asarray(photograph.convert("RGB").crop(box).resize((width, height), Image.Resampling.BOX))
    low, high = points_HW2.min(axis=(0, 1)), points_HW2.max(axis=(0, 1))
    radius = max(2, min(photograph.size) // 60)
    room = np.array(photograph.size) - 4 * radius
    places = 2 * radius + (points_HW2 - low) / np.maximum(high - low, 1e-12) * room
    picture = Image.new("RGB", photograph.size, "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, picture.width - 1, picture.height - 1), outline="lightgrey")  # where the next one begins
    for (x, y), colour in zip(places.reshape(-1, 2).tolist(), colours.reshape(-1, 3).tolist(), strict=True):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(colour), outline="grey")
    return picture


def picture_of(line: Line, panel: Panel) -> Image.Image:
    """What a panel shows, at the size of the photograph."""
    if panel.points_HW2 is not None:
        return scatter(line.photograph, line.box, panel.points_HW2)
    return paint(line.photograph, line.box, panel)


def draw_panels(lines: list[Line], title: str, path: Path) -> Path:
    """Draw photographs and their panels, one row a line, with a colour bar where there is a heat map.

    Photographs of 224 to 1,000 px keep their pixels, unless the picture would become wider than 4,000 px.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    lines = [enlarged(line) for line in lines]
    columns = 1 + max(len(line.panels) for line in lines)
    widest = max(line.photograph.width for line in lines)
    cell = min(max(widest, SMALLEST), LARGEST, (WIDEST - 100) // columns - GAP)
    heights = [round(cell * line.photograph.height / line.photograph.width) for line in lines]
    letters = cell // 7  # in a line of text
    names = [[wrapped(text, letters) for text in (line.name, *(p.title for p in line.panels))] for line in lines]
    above = [LINE * max(1 + name.count("\n") for name in row) + 4 for row in names]
    head = LINE * (1 + len(title.splitlines())) + 4

    bar = 90 if any(panel.heat_HW is not None for line in lines for panel in line.panels) else 0
    width = max(columns * (cell + GAP) + GAP + bar, 7 * max(len(line) for line in title.splitlines()))
    height = head + sum(heights) + sum(above) + GAP * len(lines)
    figure = Figure((width / DPI, height / DPI), dpi=DPI)
    figure.text(0.5, 1 - LINE / 2 / height, title, ha="center", va="top", fontsize=9, wrap=True)

    def place(x: int, y: int, w: int, h: int):
        """Axes by their pixels, y from the top."""
        return figure.add_axes((x / width, 1 - (y + h) / height, w / width, h / height))

    top = head
    for line, texts, tall, space in zip(lines, names, heights, above, strict=True):
        top += space
        pictures = [line.photograph.convert("RGB"), *(picture_of(line, panel) for panel in line.panels)]
        for column, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
            axis = place(GAP + column * (cell + GAP), top, cell, tall)
            axis.imshow(picture.resize((cell, tall), Image.Resampling.LANCZOS), aspect="auto")
            axis.set_axis_off()
            axis.set_title(text, fontsize=9, pad=3, fontweight="normal" if column else "bold")
        top += tall + GAP
    if bar:
        axis = place(GAP + columns * (cell + GAP), head + above[0], 14, min(heights[0], 400))
        figure.colorbar(ScalarMappable(cmap=colormaps[COLOURS]), cax=axis)
        axis.set_ylabel("share of the map's largest value", fontsize=8)
        axis.tick_params(labelsize=8)
    figure.savefig(path)
    return path


def enlarged(line: Line) -> Line:
    """A line whose photograph is at least half of 224 px wide: smaller ones by a whole factor."""
    factor = max(1, SMALLEST // line.photograph.width)
    x0, y0, x1, y1 = (factor * side for side in line.box)
    width, height = (factor * side for side in line.photograph.size)
    return line._replace(
        photograph=line.photograph.resize((width, height), Image.Resampling.NEAREST), box=(x0, y0, x1, y1)
    )
