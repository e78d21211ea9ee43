"""The command line end to end, on a handful of digits: run folder, resume, checkpoints, mistakes."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fgssl.cli.main import main
from fgssl.run import refuse_overwriting

pytestmark = pytest.mark.slow

DIGITS = str(Path(__file__).parents[2] / "experiments" / "maskcon_digits.yaml")
CARS = str(Path(__file__).parents[2] / "experiments" / "maskcon_cars.yaml")
SMALL = [
    "--model.backbone.options",
    "{layers: [1, 1, 1, 1], channels: [4, 4, 8, 8]}",
    "--model.memory",
    "32",
    "--data.batch_size",
    "16",
    "--data.protocol.label_fraction",
    "0.05",
    "--retrieval.grid",
    "0",
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_model_summary",
    "false",
    "--trainer.log_every_n_steps",
    "1",
]  # fmt: skip  (69 training digits: 4 batches an epoch)


def fgssl(command: str, root: Path, *flags: str, config: str = DIGITS) -> int:
    return main([command, "--config", config, *SMALL, "--run.root", str(root), *flags])


def fit(root: Path, name: str = "run", *flags: str, epochs: int = 2) -> Path:
    flags = ("--run.name", name, "--trainer.max_epochs", str(epochs), *flags)
    assert fgssl("fit", root, *flags) == 0
    return root / "maskcon_digits" / name


def results(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def weights(run: Path, name: str = "last.ckpt") -> dict:
    return torch.load(run / "checkpoints" / name, weights_only=True)["state_dict"]


def rows(run: Path) -> list[dict]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return fit(tmp_path_factory.mktemp("runs"))


def test_a_run_folder_says_what_was_run_and_what_came_out(run):
    said = results(run)
    assert said["status"] == "finished"
    assert {said["method"], said["dataset"]} == {"MaskCon", "digits"}
    assert {"test/recall@1", "test/recall@10", "test/map", "test/map@r", "test/r_precision"} <= said["metrics"].keys()
    assert 0 < said["metrics"]["test/recall@1"] <= 1
    assert said["data"]["train"]["images"] == 69
    assert said["data"]["test"]["images"] == 450
    assert {"rows_hash", "classes"} <= said["data"]["test"].keys()
    assert (said["epochs"], said["steps"]) == (2, 8)
    assert {"torch", "lightning", "fgssl"} <= said["versions"].keys()
    assert {"command", "began", "git", "hardware", "duration_s", "seed", "processes"} <= said.keys()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["tau"] == 0.05
    assert config["data"]["protocol"]["label_fraction"] == 0.05
    logged = rows(run)
    assert [int(row["step"]) for row in logged if row["train/loss"]] == list(range(8))


def test_the_saved_configuration_runs_again_and_gives_the_same_weights(run, tmp_path):
    flags = ["--run.root", str(tmp_path), "--run.experiment", "again"]
    assert main(["fit", "--config", str(run / "config.yaml"), *flags]) == 0
    theirs = weights(tmp_path / "again" / "run")
    for name, value in weights(run).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, theirs[name]), name


def test_a_picture_of_neighbours_and_the_embeddings_are_written(run, tmp_path, capsys):
    assert fgssl("test", tmp_path, "--run.name", "t", "--retrieval.grid", "3", "--ckpt_path", str(run)) == 0
    assert (tmp_path / "maskcon_digits" / "t" / "retrieval.jpg").stat().st_size > 5000
    assert results(tmp_path / "maskcon_digits" / "t")["metrics"]["test/recall@1"] == pytest.approx(
        results(run)["metrics"]["test/recall@1"]
    )
    assert fgssl("predict", tmp_path, "--run.name", "p", "--ckpt_path", str(run)) == 0
    arrays = np.load(tmp_path / "maskcon_digits" / "p" / "embeddings.npz")
    assert arrays["embedding"].shape == (450, 8)
    assert len(set(arrays["paths"])) == 450
    assert f"embeddings: {tmp_path / 'maskcon_digits' / 'p' / 'embeddings.npz'}" in capsys.readouterr().out


@pytest.mark.parametrize("steps", [None, "3"], ids=["at an epoch's end", "in mid-epoch"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, steps):
    flags = ("--checkpoint.every_n_train_steps", steps) if steps else ()
    whole = fit(tmp_path, "whole", *flags, epochs=3)
    # Stopped after 2 of 3 epochs (8 steps; the checkpoint is of step 8 or 6), told of all 3 for the schedule's sake.
    stopped = fit(tmp_path, "stopped", *flags, "--trainer.callbacks", "tests.cli.test_cli.StopEarly", epochs=3)
    assert results(stopped)["steps"] == 8
    assert fgssl("fit", tmp_path, "--trainer.max_epochs", "3", *flags, "--ckpt_path", str(stopped)) == 0
    ours, theirs = weights(stopped), weights(whole)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        same = torch.equal(ours[name], value) if isinstance(value, torch.Tensor) else ours[name] == value
        assert same, name
    losses = [[(row["step"], row["train/loss"]) for row in rows(run) if row["train/loss"]] for run in (stopped, whole)]
    assert losses[0] == losses[1]
    assert results(stopped)["metrics"]["test/map"] == results(whole)["metrics"]["test/map"]
    assert (stopped / "config-1.yaml").is_file()  # what the first start was told is kept


from lightning.pytorch import Callback  # noqa: E402


class StopEarly(Callback):
    """Ends a fit after its second epoch."""

    def on_train_epoch_end(self, trainer, method):
        trainer.should_stop = trainer.current_epoch + 1 >= 2


def test_validation_rows_choose_the_best_checkpoint(tmp_path):
    run = fit(tmp_path, "val", "--data.protocol.val_fraction", "0.3", "--data.protocol.label_fraction", "0.1", epochs=1)
    assert (run / "checkpoints" / "best.ckpt").is_file()
    metrics = results(run)["metrics"]
    assert {"val/recall@1", "test/recall@1"} <= metrics.keys()
    assert fgssl("validate", tmp_path, "--run.name", "v", "--data.protocol.val_fraction", "0.3",
                 "--data.protocol.label_fraction", "0.1", "--ckpt_path", str(run)) == 0  # fmt: skip
    again = results(tmp_path / "maskcon_digits" / "v")["metrics"]["val/recall@1"]
    assert again == pytest.approx(metrics["val/recall@1"])


class RisingLoss(Callback):
    """Logs a loss that grows with the epochs."""

    def on_validation_epoch_end(self, trainer, method):
        method.log("val/loss", float(trainer.current_epoch + 1))


def test_best_checkpoint_by_a_loss_has_the_smallest_and_a_last_epoch_without_validation_is_said(tmp_path):
    flags = ["--data.protocol.val_fraction", "0.3", "--data.protocol.label_fraction", "0.1"]
    flags += ["--trainer.callbacks+", f"{__name__}.RisingLoss", "--checkpoint.monitor", "val/loss"]
    with pytest.warns(UserWarning, match="trainer.max_epochs 5: validated last after epoch 4, while the test is"):
        run = fit(tmp_path, "val", *flags, "--trainer.check_val_every_n_epoch", "2", epochs=5)
    assert [float(row["val/loss"]) for row in rows(run) if row["val/loss"]] == [2, 4]
    kept = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    assert [state["best_model_score"] for name, state in kept.items() if name.startswith("ModelCheckpoint")] == [2]


def test_a_run_is_never_overwritten(run, capsys):
    assert fgssl("fit", run.parents[1], "--run.name", run.name, "--trainer.max_epochs", "1") == 2
    assert "already holds a run" in capsys.readouterr().err
    assert results(run)["status"] == "finished"


@pytest.mark.parametrize("command", ["test", "predict"])
def test_an_evaluation_never_overwrites_the_run_it_evaluates(command, run, capsys):
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert fgssl(command, run.parents[1], "--ckpt_path", str(run), "--run.name", run.name) == 2
    assert f"{run} already holds a run. --run.name NAME writes to a folder of its own." in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("command", ["test", "fit"])
@pytest.mark.parametrize("status", ["finished", "predicted", "validated"])
def test_a_finished_evaluation_is_never_overwritten(status, command, tmp_path, capsys):
    folder = tmp_path / "maskcon_digits" / "done"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"status": status}))
    assert fgssl(command, tmp_path, "--run.name", "done", "--run.resume", "true") == 2
    assert f"{folder} already holds the results of a run. --run.name NAME" in capsys.readouterr().err
    assert results(folder) == {"status": status}


@pytest.mark.parametrize("status", ["failed", "interrupted", "running"])
def test_an_evaluation_that_did_not_finish_may_be_started_again(status, tmp_path):
    """Another process of the evaluation may look at the folder when the first one has begun to write."""
    (tmp_path / "results.json").write_text(json.dumps({"status": status}))
    refuse_overwriting(tmp_path, "test")


def test_what_the_user_says_wins_over_the_checkpoint(run, tmp_path, capsys, caplog):
    flags = ("--model.tau", "0.5", "--ckpt_path", str(run), "--run.name", "t")
    assert fgssl("test", tmp_path, *flags) == 0
    said = capsys.readouterr()
    assert "model.tau: 0.05 in the checkpoint, 0.5 now. Using 0.5." in said.out + said.err + caplog.text
    config = yaml.safe_load((tmp_path / "maskcon_digits" / "t" / "config.yaml").read_text())
    assert config["model"]["init_args"]["tau"] == 0.5


def changed_checkpoint(run: Path, tmp_path: Path, **changes) -> str:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) | changes
    torch.save(checkpoint, tmp_path / "changed.ckpt")
    return str(tmp_path / "changed.ckpt")


def test_foreign_and_broken_checkpoints_are_refused_by_name(run, tmp_path, capsys):
    def error_of(path: str, *flags: str) -> str:
        assert fgssl("test", tmp_path, "--ckpt_path", path, *flags) == 2
        return capsys.readouterr().err

    assert "is a checkpoint of CMD, but model is MaskCon" in error_of(changed_checkpoint(run, tmp_path, method="CMD"))
    assert "was not written by fgssl" in error_of(changed_checkpoint(run, tmp_path, method=None))
    assert "no checkpoint at" in error_of(str(tmp_path / "absent.ckpt"))
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes()[:5000])
    assert "cut.ckpt is not a checkpoint that can be loaded safely" in error_of(str(cut))
    assert "memory.keys_KD is (32, 64) there and (48, 64) here" in error_of(str(run), "--model.memory", "48")


class Hostile:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("command", ["fit", "test"])
def test_code_in_a_checkpoint_is_refused_and_never_run(command, tmp_path, capsys):
    torch.save({"method": "MaskCon", "state_dict": {}, "evil": Hostile(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    flags = ("--ckpt_path", str(tmp_path / "evil.ckpt"), "--weights_only", "false", "--trainer.max_epochs", "1")
    assert fgssl(command, tmp_path, *(flags if command == "fit" else flags[:4])) == 2
    assert "evil.ckpt is not a checkpoint that can be loaded safely" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.taux", "3"], "Option '--model.taux' is not accepted by MaskCon. Did you mean '--model.tau'?"),
        (["--model.tau", "abc"], "model.tau: expected float. Got value: abc"),
        (["--model", "MaskConn"], "model: unknown class 'MaskConn'. Did you mean 'MaskCon'?"),
        (["--trainer.callbacks+", "EarlyStoping"], "unknown class 'EarlyStoping'. Did you mean 'EarlyStopping'?"),
        (["--model.variant", "grafitt"], "Did you mean 'grafit'?"),
        (["--model.optim.lrr", "3"], "Did you mean '--model.optim.lr'?"),
        (["--model.backbone.name", "resnet81"], "timm knows no model 'resnet81'. Did you mean 'resnet18'?"),
        (["--data.batchsize", "3"], "Did you mean '--data.batch_size'?"),
        (["--data.batch_size", "100"], "data.batch_size is 100, and there are 69 training images"),
        (["--data.dataset", "CUBB"], "unknown data set 'CUBB'. Did you mean 'CUB'?"),
        (["--logger", "wandbb"], "'wandbb' is none of csv, wandb, tensorboard, mlflow. Did you mean 'wandb'?"),
        (["--trainer.max_epochs", "null"], "trainer.max_epochs is not set"),
    ],
)
def test_mistakes_are_one_line_that_suggests_the_right_name(flags, message, tmp_path, capsys):
    assert fgssl("fit", tmp_path, *flags) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "maskcon_digits").exists()


def test_best_checkpoint_by_a_recall_that_is_not_measured_is_refused_before_the_run(tmp_path, capsys):
    held_out = ("--data.protocol.val_fraction", "0.3", "--data.protocol.label_fraction", "0.1")
    assert fgssl("fit", tmp_path, *held_out, "--retrieval.ks", "[2, 4]") == 2
    said = capsys.readouterr().err
    assert "checkpoint.monitor is val/recall@1, and retrieval.ks is [2, 4]. Add 1 to --retrieval.ks, or" in said
    assert not (tmp_path / "maskcon_digits").exists()


def test_commands_and_help(capsys):
    assert main([]) == 0
    assert "fgssl fit --config maskcon_digits" in capsys.readouterr().out
    assert main(["fitt"]) == 2
    assert "Did you mean 'fit'?" in capsys.readouterr().err
    assert main(["fit"]) == 2
    assert "no data set is named" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--help", "checkpoint"])
    assert stop.value.code == 0
    assert "--checkpoint.every_n_train_steps" in capsys.readouterr().out


def test_print_config_needs_no_data(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FGSSL_DATA", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", CARS, "--print_config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["tau"] == 0.1


def test_missing_data_and_help_are_said_before_torch_is_loaded(tmp_path):
    code = (
        "import sys; from fgssl.cli.main import main; "
        f"status = main(['fit', '--config', {CARS!r}, '--data.dataset.root', {str(tmp_path)!r}]); main(['--help']); "
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 2
    for word in ("cars_train", "devkit/cars_train_annos.mat", str(tmp_path), "Kaggle", "FGSSL_DATA"):
        assert word in done.stderr


def test_wandb_offline_without_an_account(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = fit(tmp_path, "wandb", "--logger", "wandb", epochs=1)
    assert list((run / "wandb").glob("offline-run-*/*.wandb"))
    assert rows(run)


def test_queries_against_a_train_gallery(run, tmp_path):
    """Equal to the metrics of two sets embedded by hand; no row of the gallery is excluded."""
    from fgssl.data.datamodule import DataModule
    from fgssl.data.datasets import ALL
    from fgssl.data.protocols import Protocol
    from fgssl.data.views import PairViews
    from fgssl.metrics import retrieval_metrics

    flags = ("--run.name", "g", "--retrieval.gallery", "train", "--retrieval.grid", "2", "--ckpt_path", str(run))
    assert fgssl("test", tmp_path, *flags) == 0
    said = results(tmp_path / "maskcon_digits" / "g")
    assert said["gallery"] == "train"

    from fgssl.methods.maskcon import MaskCon
    from fgssl.nn.backbones import Backbone

    options = {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8], "stem_width": 32, "zero_init_last": False}
    method = MaskCon(Backbone("resnet18", options=options), dim=64, hidden=128, memory=32, num_coarse=3).eval()
    method.load_state_dict(weights(run))
    half = (0.5, 0.5, 0.5)
    data = DataModule(
        ALL["digits"](), Protocol(label_fraction=0.05), PairViews("digits", 32), num_workers=0, mean=half, std=half
    )
    sets = []
    with torch.no_grad():
        for loader in (data.test_dataloader(), data.gallery_loader()):
            batches = [data.on_after_batch_transfer(batch, 0) for batch in loader]
            sets += [torch.cat([method.embed(b.views[0]) for b in batches]), torch.cat([b.fine for b in batches])]
    queries, labels, gallery, gallery_labels = sets
    expected = retrieval_metrics(queries, labels, ks=(1, 10), gallery=gallery, gallery_labels=gallery_labels)
    for name, value in expected.items():
        assert said["metrics"][f"test/{name}"] == pytest.approx(value, rel=1e-4), name


def test_retrieval_as_cmds_script_measures_it(tmp_path):
    assert fgssl("test", tmp_path, "--run.name", "run", "--retrieval.extra", "[cmd_code]") == 0
    metrics = results(tmp_path / "maskcon_digits" / "run")["metrics"]
    assert 0 < metrics["test/cmd_code_map"] <= 1
    assert metrics["test/cmd_code_rank1"] <= metrics["test/cmd_code_rank5"]
