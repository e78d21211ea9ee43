"""TensorBoard and MLflow by name, read back; without the package one line names the extra."""

import importlib.util
import json

import pytest
from filelock import FileLock, Timeout

from fgssl.cli.main import main
from fgssl.loggers import MLflow
from tests.cli.test_cli import fgssl, fit, results

pytestmark = pytest.mark.slow


def needs(name: str):
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"the optional extra '{name}' is not installed")


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_missing_package_is_one_line_that_names_the_extra(name, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked, *_: None if asked == name else find(asked, *_))
    assert fgssl("fit", tmp_path, "--logger", name) == 2
    said = capsys.readouterr().err
    assert said == f"fgssl: --logger {name} needs the package {name}: pip install 'fgssl[{name}]'.\n"
    assert not (tmp_path / "maskcon_digits").exists()


def events(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / "tensorboard"))
    read.Reload()
    return read


@needs("tensorboard")
def test_tensorboard_has_the_metrics_and_pictures_and_hides_what_a_resumed_run_repeats(tmp_path):
    flags = ["--logger", "tensorboard", "--retrieval.grid", "2", "--checkpoint.every_n_train_steps", "3"]
    flags += ["--trainer.callbacks", "tests.trust.callbacks.FailAt"]
    with pytest.raises(RuntimeError, match="at step 6"):
        fit(tmp_path, "run", *flags)
    run = tmp_path / "maskcon_digits" / "run"
    assert [event.step for event in events(run).Scalars("train/loss")] == [0, 1, 2, 3, 4, 5]
    assert main(["fit", "--ckpt_path", str(run), "--trainer.callbacks", "null"]) == 0
    read = events(run)
    assert [event.step for event in read.Scalars("train/loss")] == list(range(8))
    recall = results(run)["metrics"]["test/recall@1"]
    assert read.Scalars("test/recall@1")[-1].value == pytest.approx(recall, rel=1e-6)
    assert [picture.step for picture in read.Images("test/retrieval_grid")] == [7]


@needs("mlflow")
def test_mlflow_has_the_metrics_and_pictures_and_a_resumed_run_goes_on(tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    uri = (tmp_path / "server").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # SQLite takes seconds to make its tables
    run = fit(tmp_path, "run", "--logger", "mlflow", "--retrieval.grid", "2", epochs=1)
    assert main(["fit", "--ckpt_path", str(run), "--trainer.max_epochs", "2"]) == 0
    client = MlflowClient(uri)
    (experiment,) = [found for found in client.search_experiments() if found.name == "maskcon_digits"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == json.loads((run / "mlflow.json").read_text())["run_id"]
    assert found.info.run_name == "run"
    assert found.data.tags["method"] == "MaskCon"
    assert found.data.params["model/init_args/tau"] == "0.05"
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "train/loss")] == list(range(8))
    assert found.data.metrics["test/recall_at_1"] == pytest.approx(results(run)["metrics"]["test/recall@1"])
    assert "similarity.png" in [file.path for file in client.list_artifacts(found.info.run_id)]

    client.delete_run(found.info.run_id)
    assert main(["fit", "--ckpt_path", str(run), "--trainer.max_epochs", "3"]) == 0
    (another,) = client.search_runs([experiment.experiment_id])
    assert another.info.run_id == json.loads((run / "mlflow.json").read_text())["run_id"] != found.info.run_id
    assert another.data.params["trainer/max_epochs"] == "3"
    assert "status" not in another.data.params  # it would stay "running"
    assert [metric.step for metric in client.get_metric_history(another.info.run_id, "train/loss")] == [8, 9, 10, 11]


@needs("mlflow")
def test_mlflow_that_does_not_answer_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert fgssl("fit", tmp_path, "--logger", "mlflow") == 2
    said = capsys.readouterr().err
    assert "fgssl: --logger mlflow: http://127.0.0.1:9 cannot be used. Start its server, or name another" in said
    assert "Traceback" not in said


@needs("mlflow")
def test_mlflow_without_a_server_keeps_a_file_beside_the_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    seen = {}

    def begin(self, **given):
        seen.update(given)
        with pytest.raises(Timeout):  # runs that start at the same time would make the tables twice, and fail
            FileLock(tmp_path / "runs" / "mlflow.lock", timeout=0).acquire()

    monkeypatch.setattr("fgssl.loggers.MLFlowLogger.__init__", begin)
    MLflow(tmp_path / "runs" / "digits" / "a", {})
    assert seen["tracking_uri"] == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert seen["artifact_location"] == f"file://{tmp_path}/runs/mlflow"
    assert (seen["experiment_name"], seen["run_name"], seen["run_id"]) == ("digits", "a", None)
