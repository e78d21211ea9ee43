"""Comparison of run folders: grouping, statistics, the papers' numbers, what is refused and what is named."""

import csv
import io
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fgssl.cli.main import main
from fgssl.report.compare import compare
from fgssl.report.runs import read_runs

METRICS = {"test/recall@1": 0.5, "test/recall@2": 0.6, "test/map": 0.4, "test/map@r": 0.3}


def write_run(
    root: Path, name: str, *, seed=0, metrics=None, status="finished", results=None, data=None, dataset=None, **options
) -> Path:
    """A run folder as ``fgssl fit`` leaves it; ``options`` are the model's."""
    folder = root / "maskcon_cars" / name
    folder.mkdir(parents=True)
    options = {"variant": "maskcon", "weight": 1.0, "tau": 0.1, "tau0": 0.1, "dim": 128, "memory": 8192} | options
    options = {"hidden": 512, "optim": {"name": "sgd", "lr": 0.02, "weight_decay": 5e-4}} | options
    options = {"backbone": {"name": "resnet18", "pretrained": True}} | options
    described = {"dataset": "cars", "split": "official", "val_fraction": 0.0, "label_fraction": 1.0, "label_noise": 0.0}
    described |= {"seed": 0, "flipped": 0, "flipped_hash": "e3b0c442"}
    described |= {part: {"images": 8041, "classes": 196, "rows_hash": f"{part}rows"} for part in ("train", "test")}
    said = {"method": "MaskCon", "variant": options["variant"], "dataset": "cars", "seed": seed, "status": status}
    said |= {"epochs": 200, "metrics": METRICS | (metrics or {}), "data": described | (data or {}), "processes": 1}
    (folder / "results.json").write_text(json.dumps(said | (results or {})))
    config = {
        "seed_everything": seed,
        "model": {"class_path": "fgssl.methods.MaskCon", "init_args": options},
        "data": {
            "dataset": {"class_path": "fgssl.data.datasets.Cars", "init_args": {"root": "/here"} | (dataset or {})},
            "views": {"class_path": "fgssl.data.views.PairViews", "init_args": {"recipe": "cars", "size": 224}},
            "batch_size": 128,
            "seed": seed,
        },
        "trainer": {"max_epochs": 200, "devices": "auto"},
        "run": {"root": str(root), "name": name, "paper": "maskcon, Table 6"},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.csv").write_text("epoch,step,train/loss\n0.0,4,2.0\n0.0,9,1.0\n1.0,14,0.5\n")
    return folder


def table(capsys, *arguments: str, form="csv") -> list[dict]:
    assert main(["compare", *arguments, "--format", form]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_mean_spread_and_rank_over_seeds(tmp_path, capsys):
    values = {"good": [0.8, 0.9, 0.7], "bad": [0.1, 0.3]}
    for seed, value in enumerate(values["good"]):
        write_run(tmp_path, f"good{seed}", seed=seed, metrics={"test/recall@1": value})
    for seed, value in enumerate(values["bad"]):
        write_run(tmp_path, f"bad{seed}", seed=seed, metrics={"test/recall@1": value, "test/map": 0.9}, tau=0.5)
    rows = {(row["settings"], row["metric"]): row for row in table(capsys, str(tmp_path))}
    for settings, expected in (("model.tau=0.1", values["good"]), ("model.tau=0.5", values["bad"])):
        row = rows[settings, "recall@1"]
        assert float(row["mean"]) == pytest.approx(statistics.mean(expected))
        assert float(row["std"]) == pytest.approx(statistics.stdev(expected))
        assert int(row["seeds"]) == len(expected)
    assert [rows[s, "recall@1"]["rank"] for s in ("model.tau=0.1", "model.tau=0.5")] == ["1", "2"]
    assert [rows["model.tau=0.1", m]["best"] for m in ("recall@1", "map")] == ["1", "0"]
    assert [rows["model.tau=0.5", m]["best"] for m in ("recall@1", "map")] == ["0", "1"]


@pytest.mark.parametrize(
    ("metric", "values", "shown"),
    [
        ("val/spectral_decay", (0.6479, 0.7, math.inf), "0.6479"),
        ("train/loss", (4.4811, 5.4557, math.nan), "4.4811"),
        ("train/l_i", (4.4811, 5.4557, math.nan), "4.4811"),
        ("test/mean_norm", (7.586, 0.5, math.nan), "7.5860"),
        ("test/recall@1", (0.6, 0.5, math.nan), "60.00"),
    ],
)
def test_metric_of_any_rows_is_ranked_by_its_direction_and_shown_in_its_unit(metric, values, shown, tmp_path, capsys):
    for tau, value in zip((0.1, 0.5, 0.7), values, strict=True):
        write_run(tmp_path, f"tau{tau}", tau=tau, metrics={metric: value})
    lacking = write_run(tmp_path, "lacking", tau=0.9)
    told = json.loads((lacking / "results.json").read_text())
    (lacking / "results.json").write_text(json.dumps(told | {"metrics": {"test/map": 0.9}}))
    ranks = {row["settings"]: (row["rank"], row["best"]) for row in table(capsys, str(tmp_path), "--metric", metric)}
    taus = {f"model.tau={tau}": told for tau, told in ((0.1, "1"), (0.5, "2"), (0.7, "3"), (0.9, ""))}
    assert ranks == {tau: (rank, str(int(rank == "1"))) for tau, rank in taus.items()}
    assert main(["compare", str(tmp_path), "--metric", metric, "--format", "markdown"]) == 0
    assert f"| **{shown}** |" in capsys.readouterr().out


def test_infinite_value_of_a_seed_has_no_spread_and_its_plots_are_drawn(tmp_path, capsys):
    for seed, value in enumerate((0.5, math.inf)):
        write_run(tmp_path / "runs", f"a{seed}", seed=seed, metrics={"test/spectral_decay": value})
    flags = ["--metric", "spectral_decay", "--format", "markdown", "--plots", str(tmp_path / "plots")]
    assert main(["compare", str(tmp_path / "runs"), *flags]) == 0
    assert "| **inf** |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("form", "written"),
    [("markdown", r"hidden=a\|b\\d\*^2"), ("latex", r"hidden=a|b\textbackslash{}d*\textasciicircum{}2")],
)
def test_letters_that_a_format_gives_a_meaning_are_escaped(form, written, tmp_path, capsys):
    write_run(tmp_path, "a", hidden=r"a|b\d*^2")
    write_run(tmp_path, "b")
    assert main(["compare", str(tmp_path), "--metric", "recall@1", "--format", form]) == 0
    assert written in capsys.readouterr().out


def test_the_formats_bold_the_best_and_state_the_number_of_seeds(tmp_path, capsys):
    for seed in range(2):
        write_run(tmp_path, f"a{seed}", seed=seed, metrics={"test/recall@1": 0.8 + 0.1 * seed})
    write_run(tmp_path, "b", variant="grafit", metrics={"test/recall@1": 0.2})
    main(["compare", str(tmp_path), "--format", "markdown", "--metric", "recall@1"])
    markdown = capsys.readouterr().out
    assert "| 1 | MaskCon | 2 | **85.00 ± 7.07** | 45.53 |" in markdown
    assert "| 2 | MaskCon/grafit | 1 | 20.00 | 42.30 |" in markdown
    main(["compare", str(tmp_path), "--format", "latex", "--metric", "recall@1"])
    assert r"1 & MaskCon & 2 & \textbf{85.00 $\pm$ 7.07} & 45.53 \\" in capsys.readouterr().out
    main(["compare", str(tmp_path)])
    terminal = capsys.readouterr().out
    assert "85.00 ± 7.07" in terminal
    assert "All rows: backbone resnet18, pretrained, epochs 200." in terminal


def test_brackets_of_a_setting_are_shown(tmp_path, capsys):
    """Rich's markup would hide them, or end the table."""
    for name, weights in (("a", "/data/[old]/w.pth"), ("b", "/data/[/old]/w.pth")):
        write_run(tmp_path, name, backbone={"name": "resnet18", "pretrained": False, "weights": weights})
    assert main(["compare", str(tmp_path)]) == 0
    told = "".join(capsys.readouterr().out.split())
    assert "weights=/data/[old]/w.pth" in told
    assert "weights=/data/[/old]/w.pth" in told


def test_a_metric_that_some_seeds_lack_says_how_many_have_it(tmp_path, capsys):
    for seed, metrics in enumerate([{"test/nmi": 0.4, "test/f1": 0.5}, {"test/f1": 0.6}, {}]):
        write_run(tmp_path, f"a{seed}", seed=seed, metrics=metrics)
    main(["compare", str(tmp_path), "--format", "markdown", "--metric", "recall@1", "nmi", "f1"])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| 1"))
    assert "40.00 (1 seed)** |" in row
    assert "0.5500 ± 0.0707 (2 seeds)** |" in row


def test_the_papers_number_is_the_one_of_the_named_table(tmp_path, capsys):
    run = write_run(tmp_path, "a")
    (row,) = table(capsys, str(tmp_path), "--metric", "recall@1")
    assert float(row["paper"]) == pytest.approx(0.4553)
    assert row["source"] == "MaskCon, Table 6, MaskCon: resnet18, 200 epochs, w=1, tau=0.1"
    assert row["missing"] == ""
    config = (run / "config.yaml").read_text()
    # An ablation table has several rows of a method: the one with our w and tau.
    for tau, printed in (("0.5", 0.4284), ("0.05", 0.3304), ("0.3", None)):
        changed = config.replace("Table 6", "Table 14").replace("tau: 0.1", f"tau: {tau}")
        (run / "config.yaml").write_text(changed)
        (row,) = table(capsys, str(tmp_path), "--metric", "recall@1")
        assert row["paper"] == "" if printed is None else float(row["paper"]) == pytest.approx(printed)
    assert row["missing"] == "MaskCon, Table 14, MaskCon: the row has tau 0.01, the run 0.3"
    for told, message in (
        ("Tabel 6", "MaskCon has no table, method or network 'Tabel 6'. Did you mean 'Table 6'?"),
        ("Table 6, SupCee", "Did you mean 'SupCE'?"),
    ):
        (run / "config.yaml").write_text(config.replace("Table 6", told))
        (row,) = table(capsys, str(tmp_path), "--metric", "recall@1")
        assert row["missing"].startswith(f"{run / 'config.yaml'}: run.paper: ")
        assert message in row["missing"]


def test_misspelt_paper_of_a_run_is_noted_and_the_others_have_their_numbers(tmp_path, capsys):
    write_run(tmp_path, "a")
    wrong = write_run(tmp_path, "b", variant="grafit") / "config.yaml"
    wrong.write_text(wrong.read_text().replace("maskcon, Table 6", "mascon, Table 6"))
    assert main(["compare", str(tmp_path), "--metric", "recall@1", "map", "--format", "markdown"]) == 0
    said = capsys.readouterr().out
    assert "| 50.00 | 45.53 |" in said.replace("**", "")
    assert f"No printed number beside MaskCon/grafit: {wrong}: run.paper: no paper 'mascon'. Did you mean" in said
    assert said.count("mascon") == 1
    assert "..\n" not in said


def test_a_note_below_the_table_says_why_there_is_no_printed_number(tmp_path, capsys):
    write_run(tmp_path, "short", results={"epochs": 15})
    write_run(tmp_path, "long")
    assert main(["compare", str(tmp_path), "--metric", "recall@1", "map", "--format", "markdown"]) == 0
    said = capsys.readouterr().out
    assert "paper: MaskCon, Table 6, MaskCon: resnet18, 200 epochs, w=1, tau=0.1." in said
    assert said.count("printed number") == 1
    assert "No printed number beside MaskCon: MaskCon, Table 6, MaskCon: the row has epochs 200, the run 15." in said


def test_every_published_number_is_read_and_has_its_source():
    from fgssl.report import published

    rows = published.all_rows()
    assert len(rows) == 1670
    assert all(float(row["value"]) >= 0 and row["table"] and row["paper"] in published.NAMES for row in rows)
    cited = (Path(published.__file__).parent / "published.md").read_text()
    assert all(f"| {paper} |" in cited for paper in published.NAMES)


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"test": {"images": 9, "classes": 5, "rows_hash": "other"}}},
        {"data": {"label_noise": 0.2, "flipped_hash": "0123"}},
        {"data": {"label_fraction": 0.5}},
        {"results": {"gallery": "train"}},
        {"results": {"reranking": "k-reciprocal (k1 20, k2 6, lambda 0.3)"}},
    ],
    ids=lambda change: str(next(iter(next(iter(change.values()))))),
)
def test_unlike_protocols_never_share_a_table(tmp_path, change):
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", seed=1, **change)
    runs, _ = read_runs([str(tmp_path)])
    tables, notes = compare(runs, ["recall@1"])
    assert [len(found.rows) for found in tables] == [1, 1]
    assert tables[0].title != tables[1].title
    assert notes == ["cars: 2 protocols, so 2 tables: their numbers do not compare."]


