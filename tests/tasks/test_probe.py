"""The linear probe: it is logistic regression, on the features of the network that was asked for."""

import csv
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from fgssl.checkpoint import read_backbone
from fgssl.cli.main import main
from fgssl.data.datamodule import DataModule
from fgssl.data.datasets.digits import Digits
from fgssl.data.views import Crop, Views
from fgssl.errors import UserError
from fgssl.methods import OBDSD
from fgssl.nn.backbones import Backbone
from fgssl.optim import Optim
from fgssl.tasks import Probe
from tests.cli.test_cli import fit as fit_maskcon
from tests.cli.test_cli import results
from tests.tasks.test_finetune import Unlabelled, data, fit, pretrained
from tests.tiny import BACKBONE

pytestmark = pytest.mark.slow

FAST = Optim(name="adam", lr=2e-3, weight_decay=0.0, warmup=0)


def probe(backbone: Backbone = BACKBONE, **options) -> Probe:
    torch.manual_seed(0)
    return Probe(backbone, **({"num_fine": 4, "optim": FAST} | options))


# ---- it is logistic regression --------------------------------------------------------------------------------------


class Pixels(nn.Module):
    """Pixels of one channel, averaged over 4 x 4: the published 8 x 8 digits."""

    num_features = 64

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images[:, 0], 4).flatten(1)


@dataclass(frozen=True)
class PixelBackbone(Backbone):
    def build(self) -> Pixels:
        return Pixels()


def pixels_of(index, rows: np.ndarray) -> np.ndarray:
    return index.pixels[rows][..., 0].reshape(len(rows), 8, 4, 8, 4).mean(axis=(2, 4)).reshape(len(rows), 64) / 255


