"""W&B: what an offline run writes, read back; the saved comparison. Nothing here needs a network."""

import importlib.util

import pytest

from fgssl.cli.main import main
from fgssl.report.compare import compare
from fgssl.report.dashboard import build
from fgssl.report.runs import read_runs
from tests.cli.test_cli import fit
from tests.report.test_compare import write_run
from tests.wandb_files import read

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One epoch of CoIns, whose loss has two parts, logged offline, with validation rows and pictures."""
    import wandb

    flags = ["--logger", "wandb", "--model.variant", "coins", "--model.weight", "0.5", "--retrieval.grid", "2"]
    flags += ["--data.protocol.val_fraction", "0.3", "--data.protocol.label_fraction", "0.1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_MODE")  # offline because no account is configured, not because it is told
        patch.setenv("WANDB_API_KEY", "")
        folder = fit(tmp_path_factory.mktemp("runs"), "run", *flags, epochs=1)
        wandb.finish()
    return folder


@pytest.fixture(scope="module")
def logged(run):
    return read(run)


def test_a_group_is_a_method_on_a_data_set(logged):
    said = logged["run"]
    assert (said.run_group, said.job_type) == ("digits: MaskCon/coins", "fit")
    assert said.display_name == "maskcon_digits/run"
    assert list(said.tags) == ["MaskCon/coins", "digits"]


def test_the_configuration_is_the_runs_own(logged):
    config = logged["config"]
    assert config["model"]["init_args"]["weight"] == 0.5
    assert config["data"]["protocol"]["val_fraction"] == 0.3
    assert [config[name] for name in ("method", "variant", "dataset", "seed")] == ["MaskCon", "coins", "digits", 0]


def test_losses_schedules_throughput_and_evaluation_have_the_names_that_stay(logged):
    history = logged["history"]
    for name in ("train/loss", "train/ce", "train/contrastive", "train/lr", "train/teacher_momentum"):
        assert len(history[name]) == 5, name  # the optimiser steps of the epoch
    for name in ("throughput/images_per_second", "throughput/waiting_for_data", "val/recall@1", "val/map"):
        assert len(history[name]) == 1, name
    assert history["throughput/images_per_second"][0] > 0
    assert 0 <= history["throughput/waiting_for_data"][0] <= 1
    assert history["train/teacher_momentum"][-1] == pytest.approx(0.9)
    assert 0 < history["test/recall@1"][0] <= 1


def test_pictures_and_histograms_are_logged(run, logged):
    history = logged["history"]
    for name in ("test/retrieval_grid", "test/similarity", "test/coarse_confusion"):
        (file,) = history[f"{name}/filenames"][0]
        (found,) = run.glob(f"wandb/offline-run-*/files/{file}")
        assert found.stat().st_size > 5000, name
    pairs = sum(sum(history[f"test/similarity_{kind}/values"][0]) for kind in ("same_class", "other_class"))
    assert pairs == 450 * 449


def test_a_second_run_in_one_process_is_a_run_of_its_own(run, tmp_path):
    import wandb

    second = fit(tmp_path, "second", "--logger", "wandb", epochs=1)
    wandb.finish()
    ours, theirs = read(second)["run"], read(run)["run"]
    assert ours.run_id != theirs.run_id
    assert ours.run_group == "digits: MaskCon"


def test_compare_offline_says_what_it_would_write(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    write_run(tmp_path, "a")
    assert main(["compare", str(tmp_path), "--wandb", "team/birds"]) == 0
    said = capsys.readouterr().out
    assert "nothing was written" in said
    assert "'fgssl compare' in team/birds" in said
    assert "cars, official split (1 runs)" in said


needs_reports = pytest.mark.skipif(
    importlib.util.find_spec("wandb_workspaces") is None,
    reason="the optional extra 'reports' (wandb-workspaces) is not installed",
)


@needs_reports
def test_the_report_shows_the_tables_and_their_runs_alone(tmp_path):
    for seed in range(2):
        write_run(tmp_path, f"a{seed}", seed=seed)
    write_run(tmp_path, "noisy", data={"label_noise": 0.2, "flipped_hash": "0123"})
    tables, _ = compare(read_runs([str(tmp_path)])[0], ["recall@1", "map"])
    report = build("team", "birds", tables)
    grids = [block for block in report.blocks if type(block).__name__ == "PanelGrid"]
    texts = [block.text for block in report.blocks if type(block).__name__ == "MarkdownBlock"]
    assert [grid.runsets[0].filters for grid in grids] == [
        "Metric(\"Name\") in ['maskcon_cars/a0', 'maskcon_cars/a1']",
        "Metric(\"Name\") in ['maskcon_cars/noisy']",
    ]
    assert all(grid.runsets[0].groupby == ["Group"] for grid in grids)
    assert [panel.metrics for panel in grids[0].panels[:2]] == [["test/recall@1"], ["test/map"]]
    assert "**50.00 ± 0.00**" in texts[0]
    assert "45.53" in texts[0]


@needs_reports
def test_the_report_is_created_once_and_refreshed_afterwards(tmp_path, monkeypatch):
    """Against a stand-in for W&B's server; a real one has not been asked."""
    import wandb
    import wandb_workspaces.reports.v2 as wr

    from fgssl.report.dashboard import TITLE, save_comparison

    class Found:
        title, url = TITLE, "https://example.org/report"

    class Api:
        default_entity, found = "team", []

        def reports(self, path):
            assert path == "team/birds"
            return self.found

    saved = []
    monkeypatch.setattr("fgssl.loggers.has_wandb_account", lambda: True)
    monkeypatch.setattr(wandb, "Api", Api)
    monkeypatch.setattr(wr.Report, "save", lambda self: saved.append(self))
    monkeypatch.setattr(wr.Report, "url", "https://example.org/new")
    monkeypatch.setattr(wr.Report, "from_url", lambda url: wr.Report(project="birds", entity="team", title="theirs"))
    write_run(tmp_path, "a")
    tables, _ = compare(read_runs([str(tmp_path)])[0], ["recall@1"])
    assert "created the report" in save_comparison("birds", tables)
    Api.found = [Found]
    assert "refreshed the report" in save_comparison("birds", tables)
    assert [report.title for report in saved] == [TITLE, "theirs"]
    assert len(saved[1].blocks) == len(saved[0].blocks) == 3