def test_a_run_whose_images_could_not_all_be_read_is_named(tmp_path):
    write_run(tmp_path, "whole", data={"unreadable": 0})
    folder = write_run(tmp_path, "part", seed=1, data={"unreadable": 1234})
    _, notes = compare(read_runs([str(tmp_path)])[0], ["recall@1"])
    assert notes == [f"{folder}: 1,234 of its images could not be read (data.on_error skip)."]


def test_coarse_labels_are_part_of_the_protocol(tmp_path):
    """CIFARtoy's good and bad groups have the same rows."""
    for name in ("good", "bad"):
        write_run(tmp_path, name, dataset={"variant": name})
    tables, _ = compare(read_runs([str(tmp_path)])[0], ["recall@1"])
    assert [found.protocol["variant"] for found in tables] == ["bad", "good"]


def test_settings_that_do_not_change_a_result_do_not_part_the_seeds(tmp_path):
    for seed in range(2):
        config = write_run(tmp_path, f"a{seed}", seed=seed) / "config.yaml"
        config.write_text(config.read_text().replace("devices: auto", f"devices: auto\n  profiler: {seed}"))
    ((row,),) = [found.rows for found in compare(read_runs([str(tmp_path)])[0], ["recall@1"])[0]]
    assert len(row.runs) == 2


