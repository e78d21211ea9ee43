"""What results.json says of the time of a run."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from fgssl.callbacks import record
from fgssl.callbacks.record import Record
from fgssl.errors import UserError
from fgssl.loggers import MetricsLogger


@pytest.fixture
def clock(monkeypatch):
    """The seconds that pass; ``clock.now`` is set by a test."""
    said = SimpleNamespace(now=100.0)
    monkeypatch.setattr(record.time, "perf_counter", lambda: said.now)
    return said


def epoch(recorder: Record, clock, batches: list[float], after: float = 0.0, started: bool = True) -> None:
    """An epoch whose batches take so many seconds, and what follows the last one, such as a validation."""
    if started:
        recorder.on_train_epoch_start(None, None)
    for number, seconds in enumerate(batches):
        clock.now += seconds
        recorder.on_train_batch_end(None, None, None, None, number)
    clock.now += after
    recorder.on_train_epoch_end(None, None)


@pytest.mark.parametrize(
    ("test_rows", "limit", "status"), [(3, None, "trained"), (3, 0, "finished"), (0, None, "finished")]
)
def test_training_is_all_where_nothing_is_to_be_tested(tmp_path, test_rows, limit, status):
    """What follows it in a sweep may begin, as a detector after MLS on COCO's images without a test part."""
    data = SimpleNamespace(parts=SimpleNamespace(test=range(test_rows)))
    trainer = SimpleNamespace(
        limit_test_batches=limit, datamodule=data, callback_metrics={}, state=SimpleNamespace(fn="fit")
    )
    recorder = Record(tmp_path, "", {})
    recorder.on_fit_end(trainer, None)
    assert recorder.results["status"] == status


def test_time_of_training_is_that_of_whole_epochs_without_validation(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(Record, "_note", lambda *_, **__: None)
    recorder = Record(tmp_path, "", {})
    epoch(recorder, clock, [1.0, 2.0], after=50.0)
    epoch(recorder, clock, [2.0, 4.0], after=50.0)
    assert recorder.results["train_s"] == pytest.approx(9.0)
    assert recorder.results["timed_epochs"] == 2
    record.write_json(tmp_path / "results.json", recorder.results)

    resumed = Record(tmp_path, "", {"ckpt_path": "last.ckpt"})
    resumed._go_on()
    epoch(resumed, clock, [7.0], started=False)  # the rest of an epoch, which Lightning does not start again
    epoch(resumed, clock, [3.0])
    assert resumed.results["train_s"] == pytest.approx(12.0)
    assert resumed.results["timed_epochs"] == 3


def test_resumed_run_keeps_the_command_that_started_it(tmp_path, monkeypatch):
    """A sweep knows its cells by it."""
    for command in ("first", "second", "third", "second"):
        monkeypatch.setattr(record, "provenance", lambda command=command: {"command": command})
        recorder = Record(tmp_path, "", {})
        recorder._go_on()
        recorder._say_where(SimpleNamespace(world_size=1))
        recorder._write()
    assert recorder.results["command"] == "first"
    assert recorder.results["resumed_by"] == ["second", "third"]


def start(recorder: Record, logger: MetricsLogger) -> None:
    recorder.setup(SimpleNamespace(is_global_zero=True, loggers=[logger], world_size=1), None, "fit")
    recorder._signs.stop()


def test_run_that_starts_anew_in_its_folder_has_no_rows_of_the_dead_start(tmp_path):
    """It failed before its first checkpoint; curves would be the means of both."""
    for loss in (9.0, 1.0):
        logger = MetricsLogger(tmp_path)
        start(Record(tmp_path, "{}", {"ckpt_path": None}), logger)
        logger.log_metrics({"train/loss": loss}, step=0)
        logger.save()
    assert [row["train/loss"] for row in logger._read()] == ["1.0"]
    (tmp_path / "checkpoints").mkdir()
    start(Record(tmp_path, "{}", {"ckpt_path": str(tmp_path / "checkpoints" / "last.ckpt")}), logger)
    assert [row["train/loss"] for row in logger._read()] == ["1.0"], "a resumed run keeps its rows"


def test_results_of_the_test_are_dropped_when_a_finished_run_is_trained_further(tmp_path):
    before = {"test/map": 0.5, "test/best_epoch_recall@1": 0.6, "test_each_epoch/recall@1": 0.6, "val/map": 0.4}
    record.write_json(tmp_path / "results.json", {"metrics": before, "epochs": 2})
    resumed = Record(tmp_path, "", {"ckpt_path": "last.ckpt"})
    resumed._go_on()
    assert resumed.results["metrics"] == before, "nothing is trained yet, or ever"
    resumed.on_train_batch_end(None, None, None, None, 0)
    assert resumed.results["metrics"] == {"test_each_epoch/recall@1": 0.6, "val/map": 0.4}
    resumed.results["metrics"]["test/map"] = 0.7  # a callback may test during training
    resumed.on_train_batch_end(None, None, None, None, 1)
    assert resumed.results["metrics"]["test/map"] == 0.7


def test_run_folder_of_a_living_process_is_refused_and_that_of_a_killed_one_is_not(tmp_path):
    """Both would train to their end: rows of both in metrics.csv, last.ckpt of the slower one."""
    (tmp_path / "metrics.csv").write_text("step,train/loss\n0,9.0\n")
    (tmp_path / "results.json").write_text("{}")
    hold = "import sys; from pathlib import Path; from fgssl.run import claim; file = claim(Path(sys.argv[1])); "
    with subprocess.Popen(
        [sys.executable, "-c", hold + "print('held', flush=True); sys.stdin.read()", str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"is in use by process {other.pid} on .*choose another --run.name"):
            start(Record(tmp_path, "{}", {"ckpt_path": None}), MetricsLogger(tmp_path))
        assert (tmp_path / "results.json").read_text() == "{}"
        assert (tmp_path / "metrics.csv").is_file()
        other.kill()
    start(Record(tmp_path, "{}", {"ckpt_path": None}), MetricsLogger(tmp_path))
    assert not (tmp_path / "metrics.csv").is_file()
