"""The pages have the numbers of the committed runs; tables, differences and figures of ``tests/results.py``."""

import csv
import json
import re
import statistics
from functools import reduce
from pathlib import Path

import pytest
import yaml

from fgssl.cli.main import main
from fgssl.commands.sweep_file import read_sweep
from fgssl.errors import UserError
from tests import results
from tests.results import (
    PAGES,
    ROOT,
    Place,
    collect,
    commands_of,
    digest,
    faults,
    filled,
    interval,
    points_of,
    printed,
    rows_of,
)

PLACE = Place()

# ---- what is committed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_tables_of_the_pages_are_those_of_the_files(page):
    text = (ROOT / page).read_text()
    assert filled(text, PLACE, page) == text, "python -m tests.results"


def test_figures_of_the_page_are_up_to_date_and_small():
    for name, figure in PLACE.spec()["figures"].items():
        points = points_of(figure, PLACE)
        if points:
            file = PLACE.figures / f"results_{name}.svg"
            assert digest(points) in file.read_text(), "python -m tests.results"
            assert file.stat().st_size < results.LARGEST


def test_every_committed_run_is_finished_traceable_and_names_no_path():
    names = [f"{folder.parent.name}/{folder.name}" for folder in PLACE.runs()]
    found = {name: faults(PLACE.results / name, name, PLACE) for name in names}
    assert not {name: told for name, told in found.items() if told}


def test_every_committed_run_is_text_and_small():
    for folder in PLACE.runs():
        assert {file.name for file in folder.iterdir()} <= {"results.json", "config.yaml", "metrics.csv"}
        assert sum(file.stat().st_size for file in folder.iterdir()) < 50_000


def test_the_plan_has_the_command_of_every_sweep():
    experiments = PLACE.sweeps.parents[1]
    plans = [experiments / folder / "README.md" for folder in ("evidence", "rivals")]
    named = set(re.findall(r"fgssl sweep experiments/evidence/sweeps/(\w+).yaml", "".join(map(Path.read_text, plans))))
    assert named == {file.stem for file in PLACE.sweeps.glob("*.yaml")}


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(PLACE.sweeps.glob("*.yaml")), ids=lambda file: file.stem)
def test_sweep_parses_as_it_did_when_it_ran(file, monkeypatch, capsys):
    """The first cell; the header has the command."""
    assert f"fgssl sweep experiments/evidence/sweeps/{file.name}" in file.read_text()
    monkeypatch.chdir(ROOT)
    command = next(iter(commands_of(file.stem, file.parent).values()))
    with pytest.raises(SystemExit) as stop:
        main([*command[1:], "--print_config"])
    assert stop.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    for option, value in read_sweep(file).cells()[0].items():
        if option.startswith("model."):
            *places, name = option.removeprefix("model.").split(".")
            assert reduce(dict.__getitem__, places, config["model"]["init_args"])[name] == value


# ---- a small sweep --------------------------------------------------------------------------------------------------

SWEEP = """\
method: grid
parameters:
  model.variant: {values: [old, new]}
  seed_everything: {values: [0, 1, 2]}
command: [fgssl, fit, --config, mine.yaml, "${args}"]
"""
TABLES = {
    "tables": {
        "mine": {
            "rows": {
                "Old": {"cells": "mine/variantold_*", "paper": {"row": "obd_sd, Table 1, MS", "dataset": "cub"}},
                "New": "mine/variantnew_*",
            },
            "metrics": {"Recall@1": "recall@1", "decay": "spectral_decay", "probe": "probe:top1"},
            "contrasts": ["New - Old"],
        },
        "all": {"sweep": "mine", "metrics": {"Recall@1": "recall@1"}},
    },
    "figures": {"mine": {"table": "mine", "title": "Mine", "metrics": {"NMI": "test_each_epoch/nmi"}}},
}
DATA = {"dataset": "cub", "split": "official", "seed": 0, "train": {"images": 4, "rows_hash": "a"}} | {
    part: {"images": 2, "rows_hash": "b"} for part in ("val", "test")
}