def test_an_option_that_an_older_version_did_not_have_does_not_part_the_seeds(tmp_path):
    write_run(tmp_path, "old", seed=0)
    write_run(tmp_path, "new", seed=1, schedule="cosine")
    (found,), notes = compare(read_runs([str(tmp_path)])[0], ["recall@1"])
    assert [len(row.runs) for row in found.rows] == [2]
    assert "taken as equal" in notes[0]
    assert "model.schedule" in notes[0]
    write_run(tmp_path, "other network", backbone={"name": "resnet18", "options": {"layers": [1, 1, 1, 1]}})
    (found,), _ = compare(read_runs([str(tmp_path)])[0], ["recall@1"])
    assert sorted(len(row.runs) for row in found.rows) == [1, 2]


def write_evaluation(root: Path, of: Path, checkpoint: str = "last.ckpt", **options) -> Path:
    """What ``fgssl test`` or ``fgssl embed`` of a run's checkpoint leaves; newer than the run."""
    told = {"ckpt_path": str(of / "checkpoints" / checkpoint)}
    folder = write_run(root, f"{of.name}_embed", results=told, **options)
    said = json.loads((folder / "results.json").read_text())
    del said["epochs"]
    (folder / "results.json").write_text(json.dumps(said))
    (folder / "metrics.csv").unlink()
    return folder


