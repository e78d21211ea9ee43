"""Heat maps over photographs: place, resolution and colour bar."""

import numpy as np
import pytest
from PIL import Image

from fgssl.commands.maps import lines_of
from fgssl.data.views import EvalView
from fgssl.report.maps import RED, Line, Panel, draw_panels, enlarged, paint, picture_of, scatter

GREY = Image.new("RGB", (300, 200), (128, 128, 128))
CORNER = np.array([[0.0, 0.0], [0.0, 5.0]])


def test_heat_lies_on_the_part_that_the_network_saw_and_the_rest_is_darkened():
    """A wide photograph through a central crop: 224 of 256."""
    ((line,),) = [lines_of(["a.jpg"], [GREY], EvalView(224, 256), [[[Panel("GradCAM", CORNER)]]], "")]
    assert line.box == (62, 12, 237, 187)
    painted = np.asarray(paint(line.photograph, line.box, line.panels[0])).astype(int)
    assert painted.shape == (200, 300, 3)  # the photograph's own size
    assert (painted[:, :62] == 57).all()  # 0.45 of the grey
    assert (painted[187:] == 57).all()
    assert painted[186, 236, 0] > painted[186, 236, 2] + 60  # hot: red
    assert painted[12, 62, 2] > painted[12, 62, 0]  # cold: blue
    assert np.abs(painted[12, 62] - 128).max() < 40  # where it is cold the photograph stays visible


def test_a_view_of_the_whole_image_leaves_nothing_dark():
    ((line,),) = [lines_of(["a.jpg"], [GREY], EvalView(224), [[[Panel("GradCAM", CORNER)]]], "")]
    assert line.box == (0, 0, 300, 200)
    assert (np.asarray(paint(GREY, line.box, Panel("nothing"))) == 128).all()


def test_frames_are_around_their_patches():
    marked = np.array([[False, True], [False, False]])
    painted = np.asarray(paint(GREY, (50, 0, 250, 200), Panel("", None, marked)))
    rows, columns = np.nonzero((painted == RED).all(axis=-1))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 99, 150, 249)
    assert (painted[50, 152] == 255).all()  # a white line within, to be seen on what is hot
    assert (painted[50, 200] == 128).all()


def test_points_have_the_colours_of_their_patches():
    """Two by two patches of the box, laid out in the four corners, across from where they are."""
    photograph = Image.new("RGB", (300, 200), "black")
    colours = {(0, 0): (255, 0, 0), (0, 1): (0, 255, 0), (1, 0): (0, 0, 255), (1, 1): (255, 255, 0)}
    for (row, column), colour in colours.items():
        photograph.paste(colour, (50 + 100 * column, 100 * row, 150 + 100 * column, 100 + 100 * row))
    points = np.array([[[9.0, 5.0], [-1.0, 5.0]], [[9.0, -5.0], [-1.0, -5.0]]])  # x, y of each patch
    drawn = np.asarray(scatter(photograph, (50, 0, 250, 200), points))
    assert drawn.shape == (200, 300, 3)
    corners = {(0, 0): (193, 293), (0, 1): (193, 6), (1, 0): (6, 293), (1, 1): (6, 6)}
    for place, (y, x) in corners.items():
        assert tuple(drawn[y, x].tolist()) == colours[place]
    assert (drawn[100, 150] == 255).all()
    assert (drawn[[0, -1]] == 211).all()  # the edges, beside other panels
    line = Line("name", photograph, (50, 0, 250, 200), [])
    assert np.array_equal(np.asarray(picture_of(line, Panel("layer 3", points_HW2=points))), drawn)


def colours_of(picture: Image.Image) -> int:
    return len(set(map(tuple, np.asarray(picture.convert("RGB")).reshape(-1, 3)[::7])))


def test_photographs_of_a_common_size_keep_their_pixels(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8))
    line = Line("name", noise, (0, 0, 300, 200), [Panel("GradCAM", CORNER)])
    drawn = np.asarray(Image.open(draw_panels([line], "title", tmp_path / "m.png")).convert("RGB"))
    pixels = np.asarray(noise)
    places = [
        (y, x)
        for y, x in np.argwhere((drawn == pixels[0, 0]).all(axis=-1))
        if (drawn[y : y + 200, x : x + 300] == pixels).all()
    ]
    assert len(places) == 1


@pytest.mark.parametrize("heat", [CORNER, None], ids=["with a heat map", "frames alone"])
def test_a_colour_bar_stands_beside_heat_maps_only(tmp_path, heat):
    lines = [Line("a", GREY, (0, 0, 300, 200), [Panel("a map", heat, np.ones((2, 2), dtype=bool))])]
    picture = Image.open(draw_panels(lines, "title", tmp_path / "m.png"))
    right = picture.crop((picture.width - 88, 0, picture.width, picture.height))
    assert (colours_of(right) > 50) == (heat is not None)


def test_small_images_are_enlarged_before_they_are_painted():
    line = enlarged(Line("digit", Image.new("RGB", (8, 10)), (0, 1, 8, 9), []))
    assert line.photograph.size == (224, 280)
    assert line.box == (0, 28, 224, 252)
    assert enlarged(Line("photograph", GREY, (1, 2, 3, 4), [])).box == (1, 2, 3, 4)


def test_many_panels_stay_within_4000_px(tmp_path):
    wide = Image.new("RGB", (900, 300))
    line = Line("a", wide, (300, 0, 600, 300), [Panel(f"head {head}", CORNER) for head in range(13)])
    assert 3000 < Image.open(draw_panels([line], "title", tmp_path / "m.png")).width <= 4000