@pytest.fixture
def place(tmp_path) -> Place:
    place = Place(tmp_path / "sweeps", tmp_path / "results", tmp_path / "figures")
    for folder in place:
        folder.mkdir()
    (place.sweeps / "mine.yaml").write_text(SWEEP)
    (place.results / "tables.yaml").write_text(yaml.safe_dump(TABLES, sort_keys=False))
    return place


def run(place: Place, variant: str, seed: int, recall: float, **changed):
    """A finished run in ``runs/sweep_mine/``."""
    cell = f"variant{variant}_seed_everything{seed}"
    folder = place.sweeps.parent / "runs" / "sweep_mine" / cell
    folder.mkdir(parents=True)
    command = (
        "fgssl fit --config mine.yaml --run.root runs --run.experiment sweep_mine "
        f"--run.name {cell} --run.resume true --model.variant={variant} --seed_everything={seed} --weights w.pt"
    )
    told = {"command": command, "seed": seed, "epochs": 9, "method": "MLS", "status": "finished", "duration_s": 1800.0}
    told |= {"versions": {"torch": "2"}, "hardware": {"cpus": 1}, "data": DATA}
    told |= {"metrics": {"test/recall@1": recall, "test/spectral_decay": recall / 2}}
    (folder / "results.json").write_text(json.dumps(told | changed))
    config = {"seed_everything": seed, "model": {"class_path": "MLS", "init_args": {"variant": variant}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [["", 0, 0.9, 0.1], [0, 1, 0.5, ""], [0, 3, 0.7, 0.25], [4, 9, 0.1, recall]]
    with (folder / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["epoch", "step", "train/loss", "test_each_epoch/nmi"], *rows])
    return folder


def collected(place: Place) -> list[str]:
    return collect(place.sweeps.parent / "runs", place)[1]


def table(place: Place, name: str = "mine") -> list[list[str]]:
    """The cells of a table, and of the differences below it."""
    text = results.text_of_table(place.spec()["tables"][name], place)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]


def test_table_has_mean_spread_seeds_paper_seconds_and_paired_differences(place):
    for seed, (old, new) in enumerate([(0.50, 0.53), (0.60, 0.61), (0.55, 0.57)]):
        run(place, "old", seed, old)
        run(place, "new", seed, new)
    assert not collected(place)
    heading, _, old, new, differences, _, row = table(place)
    assert heading == ["", "seeds", "Recall@1, %", "paper", "decay", "probe, %", "s a run"]
    assert old == ["Old", "3", "55.00 ± 5.00", "63.10", "**0.2750 ± 0.0250**", "-", "1800"]
    assert new == ["New", "3", "**57.00 ± 4.00**", "-", "0.2850 ± 0.0200", "-", "1800"]
    # 3, 1 and 2 points: mean 2, sd 1; t of 2 degrees 4.303, over the root of 3: 2.484
    assert differences == ["difference", "pairs", "Recall@1, %", "decay", "probe, %"]
    assert row == ["New - Old", "3", "+2.00 [-0.48, +4.48]", "+0.0100 [-0.0024, +0.0224]", "not run"]
    assert "6 of 6 runs, 3.0 hours: `experiments/evidence/sweeps/mine.yaml`." in results.text_of_table(
        place.spec()["tables"]["mine"], place
    )


def test_interval_is_that_of_student_and_none_for_one_pair():
    low, high = interval([3.0, 1.0, 2.0])
    assert (low, high) == pytest.approx((2 - 2.4841377, 2 + 2.4841377))
    assert interval([1.0]) is None


def test_differences_are_paired_by_seed_and_bold_where_zero_is_outside(place):
    for seed, old in enumerate([0.50, 0.60, 0.55]):
        run(place, "old", seed, old)
    for seed in (1, 2):  # the run of seed 0 has not finished
        run(place, "new", seed, [0, 0.641, 0.590][seed])
    collected(place)
    *_, row = table(place)
    assert row[1] == "2"
    assert row[2] == f"**+{100 * statistics.fmean([0.041, 0.040]):.2f} [+3.41, +4.69]**"
    assert table(place)[3][1] == "2 of 3"


