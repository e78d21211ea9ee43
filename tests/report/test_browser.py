"""The report: its files by hand, and its pages in a real browser."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

from fgssl.cli.main import main
from fgssl.data.datasets import ALL
from fgssl.data.index import Index
from fgssl.errors import UserError
from fgssl.evaluation.store import COLUMNS, read_embeddings, write_shard
from fgssl.report import explorer
from fgssl.report.browser import gathered, render
from fgssl.report.explorer import SHEETS, Sheet, photographs_of, tile
from fgssl.report.runs import read_runs
from tests.chromium import Chromium
from tests.report.test_compare import write_run

CLASSES, EACH = 6, 12
SIZES = [(90, 60), (60, 90), (200, 150), (300, 300)]  # of the photographs, px


def names() -> list[str]:
    return [f"{label:03d}.Black_footed_<b>bird</b>_{label}" for label in range(CLASSES)]


def photograph(row: int) -> Image.Image:
    """A photograph whose colour tells its row."""
    return Image.new("RGB", SIZES[row % len(SIZES)], colour_of(row))


def colour_of(row: int) -> tuple[int, int, int]:
    return 30 + 3 * (row % 60), 200 - 2 * (row % 70), 40 + 30 * (row // EACH)


def write_embeddings(run: Path, images: Path) -> None:
    """Embeddings of 72 photographs of six classes around their centres; the rows begin at 500."""
    rng = np.random.default_rng(0)
    fine = np.repeat(np.arange(CLASSES), EACH)
    centres = rng.normal(size=(CLASSES, 8))
    features = (centres[fine] + 0.9 * rng.normal(size=(len(fine), 8))).astype(np.float32)
    images.mkdir(exist_ok=True)
    paths = np.array([str(images / f"{row}.png") for row in range(len(fine))])
    for row, path in enumerate(paths):
        photograph(row).save(path)
    columns = {"embedding": features, "fine": fine, "coarse": fine // 2, "index": 500 + np.arange(len(fine))}
    write_shard(run / "embeddings", "test-0-00000", columns | {"paths": paths})
    about = {"dataset": "cars", "part": "test", "fine_names": names(), "coarse_names": ["big", "small", "other"]}
    (run / "embeddings" / "about.json").write_text(json.dumps(about))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """Runs, of which one has embeddings, and their report."""
    root = tmp_path_factory.mktemp("report")
    recall = {f"test/recall@{k}": 0.5 + 0.05 * place for place, k in enumerate((1, 2, 10))}
    run = write_run(root / "runs", "good", metrics=recall)
    write_run(root / "runs", "bad", metrics={"test/recall@1": 0.0512, "test/map": 0.9}, tau=0.5)
    write_run(root / "runs", "third", metrics={"test/recall@1": 0.25}, tau=0.7)
    Image.new("RGB", (40, 30), "red").save(run / "grad cam #1 50%.png")
    Image.new("RGB", (40, 30), "blue").save(run / "retrieval.jpg")
    write_embeddings(run, root / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explorer, "has_umap", lambda: False)
        assert main(["report", str(root / "runs"), "--out", str(root / "out")]) == 0
    return root / "runs" / "maskcon_cars", root / "out"


def data_of(out: Path) -> dict:
    (script,) = out.glob("explorers/*/data.js")
    return json.loads(script.read_text().removeprefix("window.FGSSL = ").removesuffix(";\n"))


def brute_force(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Cosine similarities and places of the neighbours of each image, itself left out."""
    unit = F.normalize(torch.from_numpy(read_embeddings(run).embedding).double())
    cosine = (unit @ unit.T).fill_diagonal_(-2)
    values, places = cosine.sort(dim=1, descending=True)
    return values.numpy()[:, :8], places.numpy()[:, :8]


# ---- files ----------------------------------------------------------------------------------------------------------


def test_every_reference_is_a_file_of_the_folder(made):
    _, out = made
    pages = [out / "index.html", *out.glob("explorers/*/index.html")]
    assert len(pages) == 2
    for page in pages:
        references = re.findall(r'(?:src|href)="([^"#][^"]*)"', page.read_text())
        assert len(references) >= 4
        for reference in references:
            assert reference == "data:," or (page.parent / unquote(reference)).is_file(), reference
    for file in (*pages, *(out / "assets").iterdir()):
        assert not re.search(r"https?://|//cdn|@import|fetch\(|XMLHttpRequest", file.read_text()), file


