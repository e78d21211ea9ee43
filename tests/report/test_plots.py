"""Charts of comparisons: which curves are drawn, and on which axes."""

import statistics

import pytest
import yaml

from fgssl.report.compare import compare
from fgssl.report.plots import bars, curve_panels, epochs, recall_curves
from fgssl.report.runs import read_runs
from tests.report.test_compare import write_run


def panels_of(root):
    (table,), _ = compare(read_runs([str(root)])[0], ["recall@1"])
    return table, curve_panels(table)


def test_an_evaluation_alone_has_the_curve_of_the_run_that_it_evaluates(tmp_path):
    run = write_run(tmp_path / "trained", "a")
    alone = write_run(tmp_path / "evaluated", "a_embed", results={"ckpt_path": str(run / "checkpoints" / "last.ckpt")})
    facts = (alone / "results.json").read_text().replace('"epochs": 200, ', "")
    (alone / "results.json").write_text(facts)
    (alone / "metrics.csv").write_text("epoch,step,test/recall@1\n0.0,0,0.5\n")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").touch()
    for root in (tmp_path / "evaluated", tmp_path):  # the evaluation alone, and beside the run
        _, (panel,) = panels_of(root)
        assert panel.metric == "train/loss"
        assert panel.curves == {0: [{1.0: 1.5, 2.0: 0.5}]}


def test_losses_of_a_method_and_of_a_probe_have_axes_of_their_own(tmp_path):
    write_run(tmp_path, "contrastive")
    probe = write_run(tmp_path, "probe", results={"method": "Probe", "variant": None}, tau=0.7)
    (probe / "metrics.csv").write_text("epoch,step,train/loss\n0.0,4,0.3\n1.0,9,0.2\n")
    table, panels = panels_of(tmp_path)
    place = {row.runs[0].results["method"]: place for place, row in enumerate(table.rows)}
    assert [(panel.title, list(panel.curves)) for panel in panels] == [
        ("train/loss of MaskCon", [place["MaskCon"]]),
        ("train/loss of Probe", [place["Probe"]]),
    ]
    labels = [axis.get_ylabel() for axis in epochs(table).axes]
    assert labels == ["train/loss of MaskCon", "train/loss of Probe"]


def test_one_epoch_is_no_curve(tmp_path):
    run = write_run(tmp_path, "a")
    (run / "metrics.csv").write_text("epoch,step,train/loss\n0.0,4,2.0\n0.0,9,1.0\n")
    table, panels = panels_of(tmp_path)
    assert panels == []
    assert epochs(table) is None


def test_short_run_has_a_curve_of_its_steps(tmp_path):
    run = write_run(tmp_path, "a", results={"epochs": 1, "steps": 10})
    (run / "metrics.csv").write_text("epoch,step,train/loss\n0.0,4,2.0\n0.0,9,1.0\n")
    table, (panel,) = panels_of(tmp_path)
    assert panel.curves == {0: [{0.5: 2.0, 1.0: 1.0}]}
    (axis,) = epochs(table).axes
    assert axis.get_xlim()[0] < 0.5 < 1.0 < axis.get_xlim()[1] < 1.2


def test_axes_of_curves_have_no_offset(tmp_path):
    run = write_run(tmp_path, "a")
    (run / "metrics.csv").write_text("epoch,step,train/loss\n0.0,4,1000.01\n1.0,9,1000.02\n")
    figure = epochs(panels_of(tmp_path)[0])
    figure.savefig(tmp_path / "c.png")
    (axis,) = figure.axes
    assert axis.yaxis.get_offset_text().get_text() == ""
    assert pytest.approx(1000.01, abs=0.02) == float(axis.get_yticklabels()[1].get_text())


def test_recall_is_drawn_in_percent_also_where_it_is_zero(tmp_path):
    write_run(tmp_path, "a", metrics={"test/recall@1": 0.0, "test/recall@2": 0.5, "test/map": 0.1})
    figure = recall_curves(panels_of(tmp_path)[0])
    figure.savefig(tmp_path / "c.png")
    (axis,) = figure.axes
    assert axis.get_ylabel() == "Recall@K, %"
    assert {label.get_text() for label in axis.get_yticklabels()} >= {"0", "20", "40"}
    assert axis.lines[0].get_ydata().tolist() == [0.0, 0.5]


def test_rows_that_differ_in_backbone_and_epochs_have_labels_of_their_own(tmp_path):
    """Also where the names are long: each of them is on the axis of the bars and in the legend of the curves."""
    for number, epochs_of_run in enumerate((2, 2, 3)):
        run = write_run(tmp_path, f"r{number}", results={"epochs": epochs_of_run})
        name = f"vit_small_patch16_224_of_a_name_that_is_much_longer_than_others.tag_{min(number, 1)}"
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["model"]["init_args"]["backbone"]["name"] = name
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    table, _ = panels_of(tmp_path)
    assert len(table.rows) == 3
    labels = [text.get_text() for text in bars(table).axes[0].get_yticklabels()]
    assert len(set(labels)) == 3
    assert [text.get_text() for text in epochs(table).legends[0].get_texts()] == labels


def test_band_of_recall_is_the_standard_deviation_over_the_seeds(tmp_path):
    values = (0.2, 0.3, 0.7)
    for seed, value in enumerate(values):
        write_run(tmp_path, f"a{seed}", seed=seed, metrics={"test/recall@1": value, "test/recall@2": 0.8})
    (axis,) = recall_curves(panels_of(tmp_path)[0]).axes
    (band,) = axis.collections
    heights = [y for x, y in band.get_paths()[0].vertices if x == 1]
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    assert (min(heights), max(heights)) == pytest.approx((mean - spread, mean + spread))
