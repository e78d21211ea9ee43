"""A run folder is all that a later command needs: resume, test, validate and predict with ``--ckpt_path RUN`` alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from fgssl.cli.main import main
from tests.cli.test_cli import StopEarly, fit, results

pytestmark = pytest.mark.slow

VALIDATION = ("--data.protocol.val_fraction", "0.3", "--data.protocol.label_fraction", "0.1")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """One of two epochs: a third of its rows held out for validation."""
    stop = ("--trainer.callbacks", "tests.cli.test_saved_runs.StopNow")
    return fit(tmp_path_factory.mktemp("runs"), "run", *VALIDATION, *stop, epochs=2)


class StopNow(StopEarly):
    """Ends a fit after its first epoch."""

    def on_train_epoch_end(self, trainer, method):
        trainer.should_stop = True


@pytest.fixture
def copy(run, tmp_path) -> Path:
    """The run at another place, where it can be changed."""
    shutil.copytree(run, tmp_path / "maskcon_digits" / "run")
    return tmp_path / "maskcon_digits" / "run"


def config(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())


def newest(root: Path, end: str) -> Path:
    (found,) = root.glob(f"maskcon_digits/*{end}")
    return found


def test_fit_with_a_run_alone_resumes_it_with_its_own_options(copy, tmp_path):
    assert results(copy)["epochs"] == 1
    before = config(copy)
    # The callback that stopped the run is of its configuration too: the flag overrides it.
    assert main(["fit", "--ckpt_path", str(copy), "--trainer.callbacks", "null"]) == 0
    assert results(copy)["epochs"] == 2
    after = config(copy)
    assert after["run"] == {**before["run"], "root": str(tmp_path)}
    for section in ("model", "data", "checkpoint"):
        assert after[section] == before[section]
    assert [path.name for path in tmp_path.iterdir()] == ["maskcon_digits"]


def test_resumed_run_keeps_its_name(copy, tmp_path):
    with pytest.warns(UserWarning, match="--run.name other is not used: a resumed run stays in .*maskcon_digits/run"):
        assert main(["fit", "--ckpt_path", str(copy), "--run.name", "other", "--trainer.max_steps", "5"]) == 0
    assert config(copy)["run"]["name"] == "run"
    assert (copy / "config-1.yaml").is_file()
    assert [path.name for path in (tmp_path / "maskcon_digits").iterdir()] == ["run"]


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_evaluation_with_a_run_alone_takes_its_configuration(command, copy, tmp_path):
    assert main([command, f"--ckpt_path={copy}"]) == 0
    evaluated = newest(tmp_path, f"_{command}")
    assert config(evaluated)["model"] == config(copy)["model"]
    if command == "predict":
        assert np.load(evaluated / "embeddings.npz")["embedding"].shape == (450, 8)
    else:
        part = {"test": "test/", "validate": "val/"}[command]
        theirs = {k: v for k, v in results(copy)["metrics"].items() if k.startswith(part)}
        ours = {k: v for k, v in results(evaluated)["metrics"].items() if k.startswith(part)}
        assert ours == pytest.approx(theirs)
        assert len(ours) > 5


def test_validate_without_validation_rows_says_so(copy, capsys, tmp_path):
    assert main(["validate", "--ckpt_path", str(copy), "--data.protocol.val_fraction", "0"]) == 2
    assert "there are no validation rows to evaluate. Set --data.protocol.val_fraction" in capsys.readouterr().err
    assert not list(tmp_path.glob("maskcon_digits/*_validate"))


def test_a_checkpoint_outside_of_a_run_needs_its_experiment(copy, tmp_path, capsys):
    alone = tmp_path / "last.ckpt"
    shutil.copy(copy / "checkpoints" / "last.ckpt", alone)
    assert main(["test", "--ckpt_path", str(alone)]) == 2
    assert "is in no run folder. Give its experiment with --config FILE." in capsys.readouterr().err


def test_differences_of_data_seed_and_training_are_printed(copy, capsys, caplog):
    flags = ["--data.num_workers", "1", "--data.views.recipe", "moco", "--trainer.max_epochs", "3"]
    assert main(["fit", "--ckpt_path", str(copy), *flags, "--seed_everything", "5"]) == 0
    said = caplog.text + capsys.readouterr().out
    for line in (
        "data.num_workers: 0 in the checkpoint, 1 now. Using 1.",
        "data.views.recipe: digits in the checkpoint, moco now. Using moco.",
        "seed_everything: 0 in the checkpoint, 5 now. Using 5.",
        "trainer.max_epochs: 2 in the checkpoint, 3 now. Using 3. The learning-rate schedule goes on",
    ):
        assert line in said
    assert "data.mean" not in said  # null in the files, resolved in the checkpoint: the same


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.protocol.label_fraction", "0.2"], "data.protocol.label_fraction 0.1, now 0.2"),
        (["--data.protocol.val_fraction", "0"], "data.protocol.val_fraction 0.3, now 0"),
        (["--data.dataset", "CIFARToy", "--data.dataset.root", "{digits}"], "data.dataset Digits, now CIFARToy"),
        (["--trainer.limit_train_batches", "2"], "trainer.limit_train_batches None, now 2"),
        (["--data.batch_size", "32"], "was trained with 16 images per optimiser step, but this run has 32"),
    ],
)
def test_a_run_is_not_resumed_where_its_schedule_would_be_wrong(flags, message, copy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fgssl.data.datasets.base.DataSet.check_files", lambda self: None)
    flags = [flag.format(digits=tmp_path) for flag in flags]
    assert main(["fit", "--ckpt_path", str(copy), *flags]) == 2
    assert message in capsys.readouterr().err
    assert results(copy)["epochs"] == 1


def test_a_run_with_fewer_epochs_than_its_checkpoint_is_refused(copy, capsys, caplog):
    flags = ["--trainer.callbacks", "null", "--trainer.max_epochs"]
    assert main(["fit", "--ckpt_path", str(copy), *flags, "1"]) == 0
    assert "All 1 epochs are trained already. To train longer, raise --trainer.max_epochs." in caplog.text
    assert main(["fit", "--ckpt_path", str(copy), *flags, "3"]) == 0
    assert main(["fit", "--ckpt_path", str(copy), *flags, "2"]) == 2
    assert "was trained for 3 epochs, but trainer.max_epochs is 2" in capsys.readouterr().err


def test_the_configuration_of_a_run_offers_to_resume_it_or_to_start_another(copy, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = str(copy / "config.yaml")
    assert main(["fit", "--config", saved, "--run.root", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"fgssl fit --ckpt_path {copy} resumes it; --run.name NAME starts" in said
    assert main(["fit", "--config", saved, "--run.root", str(tmp_path), "--run.name", "again"]) == 0
    assert results(copy.with_name("again"))["status"] == "finished"
