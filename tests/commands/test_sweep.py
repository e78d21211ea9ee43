"""Sweeps on this machine: the grid, what is skipped, what is refused, the picture."""

import json
import math
import shlex
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml

from fgssl.callbacks.shards import Shards
from fgssl.cli.compose import compose
from fgssl.cli.main import main
from fgssl.commands import sweep as sweeps
from fgssl.commands.sweep_file import Step, Sweep, command, read_sweep
from fgssl.commands.sweep_report import cell_means, numbers_of, report
from fgssl.errors import UserError
from fgssl.evaluation.store import read_embeddings
from fgssl.report.published import rows_named
from fgssl.report.runs import flatten
from tests.cli.test_cli import SMALL, results
from tests.methods.runs import PATIENCE
from tests.report.test_compare import write_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))
DIGITS = ROOT / "experiments" / "sweeps" / "maskcon_digits.yaml"


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """Run cells in this process, which is faster; returns the names of the cells that ran."""
    names: list[str] = []

    def run_cell(arguments, log, device):
        names.append(log.stem)
        monkeypatch.setattr("sys.argv", ["fgssl", *arguments])  # what results.json records as the command
        return main(list(arguments))

    monkeypatch.setattr(sweeps, "run_cell", run_cell)
    return names


def grid(tmp_path: Path, **parameters) -> Path:
    """A sweep file over the digits."""
    content = yaml.safe_load(DIGITS.read_text()) | {"parameters": {k: {"values": v} for k, v in parameters.items()}}
    content["command"][3] = str(ROOT / "experiments" / "maskcon_digits.yaml")
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run(path: Path, tmp_path: Path, *flags: str) -> int:
    return main(["sweep", str(path), "--runs", str(tmp_path), *SMALL, "--trainer.max_steps", "1", *flags])


def test_finished_cells_are_skipped_and_the_grid_is_drawn(tmp_path, started, capsys):
    path = grid(tmp_path, **{"model.weight": [0.5, 1.0], "model.tau": [0.1, 0.5]})
    assert run(path, tmp_path) == 0
    cells = ["weight0.5_tau0.1", "weight0.5_tau0.5", "weight1.0_tau0.1", "weight1.0_tau0.5"]
    assert started == cells
    folder = tmp_path / "sweep_grid"
    for cell in cells:
        config = yaml.safe_load((folder / cell / "config.yaml").read_text())["model"]["init_args"]
        assert f"weight{config['weight']}_tau{config['tau']}" == cell
        assert results(folder / cell)["status"] == "finished"
    assert (folder / "heatmap.png").stat().st_size > 5000  # two options

    path = grid(tmp_path, **{"model.weight": [0.5, 1.0], "model.tau": [0.1, 0.5, 0.7]})
    capsys.readouterr()
    assert run(path, tmp_path) == 0
    assert started[4:] == ["weight0.5_tau0.7", "weight1.0_tau0.7"]
    assert "6 cells" in (said := capsys.readouterr().out)
    assert "4 already finished" in said

    # The same folder with other options: no number of another training may enter the grid.
    assert run(path, tmp_path, "--model.dim", "8") == 2
    assert "was started with other options" in capsys.readouterr().err
    assert len(started) == 6


ADVISED = "fgssl fit --ckpt_path runs/sweep_grid/tau0.1"


@pytest.mark.parametrize(
    ("command", "resumed_by", "taken"),
    [
        ("fgssl fit --tau 0.1", [ADVISED, "fgssl fit --tau 0.1"], True),
        ("fgssl fit --tau 0.1", [ADVISED, f"{ADVISED} --tau 0.5", ADVISED], False),
        ("fgssl fit --tau '{a: 1}'", ["fgssl fit --tau {a: 1}"], True),  # the latter of a version that quoted nothing
        ("fgssl fit --tau 0.1", ["fgssl fit --ckpt_path 'my runs/a b'", "fgssl fit --tau 0.1"], True),
        ("fgssl fit --tau 0.1", ["fgssl fit --ckpt_path 'my runs/a b' --tau 0.5"], False),
        (ADVISED, [], False),  # of a version that kept the last command alone: nobody knows the first one's options
    ],
)
def test_cell_that_was_continued_as_it_advises_is_the_sweeps(command, resumed_by, taken, tmp_path):
    content = {"status": "finished", "command": command, "resumed_by": resumed_by}
    (tmp_path / "results.json").write_text(json.dumps(content))
    if taken:
        assert sweeps.is_finished(tmp_path, shlex.split(command)[1:])
    else:
        with pytest.raises(UserError, match="was started with other options"):
            sweeps.is_finished(tmp_path, ["fit", "--tau", "0.1"])