def test_tables_notes_and_pictures_are_those_of_compare_and_of_the_runs(made):
    runs, out = made
    page = (out / "index.html").read_text()
    for text in ("8,041 test images", "55.00", "5.12", "25.00", "Recall@1 50.00 %, mAP 40.00 %"):
        assert text.replace("55.00", "50.00") in page, text
    assert {path.name for path in (out / "charts").iterdir()} == {"0_bars.svg", "0_recall.svg", "0_epochs.svg"}
    shown = re.findall(r'img loading="lazy"[^>]*src="(pictures[^"]+)"', page)
    assert [Path(path).name for path in shown] == ["retrieval.jpg", "grad%20cam%20%231%2050%25.png"]
    assert f"fgssl embed --ckpt_path {runs / 'bad'}" in page  # the run without embeddings says which command makes them
    assert "<b>bird" not in page  # class names are escaped


def test_neighbours_and_labels_are_those_of_the_embeddings(made):
    runs, out = made
    data, stored = data_of(out), read_embeddings(runs / "good")
    cosine, places = brute_force(runs / "good")
    assert np.array_equal(np.reshape(data["near"], (-1, 8)), places)
    assert np.abs(np.reshape(data["cosine"], (-1, 8)) / 1000 - cosine).max() <= 0.0005 + 1e-6
    assert data["fine"] == stored.fine.tolist()
    assert data["coarse"] == stored.coarse.tolist()
    assert data["rows"] == stored.index.tolist()
    assert data["fineNames"][1] == "Black footed <b>bird</b> 1"
    confused = {tuple(pair[:2]): pair[4] for pair in data["pairs"]}
    first = list(zip(stored.fine, stored.fine[places[:, 0]], strict=True))
    assert confused == {pair: first.count(pair) for pair in set(first) if pair[0] != pair[1]}