def write_task(root: Path, name: str, task: str, variant: str | None = None, **options) -> Path:
    """A run folder of a task; ``options`` are the model's."""
    folder = write_run(root, name, results={"method": task, "variant": variant}, metrics={"test/top1": 0.5})
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"] = {"class_path": f"fgssl.tasks.{task}", "init_args": options}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_probe_has_its_own_row_and_unites_no_others(tmp_path):
    run = write_run(tmp_path, "a", variant="SupCE")
    write_run(tmp_path, "b", variant="SupCE", tau=0.5)
    write_task(tmp_path, "a_probe", "Probe", "SupCE", init_from=str(run))
    runs, _ = read_runs([str(tmp_path)])
    (table,), notes = compare(runs, ["top1", "recall@1"])
    assert sorted(row.label for row in table.rows) == ["Probe/SupCE", "SupCE tau=0.1", "SupCE tau=0.5"]
    assert not notes


def test_a_task_on_a_run_and_one_on_a_file_are_two_rows(tmp_path):
    run, network = write_run(tmp_path, "a"), {"name": "resnet18", "pretrained": False}
    write_task(tmp_path, "ours", "Finetune", init_from=str(run), backbone=network)
    write_task(tmp_path, "file", "Finetune", init_from=None, backbone=network | {"weights": "moco.pth"})
    runs, _ = read_runs([str(tmp_path)])
    (table,), notes = compare(runs, ["top1"])
    rows = sorted(row.label for row in table.rows if row.method == "Finetune")
    assert rows == ["Finetune start=MaskCon", "Finetune start=None"]
    assert not notes


def test_a_run_stands_before_an_evaluation_of_it(tmp_path):
    """``fgssl embed`` of a run once took the run's row, and with it its curve over the epochs."""
    run = write_run(tmp_path, "run", seed=3)
    evaluated = write_evaluation(tmp_path, run, metrics={"test/recall@1": 0.1, "test/box_knn_top1": 0.7})
    runs, _ = read_runs([str(tmp_path)])
    assert [(run.folder.name, run.seed, run.epochs) for run in runs] == [("run", 3, 200), ("run_embed", 3, 200)]
    (found,), notes = compare(runs, ["recall@1", "box_knn_top1"])
    ((kept,),) = [row.runs for row in found.rows]
    assert kept.folder == run
    assert kept.history()
    assert notes == [f"left out: {evaluated}: it evaluates {run}, which stands here itself."]
    assert [found.rows[0].cells[name].mean for name in ("recall@1", "box_knn_top1")] == [0.5, 0.7]  # what run lacks


@pytest.mark.parametrize("alone", [True, False])
def test_a_metric_of_an_evaluation_comes_with_the_callbacks_that_measured_it(alone, tmp_path):
    """The k of ``BoxKNN`` is a condition of the printed number."""
    written = write_evaluation(tmp_path, write_run(tmp_path, "run"), metrics={"test/box_knn_top1": 0.7})
    config = yaml.safe_load((written / "config.yaml").read_text())
    callback = {"class_path": "fgssl.callbacks.box_knn.BoxKNN", "init_args": {"k": 20}}
    config["trainer"]["callbacks"] = callback if alone else [callback]
    (written / "config.yaml").write_text(yaml.safe_dump(config))
    (found,), _ = compare(read_runs([str(tmp_path)])[0], ["recall@1", "box_knn_top1"])
    (kept,) = found.rows[0].runs
    assert kept.config["trainer.callbacks"] == ("BoxKNN" if alone else [callback])
    assert kept.config.get("trainer.callbacks.k") == (20 if alone else None)