def test_cells_that_choose_on_held_out_rows_are_finished_without_a_test(tmp_path, started):
    path = grid(tmp_path, **{"config": [str(ROOT / "experiments" / "maskcon_baselines" / "selfcon.yaml")]})
    flags = ("--data.protocol.val_fraction", "0.2", "--trainer.limit_test_batches", "0")
    assert run(path, tmp_path, *flags) == 0
    assert started == ["selfcon"]
    measured = results(tmp_path / "sweep_grid" / "selfcon")
    assert measured["status"] == "finished"
    assert "test/recall@1" not in measured["metrics"]
    assert run(path, tmp_path, *flags) == 0
    assert started == ["selfcon"]


def test_a_cells_value_is_the_mean_over_seeds():
    sweep = Sweep("s", [], {"model.tau": [0.1, 0.5], "seed_everything": [0, 1]}, "test/map")
    found = {"tau0.1_seed_everything0": 0.2, "tau0.1_seed_everything1": 0.4, "tau0.5_seed_everything1": 0.7}
    means = cell_means(sweep, found, ["", "model.tau"], [""], [0.1, 0.5])
    assert np.allclose(means, [[0.3, 0.7]])
    means = cell_means(sweep, {}, ["", "model.tau"], [""], [0.1, 0.5])
    assert np.isnan(means).all()


def test_a_failed_cell_is_named_with_the_end_of_its_log_and_the_others_run(tmp_path, monkeypatch, capsys):
    def run_cell(arguments, log, device):
        log.parent.mkdir(exist_ok=True, parents=True)
        log.write_text("\n".join(f"line {n}" for n in range(20)) + "\n\nfgssl: the disk is full.\n")
        return 1 if "weight0.5" in log.stem else 0

    monkeypatch.setattr(sweeps, "run_cell", run_cell)
    monkeypatch.setattr(sweeps, "report", lambda *_: None)
    assert run(grid(tmp_path, **{"model.weight": [0.5, 1.0]}), tmp_path) == 1
    said = capsys.readouterr()
    assert "weight1.0: finished" in said.out
    log = tmp_path / "sweep_grid" / "logs" / "weight0.5.txt"
    shown = said.err.splitlines()
    assert shown[0] == f"failed: weight0.5; the last lines of {log}:"
    assert shown[1:] == [*(f"    line {n}" for n in range(13, 20)), "    fgssl: the disk is full."]


@pytest.mark.parametrize(("begins", "cells"), [(False, 1), (True, 4)], ids=["misspelt option", "loss not finite"])
def test_a_first_cell_that_is_refused_before_it_begins_ends_the_sweep(begins, cells, tmp_path, monkeypatch, capsys):
    tried = []

    def run_cell(arguments, log, device):
        log.parent.mkdir(exist_ok=True, parents=True)
        log.write_text("fgssl: no option trainer.max_epoch. Did you mean trainer.max_epochs?\n")
        if begins:
            (tmp_path / "sweep_grid" / log.stem).mkdir()
            (tmp_path / "sweep_grid" / log.stem / "results.json").write_text("{}")
        tried.append(log.stem)
        return 2

    monkeypatch.setattr(sweeps, "run_cell", run_cell)
    assert run(grid(tmp_path, **{"model.weight": [0.2, 0.5, 0.8, 1.0]}), tmp_path) == (1 if begins else 2)
    assert len(tried) == cells
    assert capsys.readouterr().err.count("Did you mean trainer.max_epochs?") == cells


def test_where_every_cell_fails_their_reasons_are_shown(tmp_path, monkeypatch, capsys):
    def run_cell(arguments, log, device):
        log.parent.mkdir(exist_ok=True, parents=True)
        log.write_text("fgssl: the disk is full.\n")
        return 1

    monkeypatch.setattr(sweeps, "run_cell", run_cell)
    assert run(grid(tmp_path, **{"model.weight": [0.5, 1.0]}), tmp_path) == 1
    assert capsys.readouterr().err.count("    fgssl: the disk is full.") == 2


