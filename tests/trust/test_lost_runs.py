"""A run whose process ended without a word is not 'running' for ever."""

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from fgssl import run as runs
from fgssl.run import SignsOfLife, folder_of, status_of


@pytest.mark.parametrize(
    ("status", "age", "expected"),
    [("running", 30, "running"), ("running", 700, "lost"), ("trained", 700, "lost"), ("finished", 10**7, "finished")],
)
def test_status_is_lost_after_ten_minutes_without_a_sign_of_life(status, age, expected, tmp_path):
    path = tmp_path / "results.json"
    path.touch()
    os.utime(path, (0, time.time() - age))
    assert status_of(path, {"status": status}) == expected


def test_signs_of_life_touch_the_file_until_they_are_stopped(tmp_path, monkeypatch):
    touched = threading.Event()
    monkeypatch.setattr(runs, "PULSE", 0.01)
    monkeypatch.setattr(runs.os, "utime", lambda path: touched.set())
    before = threading.active_count()
    signs = SignsOfLife(tmp_path / "results.json")
    assert touched.wait(60)
    signs.stop()
    while threading.active_count() > before:
        time.sleep(0.01)


def test_missing_file_does_not_end_the_signs(tmp_path, monkeypatch):
    """The folder may be moved while a run goes on."""
    calls, again = [], threading.Event()

    def utime(path):
        calls.append(path)
        if len(calls) > 1:
            again.set()
        raise FileNotFoundError(path)

    monkeypatch.setattr(runs, "PULSE", 0.01)
    monkeypatch.setattr(runs.os, "utime", utime)
    signs = SignsOfLife(tmp_path / "results.json")
    assert again.wait(60)
    signs.stop()


def test_runs_of_wandb_agents_that_start_in_the_same_second_have_names_of_their_own(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    names = []
    for run_id in ("a1", "b2"):
        monkeypatch.setenv("WANDB_RUN_ID", run_id)
        names.append(runs.default_name(0, "fit"))
    assert names[0].endswith("_seed0_a1")
    assert names[1].endswith("_seed0_b2")


def test_runs_of_jobs_of_a_cluster_have_names_of_their_own(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert runs.default_name(3, "test").endswith("_seed3_test_77")


@pytest.fixture
def alone(monkeypatch):
    """A process that nothing has told a rank or a name."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("FGSSL_RUN_NAME", "of an earlier run of this process")


def test_runs_without_a_name_that_start_in_the_same_second_have_folders_of_their_own(alone, tmp_path, monkeypatch):
    parent = tmp_path / "runs" / "digits"
    folders, made = zip(*(runs.unnamed_folder(parent, "now", True) for _ in range(3)), strict=True)
    assert [folder.name for folder in folders] == ["now", "now_2", "now_3"]
    assert [len(each) for each in made] == [3, 1, 1]  # runs and digits too
    monkeypatch.setenv("LOCAL_RANK", "1")  # a process that the last of them starts
    assert runs.unnamed_folder(parent, "a second later", True) == (folders[-1], [])


def test_rank_that_is_not_the_first_makes_no_folder(alone, tmp_path):
    assert runs.unnamed_folder(tmp_path, "now", False) == (tmp_path / "now", [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_folder_that_cannot_be_made_is_left_to_the_start_of_the_run(kind, alone, tmp_path):
    parent = tmp_path / "runs"
    parent.touch() if kind == "file" else parent.symlink_to(tmp_path / "absent")
    assert runs.unnamed_folder(parent / "digits", "now", True) == (parent / "digits" / "now", [])


def test_files_of_callbacks_stand_beside_metrics_csv():
    ours, other = SimpleNamespace(log_dir="run"), SimpleNamespace(log_dir="elsewhere")
    assert folder_of([ours, other]) == Path("run")
    assert folder_of([SimpleNamespace(log_dir=None)]) == Path(".")
