"""``fgssl data list`` and ``fgssl data check``: what they print and with which status they end."""

from collections import Counter

import numpy as np
import pytest
from jsonargparse._parameter_resolvers import get_signature_parameters
from matplotlib.figure import Figure
from PIL import Image

from fgssl.commands.data import _parser, main
from fgssl.data.datasets import ALL
from fgssl.data.datasets.cub import family
from fgssl.data.index import Index
from fgssl.data.sheet import GAP, LABEL_WIDTH, TILE, write_sheet
from fgssl.errors import UserError
from tests import trees


def test_list_names_every_data_set(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ALL)
    assert all(word in out for word in ("5,994 train", "cars_annos.mat", "tanganke/stanford_cars"))


def test_sound_copy(tmp_path, capsys):
    trees.make_cub(tmp_path / "cub")
    sheet = tmp_path / "sheet.png"
    assert main(["check", "cub", "--root", str(tmp_path / "cub"), "--partial", "--sheet", str(sheet)]) == 0
    out = capsys.readouterr().out
    assert "warning: cub" in out  # the counts are not the published ones
    assert "24 images" in out
    assert "3 / 3 / 3" in out  # fewest, median, most images a class
    assert "classes by number of images: 6: 4" in out
    assert "all images readable" in out
    assert Image.open(sheet).size[0] > 8 * 96


def test_names_in_a_sheet_have_the_letters_of_other_languages_and_end_before_the_images(tmp_path):
    fine, pixels = np.arange(3), np.full((3, 8, 8, 3), 255, np.uint8)
    index = Index("own", np.array(list("abc")), fine, ("Äö", "Öä", "x" * 200), np.full(3, "test"), pixels=pixels)
    write_sheet(index, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    first, second, third = np.split(sheet[:, :LABEL_WIDTH], 3)
    assert (first < 128).any()
    assert (first != second).any()  # one box stood for each letter that is not English
    assert len(sheet) == 3 * (TILE + GAP)
    assert (third < 128).any(axis=(1, 2)).sum() > 20  # several lines
    assert (sheet[:, LABEL_WIDTH:] == 255).all()


def test_chart_shows_the_sizes_of_the_classes_and_of_the_coarse_ones(tmp_path, capsys, monkeypatch):
    from fgssl.report import distributions

    drawn = []
    monkeypatch.setattr(distributions, "Figure", lambda *a, **k: drawn.append(Figure(*a, **k)) or drawn[-1])
    trees.make_cub(tmp_path / "cub")
    chart = tmp_path / "chart.png"
    command = ["check", "cub", "--root", str(tmp_path / "cub"), "--partial", "--no-duplicates", "--chart", str(chart)]
    assert main(command) == 0
    names = [line for line in (tmp_path / "cub" / "classes.txt").read_text().split() if "." in line]
    families = Counter(family(name) for name in names)
    said = capsys.readouterr().out
    assert all(f"{name}: {count}" in said.split("classes by coarse class")[1] for name, count in families.items())
    sizes, coarse = drawn[0].axes
    assert [bar.get_height() for bar in sizes.patches] == [4]  # four classes of 6 images
    assert sorted(bar.get_width() for bar in coarse.patches) == sorted(families.values())
    for ruler in (sizes.xaxis, sizes.yaxis, coarse.xaxis):
        assert all(place == round(place) for place in ruler.get_majorticklocs()), ruler
    assert chart.stat().st_size > 5000


def test_images_without_a_label_are_of_no_class(tmp_path, capsys):
    rows = ("a,A,train", "b,A,train", ",B,train", "b,,train", "c,B,test", ",,val")
    for number in range(len(rows)):
        trees.write_image(tmp_path / f"{number}.jpg", seed=number)
    lines = ("path,label,coarse,part", *(f"{number}.jpg,{row}" for number, row in enumerate(rows)))
    trees.write_lines(tmp_path / "list.csv", lines)
    assert main(["check", "folder", "--root", str(tmp_path / "list.csv"), "--no-duplicates"]) == 0
    out = capsys.readouterr().out
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert {part: (images, classes, coarse) for part, images, _, classes, coarse, _ in table} == {
        "train": ("4", "2", "2"), "val": ("1", "0", "0"), "test": ("1", "1", "1"),
    }  # fmt: skip
    assert "classes by coarse class: A: 2, B: 1\n" in out
    assert "images without a label: 2\n" in out
    assert "part alone" not in out  # no class is in both parts, as of SOP


def test_classes_of_one_part_alone_are_named(tmp_path, capsys):
    for seed, name in enumerate(("train/cat", "train/dog", "train/Emu", "test/cat", "test/dog", "test/emu")):
        trees.write_image(tmp_path / name / "1.jpg", seed)
    assert main(["check", "folder", "--root", str(tmp_path), "--no-duplicates"]) == 0
    out = capsys.readouterr().out
    assert "classes in the train part alone: 1: Emu\nclasses in the test part alone: 1: emu\n" in out
    assert "without a label" not in out


def test_missing_and_truncated_images_are_named(tmp_path, capsys):
    trees.make_cub(tmp_path)
    absent, truncated = sorted(tmp_path.glob("images/*/*.jpg"))[:2]
    absent.unlink()
    truncated.write_bytes(truncated.read_bytes()[:-100])
    sheet = tmp_path / "sheet.png"
    assert main(["check", "cub", "--root", str(tmp_path), "--partial", "--sheet", str(sheet)]) == 1
    out = capsys.readouterr().out
    assert f"fault: image not found: {absent}" in out
    assert f"fault: unreadable image: {truncated}" in out
    assert "2 of 24 images missing or unreadable" in out
    assert sheet.exists()


def test_missing_data_set_is_a_fault(tmp_path, capsys):
    assert main(["check", "cars", "--root", str(tmp_path / "nowhere")]) == 1
    assert "cars_test_annos_withlabels.mat" in capsys.readouterr().out


def test_differing_counts_are_a_fault_unless_partial(tmp_path, capsys):
    trees.make_pets(tmp_path)
    assert main(["check", "pets", "--root", str(tmp_path)]) == 1
    assert "9 train images, published 3,680" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cifartoy", ["--variant", "bad_code", "--partial"]),
        ("aircraft", ["--coarse", "manufacturer", "--no-trainval", "--partial"]),
        ("dtd", ["--partition", "2", "--partial"]),
        ("voc2007", ["--partial"]),
        ("coco", ["--partial"]),
        ("folder", []),
    ],
)
def test_options_of_the_constructors(name, options, tmp_path):
    make = trees.make_cifar10 if name == "cifartoy" else getattr(trees, f"make_{name}")
    make(tmp_path / name)
    sheet = str(tmp_path / "sheet.png")
    assert main(["check", name, "--root", str(tmp_path / name), "--sheet", sheet, *options]) == 0