def test_ctrl_c_starts_no_further_cell(tmp_path, monkeypatch, capsys):
    begun = []

    def run_cell(arguments, log, device):
        begun.append(log.stem)
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "run_cell", run_cell)
    assert run(grid(tmp_path, **{"model.weight": [0.2, 0.5, 0.8, 1.0]}), tmp_path) == 130
    assert "The same command goes on with the sweep" in capsys.readouterr().out
    assert len(begun) < 4


@pytest.mark.parametrize("moment", ["start", "wait"])
def test_sigterm_ends_the_running_cell_and_starts_no_further_one(moment, tmp_path, monkeypatch, capsys):
    begun = []

    class Cell:
        """A process that runs until it is told to end; SIGTERM comes when it has been started or is waited for."""

        def __init__(self, line, **_):
            begun.append(line)
            self.told = threading.Event()
            self.send("start")

        def send(self, now):
            if now == moment:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

        def terminate(self):
            self.told.set()

        def wait(self):
            self.send("wait")
            assert self.told.wait(PATIENCE)
            return 128 + signal.SIGTERM

    monkeypatch.setattr(sweeps.subprocess, "Popen", Cell)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        run(grid(tmp_path, **{"model.weight": [0.2, 0.5, 0.8, 1.0]}), tmp_path)
    assert stop.value.code == 143
    assert len(begun) == 1
    assert "SIGTERM: no further cell is started. The same command goes on" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_cell_is_a_process_of_its_own_on_its_device(tmp_path):
    assert sweeps.run_cell(["fit", "--model", "Nothing"], tmp_path / "logs" / "cell.txt", "3") == 2
    assert "no data set is named" in (tmp_path / "logs" / "cell.txt").read_text()


def test_gpus_run_a_cell_each_at_a_time(tmp_path, monkeypatch):
    busy: set = set()
    seen = []

    def run_cell(arguments, log, device):
        assert device not in busy
        busy.add(device)
        seen.append(device)
        busy.remove(device)
        return 0

    monkeypatch.setattr(sweeps, "run_cell", run_cell)
    assert sweeps.run_cells({str(n): [] for n in range(20)}, tmp_path, ["0", "1"]) == []
    assert len(seen) == 20
    assert set(seen) <= {"0", "1"}