def test_another_checkpoint_of_a_run_lends_it_no_metric_and_has_a_row_of_its_own(tmp_path):
    """Its weights are those of another epoch: two seeds once had a mean over the best epoch and the last one."""
    fit = write_run(tmp_path, "run")
    write_evaluation(tmp_path, fit, "best.ckpt", metrics={"test/recall@1": 0.9, "test/box_knn_top1": 0.7})
    write_evaluation(tmp_path, write_run(tmp_path / "fits", "run1", seed=1), metrics={"test/recall@1": 0.7})
    (found,), notes = compare(read_runs([str(tmp_path / "maskcon_cars")])[0], ["recall@1", "box_knn_top1"])
    told = {row.label: [cell.values for cell in row.cells.values()] for row in found.rows}
    assert told == {
        "MaskCon checkpoint=best.ckpt": [(0.9,), (0.7,)],
        "MaskCon checkpoint=last.ckpt": [(0.5, 0.7), ()],
    }
    assert not notes
    assert [bool(row.cells["recall@1"].printed) for row in found.rows] == [False, True]


def test_checkpoints_whose_runs_are_gone_are_no_seeds_of_each_other(tmp_path):
    for number, value in enumerate((0.4, 0.6)):
        gone = tmp_path / f"gone{number}" / "checkpoints" / "last.ckpt"
        write_evaluation(tmp_path, tmp_path / f"gone{number}", metrics={"test/recall@1": value})
        assert not gone.exists()
    (found,), notes = compare(read_runs([str(tmp_path)])[0], ["recall@1"])
    assert sorted(row.cells["recall@1"].values for row in found.rows) == [(0.4,), (0.6,)]
    assert not notes


def test_a_probe_of_another_checkpoint_is_another_row(tmp_path):
    run = write_run(tmp_path / "fits", "run")
    for name, place in (
        ("last", run),
        ("same", run / "checkpoints/last.ckpt"),
        ("best", run / "checkpoints/best.ckpt"),
    ):
        write_task(tmp_path, name, "Probe", init_from=str(place))
    (found,), _ = compare(read_runs([str(tmp_path / "maskcon_cars")])[0], ["top1"])
    assert [row.label for row in found.rows] == ["Probe checkpoint=best.ckpt", "Probe checkpoint=last.ckpt"]


def change_config(folder: Path, section: str, **options) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config.setdefault(section, {}).update(options)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def test_an_option_of_a_class_that_other_runs_do_not_use_parts_the_rows(tmp_path):
    """A run with other views once made two values of alpha one row, of which the newer run was left."""
    for name, kind, options in (
        ("pairs", "PairViews", {}),
        ("alpha1", "ContrastiveCrop", {"alpha": 0.1}),
        ("alpha6", "ContrastiveCrop", {"alpha": 0.6}),
    ):
        views = {"class_path": f"fgssl.data.views.{kind}", "init_args": {"recipe": "cars", "size": 224} | options}
        change_config(write_run(tmp_path, name), "data", views=views)
    (found,), notes = compare(read_runs([str(tmp_path)])[0], ["recall@1"])
    crops = [f"MaskCon views=ContrastiveCrop alpha={alpha}" for alpha in (0.1, 0.6)]
    assert [row.label for row in found.rows] == [*crops, "MaskCon views=PairViews"]
    assert not notes


@pytest.mark.parametrize(
    ("metric", "section", "values"),
    [
        ("nmi", "retrieval", [{"clusters": 50}, {"clusters": None}]),
        (
            "box_knn_top1",
            "trainer",
            [{"callbacks": [{"class_path": "BoxKNN", "init_args": {"k": k}}]} for k in (9, 20)],
        ),
        ("knn_top1", "trainer", [{"callbacks": {"class_path": "OnlineKNN", "init_args": {"k": k}}} for k in (9, 20)]),
        ("recall@1", "trainer", [{"callbacks": None}, {"callbacks": [{"class_path": "lightning.WeightAveraging"}]}]),
    ],
)
def test_what_is_measured_or_trained_otherwise_is_another_row(metric, section, values, tmp_path):
    """Each once was taken for a run with the same settings and seed, of which the newest was shown."""
    for seed, options in enumerate(values):
        change_config(write_run(tmp_path, f"a{seed}", metrics={f"test/{metric}": 0.5 + seed / 10}), section, **options)
    (found,), notes = compare(read_runs([str(tmp_path)])[0], [metric])
    assert [row.cells[metric].values for row in found.rows] == [(0.6,), (0.5,)]
    assert not notes