@pytest.mark.parametrize("option", ["--coarse_map", "--coarse-map"])
def test_options_are_spelt_with_underscore_or_hyphen(option, tmp_path, capsys):
    trees.make_folder(tmp_path / "folder")
    assert main(["check", "folder", "--root", str(tmp_path / "folder"), option, str(tmp_path / "none.csv")]) == 1
    assert "none.csv" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["CUB", "Cub", "cub"])
def test_name_of_a_data_set_in_any_case(name, tmp_path, capsys):
    assert main(["check", name, "--root", str(tmp_path)]) == 1
    assert "fault: cub" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["check", "cubb"], "Did you mean 'cub'? See fgssl data check --help."),
        (["chekc", "cub"], "Did you mean 'check'? See fgssl data --help."),
        (["check", "aircraft", "--coars", "family"], "Did you mean '--coarse'?"),
        (["check", "folder", "--test_fraction", "abc"], "--test-fraction: invalid float value: 'abc'"),
        (["check", "aircraft", "--coarse", "famly"], "Did you mean 'family'? See fgssl data check aircraft --help."),
    ],
)
def test_mistake_is_one_line_with_the_nearest_name(arguments, hint):
    with pytest.raises(UserError) as mistake:
        main(arguments)
    assert hint in str(mistake.value)
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize("name", ALL)
def test_options_have_the_type_of_their_defaults(name):
    """An option given as the text of its default is the default; others are of text."""
    for option in get_signature_parameters(ALL[name], None):
        value = option.default
        flag = f"--{'' if value else 'no-'}{option.name}" if isinstance(value, bool) else f"--{option.name}={value}"
        read = getattr(_parser().parse_args(["check", name, flag]), option.name)
        assert read == value or (value is None and read == "None"), option.name
        assert type(read) is type(value) or value is None, option.name


def test_share_of_test_images(tmp_path, capsys):
    for number in range(5):
        trees.write_image(tmp_path / "bird" / f"{number}.png", number)
    assert main(["check", "folder", "--root", str(tmp_path), "--test_fraction", "0.4"]) == 0
    assert " 2 " in next(line for line in capsys.readouterr().out.splitlines() if "│ test " in line)


@pytest.mark.parametrize("name", ALL)
def test_help_of_a_data_set_shows_its_docstring(name, capsys):
    with pytest.raises(SystemExit):
        main(["check", name, "--help"])
    said = " ".join(capsys.readouterr().out.replace("`", "").split())
    own = {"huggingface": "configuration of the data set", "digits": "usage"}
    assert own.get(name, "null: $FGSSL_DATA") in said