@pytest.mark.parametrize(("metric", "frames"), [("val/recall@1", 1), ("test/recall@1", 0)])
def test_only_a_validation_metric_marks_the_best_cell_of_a_heat_map(metric, frames, tmp_path, monkeypatch, capsys):
    axes = {"model.weight": [0.5, 1.0], "model.tau": [0.0, math.inf]}
    for weight, tau, value in ((0.5, 0.0, 0.4), (0.5, math.inf, 0.6), (1.0, 0.0, 0.5)):
        metrics = {"test/recall@1": value, "val/recall@1": value}
        write_run(tmp_path, f"weight{weight}_tau{tau}", weight=weight, tau=tau, metrics=metrics)
    (axis, _) = drawn(monkeypatch, "heat_map", Sweep("s", [], axes, metric), tmp_path).axes
    assert len(axis.patches) == frames
    assert [text.get_text() for text in axis.texts] == ["40.00", "60.00", "50.00", "-"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.0", "inf"]


@pytest.mark.parametrize(("metric", "best"), [("val/spectral_decay", "0.6479"), ("val/recall@1", "70.00")])
def test_best_cell_of_a_sweep_is_that_of_the_metrics_direction(metric, best, tmp_path, monkeypatch):
    values = {"val/spectral_decay": (0.7, math.inf, 0.6479), "val/recall@1": (0.7, 0.2, 0.6)}[metric]
    cells = [(0.5, 0.1), (0.5, 0.5), (1.0, 0.1)]
    for (weight, tau), value in zip(cells, values, strict=True):
        write_run(tmp_path, f"weight{weight}_tau{tau}", weight=weight, tau=tau, metrics={metric: value})
    for tau, value in zip((0.3, 0.5, 0.7), values, strict=True):
        write_run(tmp_path, f"tau{tau}", weight=0.2, tau=tau, metrics={metric: value})
    sweep = Sweep("s", [], {"model.weight": [0.5, 1.0], "model.tau": [0.1, 0.5]}, metric)
    (axis, _) = drawn(monkeypatch, "heat_map", sweep, tmp_path).axes
    assert [text.get_text() for text in axis.texts if text.get_fontweight() == "bold"] == [best]
    (axis,) = drawn(monkeypatch, "curve", Sweep("s", [], {"model.tau": [0.3, 0.5, 0.7]}, metric), tmp_path).axes
    (circle,) = [line for line in axis.get_lines() if line.get_markersize() == 12]
    assert circle.get_xdata() == [0 if metric == "val/recall@1" else 2]


def drawn(monkeypatch, kind: str, sweep: Sweep, root: Path):
    """The last picture of a kind that the report of a sweep draws."""
    from fgssl.report import plots

    figures, draw = [], getattr(plots, kind)
    monkeypatch.setattr(plots, kind, lambda *a, **k: figures.append(draw(*a, **k)) or figures[-1])
    report(sweep, root / "maskcon_cars")
    return figures[-1]


@pytest.mark.parametrize(("metric", "circles"), [("val/recall@1", 1), ("test/recall@1", 0)])
def test_one_option_is_a_curve_in_the_order_of_its_values_beside_the_paper(metric, circles, tmp_path, monkeypatch):
    for tau, value in ((0.5, 0.6), (0.01, 0.3), (0.1, 0.4)):
        metrics = {"test/recall@1": value, "val/recall@1": value}
        write_run(tmp_path, f"tau{tau}", tau=tau, metrics=metrics)
    (axis,) = drawn(monkeypatch, "curve", Sweep("s", [], {"model.tau": [0.5, 0.01, 0.1]}, metric), tmp_path).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.01", "0.1", "0.5"]
    lines = {line.get_label(): line.get_ydata() for line in axis.get_lines()}
    assert list(lines["ours"]) == [0.3, 0.4, 0.6]
    assert len([line for line in axis.get_lines() if line.get_markersize() == 12]) == circles
    if metric == "test/recall@1":  # Table 6 has tau 0.1; it has no number of held-out rows
        assert np.allclose(lines["paper"], [np.nan, 0.4553, np.nan], equal_nan=True)


def test_picture_of_what_follows_is_of_the_mean_over_its_seeds(tmp_path, monkeypatch):
    steps = {f"probe_seed{seed}": Step("probe", [], "top1") for seed in (0, 1)}
    for tau, values in ((0.1, (0.2, 0.4)), (0.5, (0.8,))):
        write_run(tmp_path, f"tau{tau}", tau=tau)
        for seed, value in enumerate(values):
            write_run(tmp_path, f"tau{tau}_probe_seed{seed}", tau=tau, seed=seed, metrics={"test/top1": value})
    sweep = Sweep("s", [], {"model.tau": [0.1, 0.5]}, "recall@1", steps)
    (axis,) = drawn(monkeypatch, "curve", sweep, tmp_path).axes
    assert np.allclose(axis.get_lines()[0].get_ydata(), [0.3, 0.8])
    assert {path.name for path in (tmp_path / "maskcon_cars").glob("*.png")} == {"curve.png", "curve_probe.png"}


def test_axis_is_numeric_by_its_values_or_by_the_ends_of_its_files_names():
    assert numbers_of([2, 4, 12]) == [2, 4, 12]
    assert numbers_of([0.001, 1e-06, math.inf])[:2] == []  # infinity has no place on an axis
    assert numbers_of(["a/fig5_size_2.yaml", "a/fig5_size_16.yaml"]) == [2, 16]
    assert numbers_of(["a/lambda_0.001", "a/lambda_0.01.yaml"]) == [0.001, 0.01]
    assert numbers_of(["a/size_2.yaml", "a/crops_4.yaml"]) == []
    assert numbers_of(["grafit", "coins"]) == []


# ---- what follows each fit -------------------------------------------------------------------------------------------


def chain(tmp_path: Path) -> Path:
    """A grid of two fits, each followed by a probe."""
    path = grid(tmp_path, **{"model.weight": [0.5, 1.0]})
    content = yaml.safe_load(path.read_text())
    probe = ["fgssl", "probe", "--ckpt_path", "${run}", "--augment", "false", "--trainer.max_epochs", "1", *PROBE]
    content["then"] = {"probe": {"command": probe, "shows": "top1"}}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


PROBE = ["--data.batch_size", "16", "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


def test_probe_follows_each_fit_resumes_and_has_a_picture_of_its_own(tmp_path, started, capsys):
    path = chain(tmp_path)
    assert run(path, tmp_path) == 0
    assert started == ["weight0.5", "weight1.0", "weight0.5_probe", "weight1.0_probe"]
    folder = tmp_path / "sweep_grid"
    config = yaml.safe_load((folder / "weight1.0_probe" / "config.yaml").read_text())
    assert config["model"]["init_args"]["init_from"] == str(folder / "weight1.0")
    assert results(folder / "weight1.0_probe")["metrics"]["test/top1"] > 0
    assert (folder / "curve_probe.png").stat().st_size > 5000
    shutil.rmtree(folder / "weight1.0_probe")  # as if it had not begun
    capsys.readouterr()
    assert run(path, tmp_path) == 0
    assert started[4:] == ["weight1.0_probe"]
    assert "4 cells" in (said := capsys.readouterr().out)
    assert "3 already finished" in said


def test_embedding_that_was_killed_is_written_anew(tmp_path, started, monkeypatch):
    path = grid(tmp_path, **{"model.weight": [0.5]})
    embed = ["fgssl", "embed", "--ckpt_path", "${run}", "--rows", "100", "--retrieval.grid", "0", *PROBE]
    path.write_text(path.read_text() + yaml.safe_dump({"then": {"embed": {"command": embed}}}))
    folder, killed = tmp_path / "sweep_grid" / "weight0.5_embed", tmp_path / "killed"
    end = Shards.on_test_epoch_end
    with monkeypatch.context() as patch:
        patch.setattr(Shards, "on_test_epoch_end", lambda *args: (shutil.copytree(folder, killed), end(*args)))
        assert run(path, tmp_path) == 0
    assert {row for shard in killed.rglob("*.npz") for row in np.load(shard)["index"]} < set(
        read_embeddings(folder).index
    )
    shutil.rmtree(folder)
    killed.rename(folder)  # what is there at the last batch, were the process killed then
    (folder / "embeddings" / "test-1-00000.npz").write_bytes(b"of a process that is not there the second time")
    assert run(path, tmp_path) == 0
    assert started == ["weight0.5", "weight0.5_embed", "weight0.5_embed"]
    assert results(folder)["status"] == "finished"
    assert len(read_embeddings(folder).index) == 450
    assert run(path, tmp_path) == 0
    assert len(started) == 3


def test_what_follows_a_failed_fit_is_not_begun(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(
        sweeps, "run_cell", lambda arguments, log, device: begun.append(log.stem) or int(log.stem == "weight0.5")
    )
    monkeypatch.setattr(sweeps, "report", lambda *_: None)
    assert run(chain(tmp_path), tmp_path) == 1
    assert begun == ["weight0.5", "weight1.0", "weight1.0_probe"]


def test_cell_that_follows_an_unfinished_fit_is_refused(tmp_path, capsys):
    assert main(["sweep", str(chain(tmp_path)), "--runs", str(tmp_path), "--cell", "3"]) == 2
    assert (
        f"--cell 3 follows {tmp_path}/sweep_grid/weight1.0, which has not finished: --cell 1" in capsys.readouterr().err
    )


def test_seeds_of_what_follows_are_cells_of_their_own(tmp_path, capsys):
    path = chain(tmp_path)
    content = yaml.safe_load(path.read_text())
    content["then"]["probe"]["seeds"] = 2
    path.write_text(yaml.safe_dump(content))
    assert main(["sweep", str(path), "--runs", str(tmp_path), "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 2 + 2 * 2
    assert "--seed_everything 1" in lines[3]
    assert "weight0.5_probe_seed1 --run.resume true" in lines[3]
    path.write_text(yaml.safe_dump(content | {"then": {"probe": content["then"]["probe"] | {"seeds": "two"}}}))
    assert main(["sweep", str(path)]) == 2
    assert "then.probe.seeds is two" in capsys.readouterr().err


def test_options_of_what_follows_are_not_the_fits(tmp_path, capsys):
    flags = ["--runs", str(tmp_path), "--dry_run", "--then=--trainer.precision bf16-mixed --data.num_workers 0"]
    assert main(["sweep", str(chain(tmp_path)), *flags]) == 0
    *fits, first, last = capsys.readouterr().out.splitlines()[1:]
    assert all(line.endswith("--trainer.precision bf16-mixed --data.num_workers 0") for line in (first, last))
    assert not any("bf16" in line for line in fits)
    assert main(["sweep", str(grid(tmp_path, **{"model.weight": [0.5]})), *flags]) == 2
    assert "--then: nothing follows the fits" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [None, ["fgssl"], ["fgssl", "compare", "${run}"], ["fgssl", "probe", "--ckpt_path", "RUN"]]
)
def test_command_that_cannot_follow_a_fit_is_refused(command, tmp_path, capsys):
    path = chain(tmp_path)
    content = yaml.safe_load(path.read_text())
    content["then"]["probe"]["command"] = command
    path.write_text(yaml.safe_dump(content))
    assert main(["sweep", str(path)]) == 2
    assert "then.probe.command is" in capsys.readouterr().err


def test_names_of_experiments_keep_what_follows_a_dot(tmp_path, capsys):
    """A value's last digits are no ending of a file."""
    values = ["cmd_ablations/table6_lambda_0.001", "cmd_ablations/table6_lambda_0.01", "mine/lambda_0.1.yaml"]
    assert main(["sweep", str(grid(tmp_path, config=values)), "--runs", str(tmp_path), "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    names = [words[words.index("--run.name") + 1] for words in map(str.split, lines)]
    assert names == ["table6_lambda_0.001", "table6_lambda_0.01", "lambda_0.1"]


@pytest.mark.parametrize("flags", [["--run.root", "elsewhere"], ["--run.name=one"], ["--then=--run.root elsewhere"]])
def test_options_that_would_move_the_cells_are_refused(flags, tmp_path, capsys):
    """The sweep would look for its cells where it had told them to be, and find none."""
    assert main(["sweep", str(chain(tmp_path)), "--runs", str(tmp_path), "--dry_run", *flags]) == 2
    assert "the sweep sets it. Cells are in the folder --name NAME of --runs FOLDER." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "then", "name"),
    [
        (["theirs/lr.yaml", "mine/lr.yaml"], {}, "lr"),
        (["lr", "lr_probe"], {"then": {"probe": {"command": ["fgssl", "probe", "${run}"]}}}, "lr_probe"),
    ],
    ids=["two files", "a fit and what follows another"],
)
def test_cells_of_the_same_name_are_refused(values, then, name, tmp_path, capsys):
    path = grid(tmp_path, config=values)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | then))
    assert main(["sweep", str(path), "--runs", str(tmp_path), "--dry_run"]) == 2
    said = capsys.readouterr().err
    assert f"two cells of the sweep have the same name '{name}'" in said
    assert said.count("\n  fgssl ") == 2  # both are shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "bayes"}, "method is bayes"),
        ({"parameters": {"model.tau": {"min": 0, "max": 1}}}, "parameters.model.tau has neither"),
        ({"parameters": None}, "'parameters' is missing"),
        ({"parameters": ["model.tau"]}, "'parameters' is missing"),
        ({"parameters": {"model.tau": {"values": 0.1}}}, "parameters.model.tau.values is 0.1; it must be a list"),
        ({"parameters": {"model.variant": {"values": "selfcon"}}}, "it must be a list of one value or more"),
        ({"parameters": {"model.tau": {"values": []}}}, "parameters.model.tau.values is []; it must be a list"),
        ({"metric": "val/recall@1"}, "metric is val/recall@1; it must be {name: val/recall@1}"),
        ({"then": ["probe"]}, "then is ['probe']; it must be a mapping"),
        ({"command": "fgssl fit ${args}"}, "command is fgssl fit ${args}; it must be [fgssl, fit"),
        ({"command": ["python", "train.py", "${args}"]}, "it must be [fgssl, fit"),
        ({"metric": {"name": "val/spectral_decay", "goal": "maximize"}}, "metric.goal is maximize"),
        ({"metric": {"name": "val/recall@1", "goal": "minimize"}}, "of val/recall@1 it must be maximize"),
    ],
)
def test_other_sweeps_are_refused(tmp_path, change, message, capsys):
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(DIGITS.read_text()) | change))
    assert main(["sweep", str(path), "--dry_run"]) == 2
    assert message in capsys.readouterr().err