def test_a_callback_of_ours_that_one_seed_lacks_does_not_part_the_seeds(tmp_path):
    write_run(tmp_path, "a0", seed=0)
    for seed in (1, 2):
        callbacks = [{"class_path": "fgssl.callbacks.box_knn.BoxKNN", "init_args": {"k": 20, "every_n_epochs": seed}}]
        change_config(write_run(tmp_path, f"a{seed}", seed=seed), "trainer", callbacks=callbacks)
    (found,), notes = compare(read_runs([str(tmp_path)])[0], ["recall@1"])
    assert [len(row.runs) for row in found.rows] == [3]
    assert not notes


@pytest.mark.parametrize("absolute_root", [False, True])
@pytest.mark.parametrize("place", ["below", "inside", "copied", "moved", "renamed"])
def test_table_is_the_same_wherever_the_folder_of_runs_is_and_is_read_from(
    place, absolute_root, tmp_path, monkeypatch, capsys
):
    """The paths of checkpoints in it are relative to the folder in which the commands were given."""
    monkeypatch.chdir(tmp_path)
    runs = Path("runs")
    for seed in range(2):
        run = write_run(runs, f"a{seed}", seed=seed, metrics={"test/recall@1": 0.5 + 0.1 * seed})
        written = [write_evaluation(runs, run, metrics={"test/box_knn_top1": 0.7})]
        written.append(write_task(runs, f"a{seed}_probe", "Probe", init_from=str(run)))
        for folder in [run, *written]:
            told, config = json.loads((folder / "results.json").read_text()), (folder / "config.yaml").read_text()
            told |= {"seed": seed, "experiment": "maskcon_cars", "run": folder.name}
            (folder / "results.json").write_text(json.dumps(told))
            if absolute_root:  # as fgssl embed and probe write it
                (folder / "config.yaml").write_text(config.replace("root: runs", f"root: {tmp_path / 'runs'}"))

    def rows(*paths: str) -> list[dict]:
        told = table(capsys, *paths, "--metric", "recall@1", "top1", "box_knn_top1")
        return [{name: value for name, value in row.items() if name != "runs"} for row in told]

    expected, given = rows("runs"), "runs"
    assert [(row["method"], row["metric"], row["seeds"]) for row in expected if row["mean"]] == [
        ("MaskCon", "recall@1", "2"),
        ("MaskCon", "box_knn_top1", "2"),
        ("Probe", "recall@1", "2"),
        ("Probe", "top1", "2"),
    ]
    if place == "below":
        monkeypatch.chdir(tmp_path / "runs" / "maskcon_cars")
        given = "."
    elif place == "inside":
        monkeypatch.chdir(tmp_path / "runs")
        given = "maskcon_cars"
    elif place == "copied":  # the runs that the paths name are there still
        shutil.copytree("runs", "copy", copy_function=shutil.copy2)
        given = "copy"
    elif place == "moved":
        shutil.move("runs", tmp_path / "elsewhere")
        given = "elsewhere"
    else:
        shutil.move("runs/maskcon_cars", "runs/old")
    assert rows(given) == expected


@pytest.mark.parametrize("start", ["runs/another/a", "runs/maskcon_cars/a_probe", "a"])
def test_run_of_the_same_name_is_not_the_start_of_a_probe(start, tmp_path):
    """Of another experiment, the probe itself in another folder of runs, and of an unknown experiment."""
    write_run(tmp_path, "a")
    write_task(tmp_path, "a_probe", "Probe", init_from=start)
    probe = next(run for run in read_runs([str(tmp_path)])[0] if run.folder.name == "a_probe")
    assert probe.start is None


def test_a_seed_counts_once(tmp_path):
    first, second = (write_run(tmp_path, name, seed=3) for name in ("first", "second"))
    (found,), notes = compare(read_runs([str(tmp_path)])[0], ["recall@1"])
    assert [run.folder.name for row in found.rows for run in row.runs] == ["second"]  # the newer one
    assert notes == [f"left out: {first}: {second} is newer and has the same settings and seed."]


def test_the_newer_run_of_a_seed_is_the_one_that_began_later_not_the_one_that_was_copied_later(tmp_path):
    times = {"first": "2026-11-24T09:00:00.000+00:00", "second": "2026-11-23T09:00:00.000+00:00"}
    for name, began in times.items():
        write_run(tmp_path, name, seed=3, results={"began": began})
    (found,), _ = compare(read_runs([str(tmp_path)])[0], ["recall@1"])
    assert [run.folder.name for row in found.rows for run in row.runs] == ["first"]