def test_top1_on_raw_pixels_is_that_of_scikit_learns_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    datamodule = DataModule(
        Digits(), views=Views([Crop(32)]), batch_size=128, num_workers=0, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    optim = Optim(name="sgd", lr=0.5, weight_decay=0.0, warmup=0)
    method = probe(PixelBackbone(), blocks=1, augment=False, num_fine=10, optim=optim)
    trainer = fit(method, datamodule, epochs=40)
    (metrics,) = trainer.test(method, datamodule, verbose=False)

    parts = datamodule.parts
    theirs = LogisticRegression(max_iter=5000, C=10).fit(
        pixels_of(parts.index, parts.train), parts.index.fine[parts.train]
    )
    expected = theirs.score(pixels_of(parts.index, parts.test), parts.index.fine[parts.test])
    assert expected > 0.95
    assert metrics["test/top1"] == pytest.approx(expected, abs=0.01)
    assert metrics["test/top5"] > 0.99


def weights(method: Probe) -> dict[str, torch.Tensor]:
    return dict(method.classifier.named_parameters())


def test_features_computed_once_train_the_same_classifier():
    """The run with augmentation uses the evaluation view too: whole images of 8 px, no flip."""
    once, each = probe(augment=False), probe(augment=True)
    fit(once, data(), epochs=3)
    calls = []
    each.backbone.register_forward_hook(lambda *_: calls.append(1))
    fit(each, data(), epochs=3)
    for name, value in weights(each).items():
        torch.testing.assert_close(weights(once)[name], value)
    assert len(calls) == 3 * 4

    once.backbone.register_forward_hook(lambda *_: calls.append(2))
    datamodule = data()
    fit(once, datamodule, epochs=3)
    assert calls.count(2) == 4, "one pass over 32 images in batches of 8"
    assert datamodule.train_dataloader().dataset[np.array([[0, 0]])].views[0].ndim == 4, "images again, afterwards"


def test_only_the_classifier_trains():
    method = probe()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    fit(method, data())
    changed = {name for name, value in method.state_dict().items() if not value.equal(before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    assert method.classifier.in_features == 4 + 4 + 8 + 8


def test_the_recipe_is_the_papers():
    optim = Probe(BACKBONE, num_fine=4).optim
    assert (optim.name, optim.momentum, optim.weight_decay, optim.schedule) == ("sgd", 0.9, 0, "cosine")
    assert optim.peak(256) == 1e-3
    assert optim.peak(1024) == 4e-3


def test_features_are_scaled_to_unit_length_on_demand():
    images = torch.randn(3, 3, 32, 32)
    method, plain = (probe(blocks=1, unit_length=unit).eval() for unit in (True, False))
    plain.load_state_dict(method.state_dict())
    features = plain.embed(images)
    torch.testing.assert_close(method.embed(images), features / features.norm(dim=1, keepdim=True))


# ---- which network --------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of MaskCon; teacher and student differ."""
    path = pretrained(tmp_path)
    saved = torch.load(path)
    state = saved["state_dict"]
    for name in state:
        if name.startswith("key.backbone") and state[name].is_floating_point():
            state[name] += 1
    torch.save(saved, path)
    return path


def started(method: Probe) -> dict[str, torch.Tensor]:
    fit(method, data(), max_steps=1)
    return method.backbone.state_dict()


def test_the_teacher_is_probed_where_there_is_one(checkpoint):
    teacher, student = (read_backbone(checkpoint, network) for network in ("teacher", "student"))
    for asked, expected in ((None, teacher), ("teacher", teacher), ("student", student)):
        ours = started(probe(init_from=checkpoint, network=asked))
        assert all(ours[name].equal(value) for name, value in expected.items())
    assert not teacher["conv1.weight"].equal(student["conv1.weight"])


def test_a_teacher_that_follows_by_epochs_is_not_probed(tmp_path):
    method = OBDSD(BACKBONE, train_classes=[0, 1], freeze_bn=False)
    torch.nn.init.normal_(method.teacher.backbone.conv1.weight)
    saved = {"state_dict": method.state_dict()}
    method.on_save_checkpoint(saved)
    torch.save(saved, tmp_path / "obd_sd.ckpt")
    ours = started(probe(init_from=str(tmp_path / "obd_sd.ckpt")))
    assert ours["conv1.weight"].equal(method.student.backbone.conv1.weight)


def test_a_checkpoint_without_a_teacher_is_refused_when_its_teacher_is_asked_for(tmp_path):
    path = pretrained(tmp_path, variant="supce")
    assert started(probe(init_from=path))
    with pytest.raises(UserError, match=r"maskcon.ckpt.*MaskCon, has no teacher"):
        fit(probe(init_from=path, network="teacher"), data())
    with pytest.raises(UserError, match="--network teacher needs a checkpoint"):
        probe(network="teacher")


def test_data_without_labels_are_refused():
    with pytest.raises(UserError, match="model Probe needs labels"):
        probe(num_fine=0)
    dataset = Unlabelled()
    dataset.partial = True
    with pytest.warns(UserWarning, match="classes without"), pytest.raises(UserError, match="Probe needs a label"):
        fit(probe(), data(dataset))


# ---- the command ----------------------------------------------------------------------------------------------------

QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")
SHORT = ("--trainer.max_epochs", "2", "--data.batch_size", "16", "--data.eval_batch_size", "256", *QUIET)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit_maskcon(tmp_path_factory.mktemp("runs"), "run", "--run.paper", "maskcon, Table 6", epochs=1)


def test_a_run_is_probed_resumed_and_compared(run, capsys):
    share = ("--data.protocol.label_fraction", "0.2", "--data.protocol.val_fraction", "0.1")
    line = ("probe", "--ckpt_path", str(run), "--augment", "false", *share, *SHORT)
    assert main([*line]) == 0
    folder = run.with_name("run_probe")
    said = results(folder)
    assert said["status"] == "finished"
    assert (said["method"], said["variant"], said["epochs"]) == ("Probe", "MaskCon", 2)
    assert {"test/top1", "test/top5", "val/top1"} <= said["metrics"].keys()
    assert {"command", "git", "versions"} <= said.keys()

    index, protocol = Digits().index(), DataModule(Digits()).protocol
    kept = replace(protocol, label_fraction=0.2, val_fraction=0.1).apply(index)
    held = replace(protocol, label_fraction=1.0, val_fraction=0.1).apply(index)
    assert said["data"]["train"] == kept.describe()["train"]  # the same rows, by their hash
    counts, most = np.bincount(index.fine[kept.train]), np.bincount(index.fine[held.train])
    assert counts.tolist() == np.round(0.2 * most).tolist(), "a fifth of each class"
    assert said["data"]["test"]["images"] == 450, "all labels in the test"

    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["run"]["paper"] == "maskcon, Table 6"
    data = config["data"]
    assert (data["eval_size"], data["eval_resize"], data["views"]["init_args"]["size"]) == (32, 37, 32)
    assert data["eval_resample"] == "bicubic"
    assert config["model"]["init_args"]["optim"]["reference_batch"] == 256
    assert data["mean"] == [0.5, 0.5, 0.5], "the run's own"

    assert main([*line, "--run.resume", "true", "--trainer.max_epochs", "3"]) == 0
    assert results(folder)["epochs"] == 3
    assert main([*line]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main(["compare", str(run.parent), "--metric", "top1", "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    (row,) = (row for row in rows if row["method"] == "Probe/MaskCon")
    assert float(row["mean"]) == results(folder)["metrics"]["test/top1"]
    assert row["paper"] == "", "the table has no linear probes"


def test_public_and_untrained_networks_are_probed(tmp_path):
    root = ("--run.root", str(tmp_path), "--data.protocol.label_fraction", "0.05", "--data.num_workers", "0")
    public = ("--model", "timm/resnet10t", "--pretrained", "false", "--data", "digits", "--data.eval_size", "32")
    assert main(["probe", *public, "--augment", "false", "--recipe", "lcr", *root, *SHORT]) == 0
    said = results(tmp_path / "probe" / "resnet10t_random_digits_lcr")
    assert said["variant"] == "timm/resnet10t (random weights)"
    config = yaml.safe_load((tmp_path / "probe" / "resnet10t_random_digits_lcr" / "config.yaml").read_text())
    data = config["data"]
    assert (data["eval_size"], data["eval_resize"], data["views"]["init_args"]["size"]) == (32, 37, 32)
    assert data["mean"] == [0.485, 0.456, 0.406]
    assert data["eval_resample"] == "bilinear"
    model = config["model"]["init_args"]
    assert (model["blocks"], model["unit_length"]) == (1, True)
    optim = Optim(**model["optim"])
    assert (optim.name, optim.momentum, optim.weight_decay, optim.warmup) == ("sgd", 0.9, 0, 0)
    assert optim.peak(16) == optim.peak(256) == 30
    assert (optim.schedule, optim.milestones, optim.gamma) == ("steps", [60, 80], 0.1)

    assert main(["probe", "--config", "experiments/maskcon_digits.yaml", *root, *SHORT]) == 0  # with its crops
    said = results(tmp_path / "probe" / "untrained_digits")
    assert said["variant"] == "MaskCon (untrained)"
    assert said["metrics"]["test/top5"] >= said["metrics"]["test/top1"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no network is named"),
        (["--ckpt_path", "absent"], "no checkpoint at"),
        (["--model", "timm/resnet18", "--data", "digitts"], "Did you mean 'digits'?"),
        (["--model", "timm/resnet81", "--data", "digits", "--pretrained", "false"], "Did you mean 'resnet18'?"),
        (["--model", "timm/resnet18", "--data", "digits", "--network", "teacher"], "chooses a network of a checkpoint"),
        (["--model", "timm/resnet18", "--data", "digits", "--network", "techer"], "Did you mean 'teacher'?"),
        (["--model", "timm/resnet18", "--data", "digits", "--block", "2"], "unknown option --block. Did you mean"),
        (["--model", "timm/resnet18", "--data", "digits", "--blocks", "0", "--pretrained", "false"], "blocks is 0"),
    ],
)
def test_mistakes_are_named(arguments, message, tmp_path, capsys):
    assert main(["probe", *arguments, *(["--run.root", str(tmp_path)] if arguments else [])]) == 2
    assert message in capsys.readouterr().err


# ---- in a comparison -------------------------------------------------------------------------------------------------


def test_seeds_of_one_method_are_one_row_and_other_settings_another(tmp_path):
    from fgssl.report.compare import compare
    from fgssl.report.runs import read_runs
    from tests.report.test_compare import write_run

    for name, seed, tau in (("a", 0, 0.1), ("b", 1, 0.1), ("c", 0, 0.5)):
        run = write_run(tmp_path, name, seed=seed, tau=tau)
        own = write_run(tmp_path, f"{name}_probe", seed=seed, metrics={"test/top1": 0.5})
        said = json.loads((own / "results.json").read_text()) | {"method": "Probe", "variant": "MaskCon"}
        (own / "results.json").write_text(json.dumps(said))
        config = yaml.safe_load((own / "config.yaml").read_text())
        config["model"] = {"class_path": "fgssl.methods.Probe", "init_args": {"init_from": str(run)}}
        (own / "config.yaml").write_text(yaml.safe_dump(config))
    runs, _ = read_runs([str(tmp_path)])
    (table,), notes = compare(runs, ["top1"])
    probes = [row for row in table.rows if row.method == "Probe/MaskCon"]
    assert sorted((len(row.runs), row.settings["start.model.tau"]) for row in probes) == [(1, 0.5), (2, 0.1)]
    assert not notes