def test_infinity_null_and_commas_of_a_sweep_reach_the_configuration(tmp_path, capsys):
    """The printed command can be run in a shell without changes."""
    values = {"model.tau": [math.inf], "model.optim.clip_each": [None], "run.paper": ["maskcon, Table 10"]}
    assert main(["sweep", str(grid(tmp_path, **values)), "--runs", str(tmp_path), "--dry_run"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    words = shlex.split(line.partition("fgssl ")[2])
    with pytest.raises(SystemExit) as stop:
        main([*words, "--print_config"])
    assert stop.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["init_args"]["tau"] == math.inf
    assert config["model"]["init_args"]["optim"]["clip_each"] is None
    assert config["run"]["paper"] == "maskcon, Table 10"


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_the_sweeps_of_the_papers_parse(file, monkeypatch, capsys, tmp_path):
    """The first cell names an existing experiment, existing options and an existing table."""
    monkeypatch.chdir(ROOT)
    sweep = read_sweep(file)
    assert sweep.name == yaml.safe_load(file.read_text())["name"] == file.stem
    assert "wandb" not in sweep.fit
    assert not (sweep.then and "wandb" in file.read_text()), "W&B knows no 'then'"
    for step in sweep.then.values():
        files = [word for word in step.arguments if word.endswith(".yaml")]
        assert all((ROOT / name).is_file() for name in files)
    cell = sweep.cells()[0]
    with pytest.raises(SystemExit) as stop:
        main([*command(sweep, tmp_path / "s", cell, []), "--print_config"])
    assert stop.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    for option, value in cell.items():
        if option.startswith("model."):
            assert flatten(config)[option] == value
    chooses = yaml.safe_load(file.read_text()).get("metric")
    if chooses:  # never by the test part
        assert chooses["name"].startswith("val/")
        assert config["data"]["protocol"]["val_fraction"] > 0
    if cell.get("run.paper"):
        assert rows_named(cell["run.paper"])
    experiment = compose([next((word for word in sweep.fit if word.endswith(".yaml")), cell.get("config"))])
    assert config["model"]["class_path"].rsplit(".", 1)[-1] == experiment["model"]["class_path"]


def test_cell_replaces_the_process_by_the_fit_of_that_cell(tmp_path, monkeypatch, capsys):
    replaced = []
    monkeypatch.setattr(sweeps.os, "execv", lambda program, line: replaced.append(line))
    path = grid(tmp_path, **{"model.weight": [0.5, 1.0], "model.tau": [0.1, 0.5]})
    assert main(["sweep", str(path), "--runs", str(tmp_path), "--dry_run"]) == 0
    listed = capsys.readouterr().out.splitlines()[1:]
    run(path, tmp_path, "--cell", "2")
    ((_, module, program, *line),) = replaced
    assert (module, program) == ("-m", "fgssl")
    assert "cell 2, to run:" in listed[2]
    assert "--model.weight=1.0" in listed[2]
    assert {"--model.weight=1.0", "--model.tau=0.1"} <= set(line)
    assert line[line.index("--run.name") + 1] == "weight1.0_tau0.1"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cell", "4"), "--cell 4: "),
        (("--cell", "-1"), "has 4 cells, 0 to 3."),
        (("--cell", "0", "--devices", "0", "1"), "--cell and --devices exclude each other"),
    ],
)
def test_cell_that_cannot_be_run_is_refused(tmp_path, flags, message, capsys):
    path = grid(tmp_path, **{"model.weight": [0.5, 1.0], "model.tau": [0.1, 0.5]})
    assert main(["sweep", str(path), "--runs", str(tmp_path), *flags]) == 2
    assert message in capsys.readouterr().err


def test_cell_whose_process_was_aborted_is_failed(tmp_path, monkeypatch):
    """NCCL's watchdog aborts a process, which then cannot write its status."""
    abort = "{class_path: tests.trust.callbacks.KillAt, init_args: {batch: 0, number: 6}}"
    path = grid(tmp_path, **{"model.weight": [0.5]})
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sweeps, "report", lambda *_: None)
    assert run(path, tmp_path, "--trainer.callbacks", abort) == 1
    said = results(tmp_path / "sweep_grid" / "weight0.5")
    assert (said["status"], said["error"]) == ("failed", "the process ended with status -6")


def test_cell_of_another_sweep_is_left_as_it_is(tmp_path, monkeypatch):
    """It was refused, for its folder is in use."""
    folder = tmp_path / "sweep_grid" / "weight0.5"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text('{"status": "running"}')
    monkeypatch.setattr(sweeps, "run_cell", lambda *_: sweeps.REFUSED)
    assert sweeps.run_cells({"weight0.5": ["fit"]}, tmp_path / "sweep_grid", None) == ["weight0.5"]
    assert results(folder)["status"] == "running"