def test_rows_without_runs_are_not_run(place):
    assert results.text_of_table(place.spec()["tables"]["mine"], place) == "Not run yet."
    assert results.text_of_figure("mine", place.spec()["figures"]["mine"], place) == "Not run yet."
    run(place, "old", 0, 0.5)
    collected(place)
    assert table(place)[3] == ["New", "0", *["not run"] * 5]
    assert table(place)[-1] == ["New - Old", "0", *["not run"] * 3]


def test_sweep_gives_each_configuration_a_row(place):
    run(place, "new", 1, 0.5)
    collected(place)
    assert [row[:3] for row in table(place, "all")[2:]] == [
        ["variant old", "0", "not run"],
        ["variant new", "1 of 3", "50.00"],
    ]


def test_labels_of_a_row_are_a_column(place):
    run(place, "old", 0, 0.5)
    collected(place)
    rows = {"Old": {"cells": "mine/variantold_*", "labels": "none"}, "New": "mine/variantnew_*"}
    text = results.text_of_table({"rows": rows, "metrics": {"Recall@1": "recall@1"}}, place).splitlines()
    assert text[0] == "|  | labels | seeds | Recall@1, % | s a run |"
    assert text[2:4] == ["| Old | none | 1 of 3 | 50.00 | 1800 |", "| New | - | 0 | not run | not run |"]


def test_metric_of_an_evaluation_beside_the_run(place):
    folder = run(place, "old", 0, 0.5)
    evaluated = json.loads((folder / "results.json").read_text()) | {"metrics": {"test/top1": 0.75}}
    del evaluated["epochs"]
    evaluated["command"] = "fgssl probe --ckpt_path runs/sweep_mine/variantold_seed_everything0"
    probe = folder.with_name(f"{folder.name}_probe")
    probe.mkdir()
    (probe / "results.json").write_text(json.dumps(evaluated))
    (probe / "config.yaml").write_text("model: Probe\n")
    assert not collected(place)
    assert table(place)[2] == ["Old", "1 of 3", "50.00", "63.10", "0.2500", "75.00", "1800"]


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"status": "running"}, "its status is running"),
        ({"versions": None}, "results.json has no versions"),
        ({"epochs": None}, "results.json has no epochs"),
        ({"command": "fgssl fit --config mine.yaml --model.variant=old"}, "mine.yaml has other options now"),
        ({"ckpt_path": "/somewhere/last.ckpt"}, "it names the path /somewhere/last.ckpt"),
        ({"note": "weights=/data/w.pt here"}, "it names the path /data/w.pt"),
        ({"note": "~/w.pt"}, "it names the path ~/w.pt"),
    ],
)
def test_run_that_is_unfinished_or_cannot_be_traced_is_left_out(place, changed, told):
    run(place, "old", 0, 0.5, **changed)
    (message,) = collected(place)
    assert told in message
    assert "variantold_seed_everything0" in message
    assert not place.runs()


def test_run_of_no_cell_or_no_sweep_is_left_out(place):
    run(place, "other", 0, 0.5)
    assert "mine.yaml has no such cell" in collected(place)[0]
    (place.sweeps / "mine.yaml").unlink()
    assert "there is no sweep file mine.yaml" in collected(place)[0]


@pytest.mark.parametrize("text", ["https://github.com/a/b", "experiments/a.yaml", "n/a", "runs/sweep_a/b", "1 / 2"])
def test_address_and_relative_path_are_no_absolute_path(text):
    assert not results.ABSOLUTE.findall(f'{{"note": "{text}"}}')
    assert not results.ABSOLUTE.findall(f"note: {text}\n")


def test_row_that_mixes_configurations_is_refused(place):
    run(place, "old", 0, 0.5)
    config = {"seed_everything": 1, "model": {"class_path": "MLS", "init_args": {"variant": "old", "lr": 3}}}
    (run(place, "old", 1, 0.5) / "config.yaml").write_text(yaml.safe_dump(config))
    collected(place)
    with pytest.raises(UserError, match=r"differ in model\.lr"):
        table(place)