def test_broken_and_unfinished_runs_are_named(tmp_path, capsys):
    write_run(tmp_path, "sound")
    (write_run(tmp_path, "cut") / "results.json").write_text('{"method": "Mask')
    (write_run(tmp_path, "gone") / "results.json").unlink()
    (write_run(tmp_path, "nocfg") / "config.yaml").unlink()
    write_run(tmp_path, "running", status="running", results={"epochs": 7})
    lost = write_run(tmp_path, "lost", status="running", results={"epochs": 8})
    os.utime(lost / "results.json", (0, time.time() - 3600))
    write_run(tmp_path, "failed", status="failed", results={"error": "RuntimeError: out of memory"})
    write_run(tmp_path, "old", results={"data": {}})
    assert main(["compare", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for name, words in {
        "cut": "broken, results.json cannot be read",
        "gone": "broken, no results.json",
        "nocfg": "broken, config.yaml cannot be read",
        "running": "running after 7 epochs",
        "lost": "lost after 8 epochs (its process was killed or aborted without a message, or the machine stopped)",
        "failed": "failed after 200 epochs (RuntimeError: out of memory)",
        "old": "does not say which rows were trained on and evaluated",
    }.items():
        assert f"{name}: {words}" in said or (name in said and words in said)
    assert said.count("left out:") == 7


def test_a_run_of_images_without_labels_is_left_out_and_named(tmp_path, capsys):
    run = write_run(tmp_path, "a")
    results = json.loads((run / "results.json").read_text()) | {"metrics": {"train/loss": 1.0}}
    (run / "results.json").write_text(json.dumps(results))
    for others in ([], [write_run(tmp_path / "others", "b")]):
        assert main(["compare", str(run), *map(str, others)]) == 0
        assert f"{run}: nothing was evaluated" in capsys.readouterr().out.replace("\n", " ")


def test_mistakes(tmp_path, capsys):
    write_run(tmp_path, "a")
    for arguments, message in (
        ([str(tmp_path), "--metric", "recal@1"], "Did you mean 'recall@1'?"),
        ([str(tmp_path), "--format", "latx"], "Did you mean 'latex'?"),
        ([str(tmp_path), "--metrc", "map"], "Did you mean '--metric'?"),
        ([str(tmp_path / "absent")], "no folder at"),
        ([], "required: runs"),
    ):
        assert main(["compare", *arguments]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["compare", str(tmp_path / "empty")]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_pictures(tmp_path, capsys):
    for seed in range(2):
        write_run(tmp_path / "runs", f"a{seed}", seed=seed)
    write_run(tmp_path / "runs", "b", variant="grafit")
    assert main(["compare", str(tmp_path / "runs"), "--plots", str(tmp_path / "plots")]) == 0
    drawn = sorted((tmp_path / "plots").iterdir())
    assert [path.name for path in drawn] == ["cars_bars.png", "cars_epochs.png", "cars_recall.png"]
    assert all(path.stat().st_size > 5000 for path in drawn)


def test_curves_are_means_within_an_epoch(tmp_path):
    write_run(tmp_path, "a")
    ((run,), _) = read_runs([str(tmp_path)])
    assert run.history() == {"train/loss": [(1.0, 1.5), (2.0, 0.5)]}


def test_compare_does_not_load_torch(tmp_path):
    """Which would take longer than reading a hundred runs."""
    write_run(tmp_path, "a")
    code = (
        "import sys; from fgssl.cli.main import main;"
        f"main(['compare', {str(tmp_path)!r}, '--plots', {str(tmp_path)!r}]);"
        "assert not {'torch', 'lightning', 'wandb'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr


# ---- time of an epoch -----------------------------------------------------------------------------------------------

GPU = {"cpus": 8, "gpus": ["NVIDIA V100"]}


def timed(seconds: float, epochs: int = 150, hardware: dict | None = None, **more) -> dict:
    """``results.json`` of a run of which all epochs but one were timed."""
    times = {"train_s": seconds * (epochs - 1), "timed_epochs": epochs - 1, "epochs": epochs}
    return times | {"hardware": hardware or GPU} | more


def test_extra_time_is_over_the_baseline_of_the_same_machine(tmp_path, capsys):
    for seed, seconds in enumerate((10.0, 12.0)):
        write_run(tmp_path, f"supce{seed}", seed=seed, variant="supce", results=timed(seconds))
    write_run(tmp_path, "slow", seed=2, variant="supce", results=timed(40.0, hardware={"cpus": 8, "gpus": []}))
    write_run(tmp_path, "here", seed=0, results=timed(13.2))
    write_run(tmp_path, "there", seed=1, results=timed(60.0, hardware={"cpus": 8, "gpus": []}))
    write_run(tmp_path, "elsewhere", variant="grafit", results=timed(13.2, processes=2))
    write_run(tmp_path, "unknown", variant="coins")
    rows = {(row["method"], row["metric"]): row for row in table(capsys, str(tmp_path), "--baseline", "MaskCon/supce")}
    assert float(rows["MaskCon/supce", "seconds_an_epoch"]["mean"]) == pytest.approx((10 + 12 + 40) / 3)
    assert rows["MaskCon/supce", "extra_time"]["mean"] == ""
    assert float(rows["MaskCon", "extra_time"]["mean"]) == pytest.approx((0.2 + 0.5) / 2)
    assert rows["MaskCon", "extra_time"]["seeds"] == "2"
    assert float(rows["MaskCon/grafit", "seconds_an_epoch"]["mean"]) == pytest.approx(13.2)
    assert rows["MaskCon/grafit", "extra_time"]["mean"] == rows["MaskCon/coins", "seconds_an_epoch"]["mean"] == ""
    main(["compare", str(tmp_path), "--baseline", "MaskCon/supce", "--metric", "recall@1"])
    said = capsys.readouterr().out
    assert "20.7 ± 16.8" in said
    assert "35.00 ± 21.21" in said
    main(["compare", str(tmp_path), "--baseline", "SupCE"])
    assert "cars: no extra time, since no row is SupCE. Rows: MaskCon" in capsys.readouterr().out


def test_table_says_what_extra_time_is_and_which_data_set_has_none(tmp_path, capsys):
    write_run(tmp_path, "baseline", variant="supce", results=timed(10.0))
    write_run(tmp_path, "ours", results=timed(12.0))
    write_run(tmp_path, "elsewhere", data={"dataset": "cub"}, results=timed(12.0))
    main(["compare", str(tmp_path), "--baseline", "MaskCon/supce"])
    said = capsys.readouterr().out
    assert "extra_time: % by which a training epoch takes longer than one of the baseline" in said
    assert "cub: no extra time, since no row is MaskCon/supce. Rows: MaskCon." in said


def test_data_set_without_any_of_the_metrics_has_no_table(tmp_path, capsys):
    write_run(tmp_path, "probe", results={"metrics": {"test/top1": 0.5}})
    write_run(tmp_path, "other", data={"dataset": "cub"})
    write_run(tmp_path, "another", data={"dataset": "cub", "split": "zero_shot"})
    assert main(["compare", str(tmp_path), "--metric", "top1"]) == 0
    said = capsys.readouterr().out
    assert said.count("test images") == 1
    assert said.count("left out: runs on cub that have none of top1.") == 1


def test_title_and_footnotes_name_no_empty_facts(tmp_path, capsys):
    limited = write_run(tmp_path, "limited")
    config = yaml.safe_load((limited / "config.yaml").read_text())
    config["trainer"]["limit_test_batches"] = 3
    (limited / "config.yaml").write_text(yaml.safe_dump(config))
    write_run(tmp_path, "frozen", results={"epochs": None})
    main(["compare", str(tmp_path)])
    said = capsys.readouterr().out
    assert "limit_test_batches 3" in said
    assert "no limit_test_batches" in said
    assert "None" not in said
    assert "epochs -" not in said


def test_time_of_a_trained_teacher_counts(tmp_path, capsys):
    """OBD-SD's Table 5: BAR takes 105.3 % longer, of which 100 % are the teacher's own training."""
    teacher = write_run(tmp_path, "teacher", variant="supce", results=timed(10.0, epochs=100))
    distillation = {"checkpoint": str(teacher / "checkpoints" / "last.ckpt")}
    student = write_run(tmp_path, "student", distillation=distillation, results=timed(11.0, epochs=200))
    run = read_runs([str(student)])[0][0]
    assert run.seconds_an_epoch == pytest.approx(11 + 10 * 100 / 200)
    rows = {(row["method"], row["metric"]): row for row in table(capsys, str(tmp_path), "--baseline", "MaskCon/supce")}
    assert float(rows["MaskCon", "extra_time"]["mean"]) == pytest.approx(0.6)
    told = json.loads((teacher / "results.json").read_text())
    (teacher / "results.json").write_text(json.dumps(told | {"hardware": {"cpus": 99, "gpus": []}}))
    assert read_runs([str(student)])[0][0].seconds_an_epoch is None  # the teacher's time is one of another machine
    (teacher / "results.json").unlink()
    assert read_runs([str(student)])[0][0].seconds_an_epoch is None


def test_printed_extra_time_stands_beside_ours(tmp_path):
    from fgssl.report.published import published
    from tests.printed import Runs, changed

    run = Runs(tmp_path).add("obd_sd", changed("obd_sd_cub"))
    assert published(run, "extra_time").value == pytest.approx(0.174)
    bar = Runs(tmp_path).add("bar", changed("obd_sd_cub", "obd_sd_ablations/table5_bar"))
    assert published(bar, "extra_time").value == pytest.approx(1.053)