@pytest.mark.parametrize("kind", ["small", "large"])
def test_thumbnail_of_an_image_is_at_its_place_in_the_sheets(made, kind):
    _, out = made
    side, columns = SHEETS[kind]
    (folder,) = out.glob("explorers/*")
    for row in range(CLASSES * EACH):
        sheet = np.asarray(Image.open(folder / f"{kind}-{row // columns**2}.jpg"))
        place = row % columns**2
        y, x = side * (place // columns) + side // 2, side * (place % columns) + side // 2
        assert np.abs(sheet[y, x].astype(int) - colour_of(row)).max() < 12, row


def test_sheets_are_cut_after_their_last_row(tmp_path):
    sheet = Sheet(tmp_path, "x", side=4, columns=3)
    for _ in range(13):
        sheet.add(Image.new("RGB", (4, 4), "red"))
    sheet.save()
    assert [Image.open(tmp_path / f"x-{n}.jpg").size for n in range(2)] == [(12, 12), (12, 8)]
    assert not (tmp_path / "x-2.jpg").exists()


def test_a_photograph_that_is_missing_is_grey_and_counted(made, tmp_path):
    runs, _ = made
    stored = read_embeddings(runs / "good")
    paths = stored.paths.copy()
    paths[3] = str(tmp_path / "gone.png")
    written = explorer.write_explorer(stored, photographs_of(paths, None), tmp_path / "e", points=0)
    assert (written.images, written.missing) == (72, 1)
    assert tile(photographs_of(paths, None), 3) is None


def evaluation(root: Path, name: str, dataset: str = "cars", part: str = "test") -> Path:
    """Embeddings beside the run ``a``, by a checkpoint path that is relative to some other folder."""
    results = {"ckpt_path": "runs/maskcon_cars/a/checkpoints/last.ckpt"}
    run = write_run(root, name, results=results, data={"dataset": dataset})
    write_embeddings(run, root / "images")
    about = json.loads((run / "embeddings" / "about.json").read_text()) | {"dataset": dataset, "part": part}
    (run / "embeddings" / "about.json").write_text(json.dumps(about))
    return run


def test_embeddings_of_a_run_are_those_of_its_evaluation_on_its_test_rows(tmp_path):
    run = write_run(tmp_path, "a")
    write_run(tmp_path, "ab")
    evaluation(tmp_path, "a_embed_pets", dataset="pets")
    evaluation(tmp_path, "a_embed_train", part="train")
    (shown,) = gathered(read_runs([str(run)])[0])
    assert shown.embedded is None
    right = evaluation(tmp_path, "a_embed")
    (shown,) = gathered(read_runs([str(run)])[0])
    assert shown.embedded == right
    (other,) = gathered(read_runs([str(tmp_path / "maskcon_cars" / "ab")])[0])
    assert other.embedded is None


def test_embeddings_of_another_checkpoint_are_not_those_of_the_run(tmp_path):
    run, best = write_run(tmp_path, "a"), evaluation(tmp_path, "a_embed")
    results = json.loads((best / "results.json").read_text())
    results["ckpt_path"] = str(run / "checkpoints" / "best.ckpt")
    del results["epochs"]
    (best / "results.json").write_text(json.dumps(results))
    found = {shown.run.folder.name: shown.embedded for shown in gathered(read_runs([str(tmp_path)])[0])}
    assert found == {"a": None, "a_embed": best}
    (shown,) = gathered(read_runs([str(run)])[0])
    assert shown.embedded is None


def test_images_without_labels_have_an_explorer(tmp_path, browser, monkeypatch):
    """Own images, embedded by a public network: nothing is evaluated."""
    monkeypatch.setattr(explorer, "has_umap", lambda: False)
    run = write_run(tmp_path / "runs", "a")
    results = json.loads((run / "results.json").read_text()) | {"metrics": {}}
    (run / "results.json").write_text(json.dumps(results))
    write_embeddings(run, tmp_path / "images")
    stored = read_embeddings(run)
    unknown = np.full(len(stored.index), -1)
    columns = stored._replace(fine=unknown, coarse=unknown)._asdict()
    write_shard(run / "embeddings", "test-0-00000", {name: columns[name] for name in COLUMNS})
    about = stored.about | {"fine_names": [], "coarse_names": []}
    (run / "embeddings" / "about.json").write_text(json.dumps(about))
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    browser.open(tmp_path / "out" / "explorers" / "0" / "index.html")
    browser.run("explorer.ready")
    click_on(browser, 7)
    _, places = brute_force(run)
    shown = [text.split("\n")[1] for text in shown_neighbours(browser)]
    assert shown == ["no label"] * 8
    labels = browser.run("[...document.querySelectorAll('.near .photo')].map((p) => p.getAttribute('aria-label'))")
    assert labels == [f"photograph images/{place}.png" for place in places[7]]
    assert browser.faults() == []


def test_points_limits_the_map_and_its_neighbours(made, tmp_path):
    runs, _ = made
    stored = read_embeddings(runs / "good")
    written = explorer.write_explorer(stored, photographs_of(stored.paths, None), tmp_path / "e", points=30)
    data = json.loads((tmp_path / "e" / "data.js").read_text()[len("window.FGSSL = ") : -2])
    assert written.images == len(data["fine"]) == len(set(data["rows"])) == 30
    assert max(data["near"]) < 30


def test_an_earlier_report_is_replaced_and_another_folder_is_not(tmp_path, capsys):
    write_run(tmp_path / "runs", "a")
    line = ["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert main(line) == 0
    (tmp_path / "out" / "old.txt").touch()
    assert main(line) == 0
    assert not (tmp_path / "out" / "old.txt").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert main([*line[:3], str(tmp_path / "mine")]) == 2
    assert "is no report of fgssl" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.tex").is_file()


def test_an_earlier_report_stays_until_the_new_one_is_complete(tmp_path, monkeypatch):
    write_run(tmp_path / "runs", "a")
    line = ["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert main(line) == 0
    earlier = (tmp_path / "out" / "index.html").read_text()

    def full(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fgssl.report.browser.sheets", full)
        with pytest.raises(OSError, match="no space left"):
            main(line)
    assert (tmp_path / "out" / "index.html").read_text() == earlier
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


def write_davis(root: Path, name: str) -> Path:
    """A result of ``fgssl davis`` of a public network: its configuration has no data section."""
    run = write_run(root, name, data={"dataset": "davis2017"}, results={"method": "Frozen", "epochs": None})
    results = json.loads((run / "results.json").read_text()) | {"metrics": {"test/jf_mean": 0.6}}
    (run / "results.json").write_text(json.dumps(results))
    backbone = {"class_path": "Frozen", "init_args": {"backbone": {"name": "vit_small_patch16_224"}}}
    (run / "config.yaml").write_text(yaml.safe_dump({"davis": {"topk": 5}, "model": backbone}))
    return run


def test_a_result_of_davis_stands_in_the_report(tmp_path):
    write_run(tmp_path / "runs", "a")
    davis = write_davis(tmp_path / "runs", "vit_small")
    assert main(["report", str(tmp_path / "runs"), "--metric", "jf_mean", "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "60.00" in page
    assert f"--ckpt_path {davis}" not in page


def test_embed_passes_over_tasks_and_notes_a_run_that_is_refused(tmp_path, monkeypatch):
    for name in ("refused", "embedded"):
        checkpoints = write_run(tmp_path / "runs", name, tau={"refused": 0.1, "embedded": 0.5}[name]) / "checkpoints"
        checkpoints.mkdir()
        (checkpoints / "last.ckpt").touch()
    detector = write_run(tmp_path / "runs", "detector", results={"method": "Detect", "variant": None})
    shutil.copytree(checkpoints, detector / "checkpoints")
    lines = []

    def embed(line: list[str]) -> None:
        lines.append(line)
        if "refused" in line[1]:
            raise UserError("data.dataset.root: the data are not here.")

    monkeypatch.setattr("fgssl.commands.embed.main", embed)
    assert main(["report", str(tmp_path / "runs"), "--embed", "--out", str(tmp_path / "out")]) == 0
    runs = tmp_path / "runs" / "maskcon_cars"
    assert lines == [["--ckpt_path", str(runs / name), "--run.resume", "true"] for name in ("embedded", "refused")]
    page = (tmp_path / "out" / "index.html").read_text()
    assert f"no embeddings of {runs / 'refused'}: data.dataset.root: the data are not here." in page


def digits_run(folder: Path, number: int, labels: int) -> tuple[Index, np.ndarray]:
    """A run on the digits with the embeddings of ``number`` images, of which the first ``labels`` have their label."""
    index = ALL["digits"]().index()
    run = write_run(folder, "a", data={"dataset": "digits"})
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["dataset"] = {"class_path": "fgssl.data.datasets.Digits"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    results = json.loads((run / "results.json").read_text()) | {"gallery": "evaluated"}
    (run / "results.json").write_text(json.dumps(results))
    rows = index.rows("test")[:number]
    fine = np.where(np.arange(number) < labels, index.fine[rows], -1)
    columns = {"embedding": index.pixels[rows].reshape(number, -1).astype(np.float32), "fine": fine}
    columns |= {"coarse": index.coarse[rows], "index": rows, "paths": np.asarray(index.paths)[rows]}
    write_shard(run / "embeddings", "test-0-00000", columns)
    about = {"dataset": "digits", "part": "test", "fine_names": list(index.fine_names)}
    (run / "embeddings" / "about.json").write_text(json.dumps(about | {"coarse_names": list(index.coarse_names)}))
    return index, rows


@pytest.mark.parametrize(("labels", "drawn"), [(40, [40]), (7, [7]), (1, [])])
def test_neighbours_are_drawn_of_images_with_a_label(labels, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(explorer, "has_umap", lambda: False)
    digits_run(tmp_path / "runs", 40, labels)
    found = []
    monkeypatch.setattr("fgssl.report.browser.draw_retrieval", lambda queries, *_: found.append(len(queries.fine)))
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert found == drawn


def test_neighbours_are_not_drawn_from_rows_that_are_other_images_now(tmp_path, monkeypatch):
    monkeypatch.setattr(explorer, "has_umap", lambda: False)
    monkeypatch.setattr("fgssl.report.browser.draw_retrieval", lambda *_: pytest.fail("of other images"))
    index, _ = digits_run(tmp_path / "runs", 40, labels=40)
    names = np.array([f"of another {path}" for path in index.paths])
    monkeypatch.setattr("fgssl.report.browser.read_index", lambda _: replace(index, paths=names))
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0


def test_images_in_memory_and_the_sample_sheet_come_from_the_data_set(tmp_path, monkeypatch):
    """The digits: 40 of them, with the paths that the data set gives them."""
    monkeypatch.setattr(explorer, "has_umap", lambda: False)
    index, rows = digits_run(tmp_path / "runs", 40, labels=40)
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    side = SHEETS["large"][0]
    sheet = Image.open(tmp_path / "out" / "explorers" / "0" / "large-0.jpg").crop((0, 0, side, side))
    expected = Image.fromarray(index.pixels[rows[0]]).resize((side, side), Image.Resampling.NEAREST)
    assert np.abs(np.asarray(sheet).astype(int) - np.asarray(expected)).mean() < 8
    assert Image.open(tmp_path / "out" / "data" / "digits.jpg").width > 500


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["absent"], "no folder at absent"),
        (["{runs}", "--metric", "recal@1"], "Did you mean 'recall@1'?"),
        (["{runs}", "--points", "-1"], "it must be 0 (all images) or more"),
        (["{runs}", "--outt", "x"], "Did you mean '--out'?"),
    ],
)
def test_mistakes_are_named(made, line, message, capsys):
    assert main(["report", *(word.format(runs=made[0]) for word in line)]) == 2
    assert message in capsys.readouterr().err


def test_runs_that_are_not_finished_are_named(tmp_path, capsys):
    write_run(tmp_path, "a", status="failed", results={"error": "disk full"})
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "no finished run" in said
    assert "disk full" in said


def test_unreadable_photograph_is_an_error_of_its_path(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"a\.jpg"):
        photographs_of(np.array([str(tmp_path / "a.jpg")]), None)(0)


def test_each_table_has_its_own_charts(tmp_path):
    """cifar10 has no Recall@K, cifar100 has; the name of one begins with that of the other."""
    for name, metrics in (("cifar10", {"test/top1": 0.5}), ("cifar100", {"test/recall@1": 0.5, "test/recall@2": 0.6})):
        run = write_run(tmp_path / name, "a", data={"dataset": name})
        results = json.loads((run / "results.json").read_text()) | {"metrics": metrics}
        (run / "results.json").write_text(json.dumps(results))
    assert main(["report", str(tmp_path / "cifar10"), str(tmp_path / "cifar100"), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    charts = re.findall(r'src="charts/(\d)_(\w+)\.svg" alt="[^:]*: (cifar\d+),', page)
    assert charts == [
        ("0", "bars", "cifar10"),
        ("0", "epochs", "cifar10"),
        ("1", "bars", "cifar100"),
        ("1", "recall", "cifar100"),
        ("1", "epochs", "cifar100"),
    ]


# ---- in the browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


@pytest.fixture
def explored(made, browser):
    """The explorer, open and drawn."""
    _, out = made
    (page,) = out.glob("explorers/*/index.html")
    browser.open(page)
    browser.run("explorer.ready")
    return browser


def click_on(browser: Chromium, i: int) -> None:
    """Zoom in on a point, so that no other is near, and click it."""
    browser.run(f"explorer.fit([{i}]), explorer.draw()")
    left, top = browser.run("(() => { const r = canvas.getBoundingClientRect(); return [r.left, r.top]; })()")
    x, y = browser.run(f"explorer.screen({i})")
    browser.click(left + x, top + y)


def shown_neighbours(browser: Chromium) -> list[str]:
    return browser.run("[...document.querySelectorAll('.near button')].map((b) => b.innerText)")


def choose_colour(browser: Chromium, name: str) -> None:
    browser.run(f"element('colour').value = '{name}', element('colour').onchange({{target: element('colour')}})")


def settle(browser: Chromium) -> None:
    """Wait until what was asked for is drawn."""
    browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


@pytest.mark.parametrize("page", ["index.html", "explorers/0/index.html"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_pages_fit_their_window_make_no_request_off_the_folder_and_have_no_fault(made, browser, page, dark, width):
    _, out = made
    page = next(out.glob(page.replace("/0/", "/*/")))
    browser.open(page, width=width, dark=dark, mobile=width < 500)
    if "explorers" in str(page):
        browser.run("explorer.ready")
        assert browser.run("width") > 0.6 * width  # of the map
        assert browser.run("height") > 250
    inside = out.resolve().as_uri()
    asked = [address for address in browser.requests() if address != "data:,"]
    assert len(asked) >= 3
    assert [address for address in asked if not address.startswith(inside)] == []
    assert browser.faults() == []
    assert browser.run("document.documentElement.scrollWidth") <= width
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == dark


def test_click_on_a_point_shows_its_photograph_and_its_nearest_neighbours(made, explored):
    runs, _ = made
    cosine, places = brute_force(runs / "good")
    fine = np.repeat(np.arange(CLASSES), EACH)
    for i in (0, 17, 71):
        click_on(explored, i)
        assert (
            explored.run("document.querySelector('#chosen strong').innerText") == f"Black footed <b>bird</b> {fine[i]}"
        )
        assert f"row {500 + i}: images/{i}.png" in explored.run("element('chosen').innerText")
        for text, j, value in zip(shown_neighbours(explored), places[i], cosine[i], strict=True):
            sign, similarity, name = re.fullmatch(r"(.) (\S+)\n(.*)", text).groups()
            assert (sign == "✓") == (fine[j] == fine[i])
            assert float(similarity) == pytest.approx(value, abs=0.006)
            assert name == f"Black footed <b>bird</b> {fine[j]}"
    label = explored.run("document.querySelector('.chosen .photo').getAttribute('aria-label')")
    assert label == "photograph images/71.png"
    explored.run("document.querySelector('#chosen strong').innerText = 'Black_Footed_Albatross_'.repeat(9)")
    assert explored.run("document.querySelector('aside').scrollWidth <= document.querySelector('aside').clientWidth")


def test_a_neighbour_that_is_pressed_is_selected(made, explored):
    _, places = brute_force(made[0] / "good")
    click_on(explored, 5)
    explored.run("document.querySelector('.near button').focus()")
    explored.press("Enter")
    assert explored.run("explorer.state.selected") == places[5, 0]


def drawn_at(browser: Chromium, i: int, path: Path) -> np.ndarray:
    """Colour on the screen where a point is, after a zoom to it."""
    browser.run(f"explorer.fit([{i}])")
    settle(browser)
    left, top = browser.run("(() => { const r = canvas.getBoundingClientRect(); return [r.left, r.top]; })()")
    x, y = browser.run(f"explorer.screen({i})")
    picture = np.asarray(Image.open(browser.screenshot(path)).convert("RGB"))
    return picture[round(top + y), round(left + x)].astype(int)


def test_points_show_their_photographs(explored, tmp_path):
    for i in (0, 30, 71):
        assert np.abs(drawn_at(explored, i, tmp_path / "s.png") - colour_of(i)).max() < 15


def test_points_without_photographs_are_green_where_right_and_red_where_wrong(explored, tmp_path):
    explored.run("element('photographs').click()")
    choose_colour(explored, "right")
    right = np.array(explored.run("isRight"))
    for kind in (True, False):
        for i in np.flatnonzero(right == kind)[:3]:
            red, green, _ = drawn_at(explored, i, tmp_path / "s.png")
            assert (green > red + 50) == kind
            assert (red > green + 50) != kind


def test_right_is_a_nearest_neighbour_of_the_same_class(made, explored):
    _, places = brute_force(made[0] / "good")
    fine = np.repeat(np.arange(CLASSES), EACH)
    assert explored.run("isRight") == (fine[places[:, 0]] == fine).tolist()
    right = (fine[places[:, 0]] == fine).reshape(CLASSES, EACH).sum(axis=1)
    numbers = explored.run("[...document.querySelectorAll('#classes small')].map((small) => small.innerText)")
    assert numbers == [f"{number} of {EACH} right" for number in right]
    assert len(set(right.tolist())) > 2


def test_classes_are_listed_worst_first_where_coloured_by_right_and_wrong(explored):
    def shares() -> list[int]:
        numbers = explored.run("[...document.querySelectorAll('#classes small')].map((small) => small.innerText)")
        return [int(number.split()[0]) for number in numbers]

    in_order = shares()
    assert in_order != sorted(in_order)
    choose_colour(explored, "right")
    assert shares() == sorted(in_order)


def test_two_layouts_can_be_chosen(made, browser, monkeypatch):
    """Where UMAP is installed; here its layout is the t-SNE's, turned over."""
    runs, out = made
    stored = read_embeddings(runs / "good")
    monkeypatch.setattr(explorer, "has_umap", lambda: True)
    fake = {"tsne": stored.embedding[:, :2], "umap": -stored.embedding[:, :2]}
    monkeypatch.setattr(explorer, "layout", lambda features_NF, way, seed: fake[way])
    folder = out / "explorers" / "two"
    explorer.write_explorer(stored, photographs_of(stored.paths, None), folder, points=0)
    (folder / "index.html").write_text(render("explorer.html", title="two", note=""))
    browser.open(folder / "index.html")
    browser.run("explorer.ready")
    assert browser.run("[...element('map').options].map((option) => option.value)") == ["t-SNE", "UMAP"]
    assert not browser.run("element('maps').hidden")
    before = np.array(browser.run("members[0].map(explorer.screen)"))
    browser.run("element('map').value = 'UMAP', element('map').onchange({target: element('map')})")
    after = np.array(browser.run("members[0].map(explorer.screen)"))
    centre = np.array(browser.run("[width, height]")) / 2
    np.testing.assert_allclose(after - centre, centre - before, atol=1)
    shutil.rmtree(folder)


def test_search_finds_a_class_and_zooms_to_it(explored):
    explored.run("element('search').focus()")
    explored.type("BIRD</b> 4")
    assert explored.run("[...explorer.state.lit]") == [4]
    assert explored.run("element('heading').innerText") == f"1 of {CLASSES} classes"
    explored.press("Enter")
    settle(explored)
    places = np.array(explored.run("members[4].map(explorer.screen)"))
    assert (places > 0).all()
    assert (places < explored.run("[width, height]")).all()
    explored.run("element('search').value = ''")
    explored.type("no such class")
    assert explored.run("element('classes').children.length") == 0
    explored.press("Escape")
    assert explored.run("explorer.state.lit") is None
    assert explored.run("element('classes').children.length") == CLASSES


def test_keys_move_zoom_and_select(explored):
    explored.run("canvas.focus()")
    before = explored.run("({...explorer.state.view})")
    explored.press("ArrowRight")
    explored.press("ArrowDown")
    explored.press("+")
    after = explored.run("({...explorer.state.view})")
    assert after["x"] > before["x"]
    assert after["y"] > before["y"]
    assert after["scale"] == pytest.approx(1.3 * before["scale"])
    explored.press("0")
    assert explored.run("({...explorer.state.view})") == before
    explored.press("Enter")
    chosen = explored.run("explorer.state.selected")
    assert chosen == explored.run("nearestPoint(width / 2, height / 2, Infinity)")
    explored.press("n")
    after = explored.run("explorer.state.selected")
    assert after != chosen
    assert after // EACH == chosen // EACH  # another image of its class
    explored.press("Escape")
    assert explored.run("explorer.state.selected") == -1


def test_drag_moves_and_wheel_zooms_around_the_pointer(explored):
    x, y = explored.run("explorer.screen(10)")
    explored.drag((400, 300), (460, 340))
    assert explored.run("explorer.screen(10)") == pytest.approx([x + 60, y + 40])
    assert explored.run("explorer.state.selected") == -1  # a drag is no click
    left, top = explored.run("(() => { const r = canvas.getBoundingClientRect(); return [r.left, r.top]; })()")
    x, y = explored.run("explorer.screen(10)")
    scale = explored.run("explorer.state.view.scale")
    explored.scroll(left + round(x), top + round(y), -300)
    explored.run(
        "new Promise((done) => { const look = () => explorer.state.view.scale !== "
        + str(scale)
        + " ? done() : requestAnimationFrame(look); look(); })"
    )
    assert explored.run("explorer.state.view.scale") > 1.3 * scale
    assert explored.run("explorer.screen(10)") == pytest.approx([x, y], abs=1.5)


def test_the_address_keeps_what_is_shown(explored, made):
    click_on(explored, 40)
    choose_colour(explored, "coarse")
    address = explored.run("location.href")
    explored.open(address)
    explored.run("explorer.ready")
    assert explored.run("[explorer.state.selected, explorer.state.colour, element('colour').value]") == [
        40,
        "coarse",
        "coarse",
    ]
    assert len(shown_neighbours(explored)) == 8


def test_a_table_is_sorted_by_the_column_that_is_pressed(made, browser):
    _, out = made
    browser.open(out / "index.html")

    def column(name: str) -> list[str]:
        place = "[...document.querySelectorAll('th')].findIndex((th) => th.innerText.trim().startsWith('" + name + "'))"
        return browser.run(f"[...document.querySelectorAll('tbody tr')].map((tr) => tr.cells[{place}].innerText)")

    def press(name: str) -> None:
        browser.run(f"[...document.querySelectorAll('th button')].find((b) => b.innerText === '{name}').focus()")
        browser.press("Enter")

    assert column("map") == ["40.00", "40.00", "90.00"]  # by Recall@1
    press("map")
    assert column("map") == ["90.00", "40.00", "40.00"]
    assert column("recall@1")[0] == "5.12"  # whole rows move
    press("map")
    assert column("map") == ["40.00", "40.00", "90.00"]
    press("settings")
    assert column("settings") == ["tau=0.1", "tau=0.5", "tau=0.7"]