def test_row_of_cells_that_the_sweep_does_not_have_is_refused(place):
    with pytest.raises(UserError, match="mine.yaml has no cell variantodl_"):
        rows_of({"rows": {"Old": "mine/variantodl_*"}}, place)


@pytest.mark.parametrize(
    "other",
    [
        {"data": DATA | {"test": {"images": 2, "rows_hash": "c"}}},
        {"data": DATA | {"train": {"images": 2, "rows_hash": "c"}}},
        {"gallery": "train"},
    ],
)
def test_table_of_runs_on_different_images_is_refused(other, place):
    run(place, "old", 0, 0.5)
    run(place, "new", 0, 0.5, **other)
    collected(place)
    with pytest.raises(UserError, match="evaluated on different images"):
        table(place)


def test_papers_number_that_is_not_the_only_one_is_refused():
    psd = {"row": "obd_sd, Table 3, MS+PSD", "dataset": "cub"}
    with pytest.raises(UserError, match=r"62\.9, 63\.5"):
        printed(psd, "recall@1")
    assert printed(psd | {"dynamic_weight": "yes"}, "recall@1") == "63.5"


def test_page_and_list_of_tables_must_agree(place):
    with pytest.raises(UserError, match="all"):
        filled("<!-- table: mine -->\n<!-- end -->\n<!-- figure: mine -->\n<!-- end -->\n", place)


def test_table_of_another_page_is_not_asked_of_this_one(place):
    spec = {"tables": {"all": TABLES["tables"]["all"] | {"page": "README.md"}}, "figures": {}}
    (place.results / "tables.yaml").write_text(yaml.safe_dump(spec))
    marked = "<!-- table: all -->\n\nNot run yet.\n\n<!-- end -->\n"
    assert filled("Nothing.\n", place) == "Nothing.\n"
    assert filled(marked, place, "README.md") == marked
    with pytest.raises(UserError, match=r"docs/results\.md"):
        filled(marked, place)


# ---- curves ---------------------------------------------------------------------------------------------------------


def test_curves_that_a_figure_shows_are_kept_one_line_an_epoch(place):
    run(place, "old", 0, 0.5)
    collected(place)
    (folder,) = place.runs()
    assert (folder / "metrics.csv").read_text() == "epoch,step,test_each_epoch/nmi\n0,3,0.25\n4,9,0.5\n"
    figure = place.spec()["figures"]["mine"]
    assert points_of(figure, place) == {"NMI": {"Old": [{1.0: 0.25, 5.0: 0.5}]}}


def test_ranking_has_the_best_row_on_top_and_a_value_a_seed(place):
    for seed, (old, new) in enumerate([(0.50, 0.53), (0.60, 0.61)]):
        run(place, "old", seed, old)
        run(place, "new", seed, new)
    collected(place)
    figure = {"table": "mine", "ranking": "recall@1", "title": "Mine"}
    points = points_of(figure, place)
    assert list(points.items()) == [
        ("New", {"labels": None, "values": [0.53, 0.61]}),
        ("Old", {"labels": None, "values": [0.50, 0.60]}),
    ]
    file = place.figures / "ranking.svg"
    results.draw(points, figure, file)
    text = file.read_text()
    assert digest(points) in text
    assert ">Recall@1, %<" in text
    assert text.index(">New<") < text.index(">Old<")
    assert results.text_of_figure("ranking", figure, place).endswith("Points: seeds; bars: their mean.")


def test_figure_is_a_small_svg_that_is_the_same_when_drawn_again(place):
    for seed in (0, 1):
        run(place, "old", seed, 0.5 + seed / 10)
    collected(place)
    figure = place.spec()["figures"]["mine"]
    files = [place.figures / name for name in ("one.svg", "two.svg")]
    for file in files:
        results.draw(points_of(figure, place), figure, file)
    one, two = (file.read_text() for file in files)
    assert one == two
    assert digest(points_of(figure, place)) in one
    assert len(one) < results.LARGEST
    assert ">NMI, %<" in one
    assert str(ROOT) not in one
