"""Fine-tuning: it learns, starts from what it is told to, and refuses what does not fit."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from fgssl.callbacks.online import evaluating
from fgssl.callbacks.retrieval import Retrieval
from fgssl.checkpoint import read_backbone
from fgssl.cli.main import main
from fgssl.data.datamodule import DataModule
from fgssl.data.datasets.base import DataSet
from fgssl.data.datasets.folder import Folder
from fgssl.data.index import Index
from fgssl.data.protocols import Protocol
from fgssl.data.views import Crop, Views
from fgssl.errors import UserError
from fgssl.loggers import MetricsLogger
from fgssl.losses.classification import binary_cross_entropy
from fgssl.methods import MLS, OBDSD, MaskCon
from fgssl.optim import Optim
from fgssl.tasks import Finetune
from tests import trees
from tests.methods.runs import ROOT, SMALL
from tests.tiny import BACKBONE, tiny_trainer

pytestmark = pytest.mark.slow

QUICK = Optim(name="adam", lr=3e-2, warmup=0, weight_decay=0)


class Colours(DataSet):
    """Images of four colours, one class each; 32 training and 32 test images.

    With ``several``: a class in each of the four quarters of the image, 255 where the number of the image is odd.
    """

    name = "colours"

    def __init__(self, several: bool = False):
        super().__init__()
        self.several = several

    def _read(self) -> Index:
        rng, count = np.random.default_rng(0), 64
        fine = np.arange(count) % 4
        colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 40]])
        pixels, targets = np.full((count, 8, 8, 3), 40), None
        if self.several:
            shown = rng.random((count, 4)) < 0.5
            quarters = [(slice(0, 4), slice(0, 4)), (slice(0, 4), slice(4, 8)), (slice(4, 8), slice(0, 4))]
            for label, (y, x) in enumerate([*quarters, (slice(4, 8), slice(4, 8))]):
                pixels[:, y, x][shown[:, label]] = colours[label]
            targets = shown.astype(np.uint8)
            targets[np.arange(1, count, 2), 0] = 255
        else:
            pixels[:] = colours[fine][:, None, None]
        return Index(
            name=self.name,
            paths=np.array([str(row) for row in range(count)]),
            fine=np.full(count, -1) if self.several else fine,
            fine_names=("a", "b", "c", "d"),
            split=np.array(["train"] * 32 + ["test"] * 32),
            pixels=(pixels + rng.integers(-30, 30, pixels.shape)).clip(0, 255).astype(np.uint8),
            targets=targets,
        )


def data(dataset: DataSet | None = None, **options) -> DataModule:
    settings = {"views": Views([Crop(8, scale=(1.0, 1.0), flip=0)]), "batch_size": 8, "num_workers": 0}
    return DataModule(dataset or Colours(), **(settings | options))


def finetune(**options) -> Finetune:
    torch.manual_seed(0)
    return Finetune(**({"backbone": BACKBONE, "num_fine": 4, "optim": QUICK} | options))


def fit(method: Finetune, datamodule: DataModule, *, epochs: int = 1, callbacks: tuple = (), **options):
    trainer = tiny_trainer(max_epochs=epochs, callbacks=list(callbacks), **options)
    trainer.fit(method, datamodule)
    return trainer


def measured(method: Finetune, datamodule: DataModule) -> dict[str, float]:
    (metrics,) = tiny_trainer(callbacks=[Retrieval(ks=[1])]).test(method, datamodule, verbose=False)
    return metrics


def pretrained(tmp_path, **options) -> str:
    """A checkpoint of MaskCon as a run writes it; its backbone differs from any initialisation in these tests."""
    torch.manual_seed(1)
    settings = {"backbone": BACKBONE, "memory": 8, "dim": 4, "hidden": 8, "num_coarse": 2}
    method = MaskCon(**(settings | options))
    checkpoint = {"state_dict": method.state_dict()}
    method.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "maskcon.ckpt")
    return str(tmp_path / "maskcon.ckpt")


# ---- it learns ------------------------------------------------------------------------------------------------------


def test_finetune_learns_separable_classes_completely():
    method, datamodule = finetune(), data()
    before = measured(method, datamodule)["test/top1"]
    fit(method, datamodule, epochs=25)
    after = measured(method, datamodule)
    assert before < 0.6
    assert after["test/top1"] == 1
    assert after["test/recall@1"] > 0.9  # of the features, beside it


def test_finetune_learns_several_labels_an_image_and_leaves_retrieval_out():
    method, datamodule = finetune(backbone=replace(BACKBONE, pooling="avg+max")), data(Colours(several=True))
    before = measured(method, datamodule)
    fit(method, datamodule, epochs=45)
    after = measured(method, datamodule)
    assert before["test/map_noninterpolated"] < 0.8
    assert set(after) == {"test/map_11point", "test/map_allpoint", "test/map_noninterpolated"}
    assert all(value == pytest.approx(1, abs=0.02) for value in after.values())


def test_difficult_objects_add_nothing_to_the_loss():
    logits = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[1, 255], [0, 1], [255, 0]], dtype=torch.uint8)
    p = logits.sigmoid()
    expected = -(p[0, 0].log() + (1 - p[1, 0]).log() + p[1, 1].log() + (1 - p[2, 1]).log()) / 6
    loss = binary_cross_entropy(logits, targets)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert ((gradient == 0) == (targets == 255)).all()


def test_a_frozen_backbone_keeps_its_weights_and_statistics():
    method, datamodule = finetune(frozen=True), data()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    fit(method, datamodule)
    changed = {name for name, value in method.state_dict().items() if not value.equal(before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


# ---- where it starts ------------------------------------------------------------------------------------------------


def started(method: Finetune, datamodule: DataModule) -> dict[str, torch.Tensor]:
    """The backbone at the first step, with a learning rate too small to change it."""
    method.optim = replace(QUICK, lr=1e-30)
    fit(method, datamodule, max_steps=1)
    return dict(method.backbone.named_parameters())


def test_finetune_starts_from_the_trained_network_not_from_the_teacher(tmp_path):
    path = pretrained(tmp_path)
    saved = torch.load(path)
    state = saved["state_dict"]
    for name in state:  # a teacher that is not the student
        if name.startswith("key.backbone") and state[name].is_floating_point():
            state[name] += 1
    torch.save(saved, path)
    ours, scratch = started(finetune(init_from=path), data()), started(finetune(), data())
    for name, weight in ours.items():
        torch.testing.assert_close(weight, state[f"query.backbone.{name}"], rtol=0, atol=1e-20)
    assert not ours["conv1.weight"].allclose(scratch["conv1.weight"])


def test_every_methods_student_is_found(tmp_path):
    methods = (
        ("query", MaskCon(BACKBONE, memory=8, num_coarse=2)),
        ("query", MLS(BACKBONE, memory=8)),
        ("student", OBDSD(BACKBONE, train_classes=[0, 1], freeze_bn=False)),
        ("own", finetune()),
    )
    for name, method in methods:
        checkpoint = {"state_dict": method.state_dict()}
        method.on_save_checkpoint(checkpoint)
        torch.save(checkpoint, tmp_path / "any.ckpt")
        network = method.backbone if name == "own" else getattr(method, name).backbone
        weights = read_backbone(str(tmp_path / "any.ckpt"))
        assert weights.keys() == network.state_dict().keys()
        assert all(value.equal(weights[key]) for key, value in network.state_dict().items())


def test_a_checkpoint_that_does_not_fit_is_refused_by_name(tmp_path):
    wider = replace(BACKBONE, options={**BACKBONE.options, "channels": [4, 4, 8, 16]})
    path = pretrained(tmp_path, backbone=wider)
    with pytest.raises(UserError, match=r"maskcon.ckpt does not fit the model: layer4.*there and .* here"):
        fit(finetune(init_from=path), data())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": {"backbone.conv1.weight": torch.zeros(1)}}, "was not written by fgssl"),
        (
            {"state_dict": {"head.weight": torch.zeros(1)}, "method": "Other"},
            "a checkpoint of Other, has no",
        ),
        ("damaged", "not a checkpoint that can be loaded safely"),
        (None, "--model.init_from: no checkpoint at"),
    ],
)
def test_a_wrong_file_is_refused_by_name(content, said, tmp_path):
    path = tmp_path / "wrong.ckpt"
    if content == "damaged":
        path.write_bytes(b"no checkpoint")
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=f"(?s)(wrong.ckpt.*{said}|{said}.*wrong.ckpt)"):
        fit(finetune(init_from=str(path)), data())


def test_a_resumed_run_needs_the_first_checkpoint_no_more(tmp_path):
    path = pretrained(tmp_path)
    whole = finetune(init_from=path)
    keep = ModelCheckpoint(tmp_path / "kept", save_last=True)
    fit(whole, data(), epochs=1, callbacks=(keep,), enable_checkpointing=True)
    (tmp_path / "maskcon.ckpt").unlink()
    resumed = finetune(init_from=path)
    trainer = tiny_trainer(max_epochs=1)
    trainer.fit(resumed, data(), ckpt_path=tmp_path / "kept" / "last.ckpt", weights_only=True)
    assert all(value.equal(resumed.state_dict()[name]) for name, value in whole.state_dict().items())


# ---- what it needs --------------------------------------------------------------------------------------------------


def test_test_classes_that_do_not_train_are_refused():
    with pytest.raises(UserError, match="some test classes have no training image"):
        fit(finetune(), data(protocol=Protocol("zero_shot")))


def test_data_without_labels_are_refused():
    with pytest.raises(UserError, match="needs labels"):
        finetune(num_fine=0)


class Unlabelled(Colours):
    def _read(self) -> Index:
        index = super()._read()
        return replace(index, fine=np.where(index.fine == 0, -1, index.fine), fine_names=("a", "b", "c", "d"))


def test_rows_without_a_label_are_refused():
    dataset = Unlabelled()
    dataset.partial = True
    with pytest.warns(UserWarning, match="classes without"), pytest.raises(UserError, match="label for each training"):
        fit(finetune(), data(dataset))


class Mixed(Colours):
    """16 training, 16 validation and 32 test images, of which some rows have no label."""

    def __init__(self, *unlabelled: int):
        super().__init__()
        self.unlabelled = list(unlabelled)

    def _read(self) -> Index:
        index = super()._read()
        index.fine[self.unlabelled] = -1
        return replace(index, split=np.repeat(["train", "val", "test"], [16, 16, 32]))


def test_evaluated_images_without_a_label_are_left_out():
    method, datamodule = finetune(), data(Mixed(20, 25, 40, 50))
    trainer = fit(method, datamodule)
    assert "val/top1" in trainer.callback_metrics
    with evaluating(method):
        batches = [datamodule.on_after_batch_transfer(batch, 0) for batch in datamodule.test_dataloader()]
        right = torch.cat([method.classifier(method.embed(b.views[0])).argmax(dim=1) == b.fine for b in batches])
    assert 0 < int(right.sum()) < 30
    assert measured(method, datamodule)["test/top1"] == int(right.sum()) / 30


class Named(Colours):
    """The same images; ``names`` are those of their classes, in the order in which this data set numbers them."""

    def __init__(self, names: str):
        super().__init__()
        self.names = names

    def _read(self) -> Index:
        index = super()._read()
        kept = np.array([name in self.names for name in "abcd"])[index.fine]
        number = np.array([self.names.find(name) for name in "abcd"])
        columns = {name: getattr(index, name)[kept] for name in ("paths", "split", "pixels")}
        return replace(index, fine=number[index.fine[kept]], fine_names=tuple(self.names), **columns)


def test_classes_of_other_data_are_compared_by_their_names(tmp_path):
    fitted = finetune()
    fit(fitted, data(), epochs=25).save_checkpoint(tmp_path / "trained.ckpt")
    for names in ("abcd", "dcba", "bd"):
        trainer = tiny_trainer(callbacks=[Retrieval(ks=[1])])
        (metrics,) = trainer.test(finetune(), data(Named(names)), str(tmp_path / "trained.ckpt"), verbose=False)
        assert metrics["test/top1"] == 1, names


def test_without_a_known_class_there_is_no_accuracy(capsys):
    method = finetune()
    fit(method, data())
    method.classes = ("a", "b", "c", "e")
    with pytest.warns(UserWarning, match="No accuracy: colours has classes that the network was not trained on .d."):
        metrics = measured(method, data())
    assert "test/top1" not in metrics
    assert "test/recall@1" in metrics


def test_without_any_label_nothing_is_measured():
    method, datamodule = finetune(), data(Mixed(*range(16, 64)))
    assert not any(name.startswith("val/") for name in fit(method, datamodule).callback_metrics)
    assert measured(method, datamodule) == {}


def test_voc_validates_by_average_precision_and_keeps_the_best(tmp_path):
    root = trees.make_voc2007(tmp_path / "data")
    status = main(
        [
            "fit", "--config", str(ROOT / "experiments" / "finetune_voc07.yaml"), *SMALL,
            "--data.dataset.root", str(root), "--data.dataset.partial", "true", "--data.num_workers", "0",
            "--data.views.size", "32", "--data.protocol.label_fraction", "1", "--data.batch_size", "4",
            "--model.backbone.pretrained", "false", "--data.protocol.val_fraction", "0.5",
            "--run.root", str(tmp_path / "runs"), "--run.name", "voc", "--retrieval.grid", "2",
        ]
    )  # fmt: skip
    assert status == 0
    run = tmp_path / "runs" / "finetune_voc07" / "voc"
    assert (run / "checkpoints" / "best.ckpt").is_file()
    assert not (run / "retrieval.jpg").exists()
    with (run / "metrics.csv").open() as file:
        columns = csv.DictReader(file).fieldnames
    assert {"val/map_11point", "val/map_allpoint", "val/map_noninterpolated"} <= set(columns)
    assert not any("recall" in column for column in columns)


@pytest.mark.parametrize("several", [False, True], ids=["one label", "several labels"])
def test_predictions_are_the_most_probable_class_of_each_test_image(several, tmp_path, capsys):
    model, given = finetune(), data(Colours(several), eval_size=8)
    fit(model, given)
    trainer = tiny_trainer(logger=MetricsLogger(tmp_path))
    outputs = trainer.predict(model, datamodule=given)
    logits = torch.cat([output["logits"] for output in outputs])
    written = predicted(tmp_path)
    assert [row["path"] for row in written] == [str(row) for row in range(32, 64)]
    assert [row["class"] for row in written] == ["abcd"[best] for best in logits.argmax(dim=1)]
    probability = (logits.sigmoid() if several else logits.softmax(dim=1)).amax(dim=1)
    assert [float(row["probability"]) for row in written] == pytest.approx(probability.tolist(), abs=1e-4)
    assert f"predictions: {tmp_path / 'predictions.csv'}" in capsys.readouterr().out
    assert len(tiny_trainer().predict(model, datamodule=given)) == len(outputs)  # without a folder: returned alone


def predicted(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("several", [False, True], ids=["one label", "several labels"])
def test_new_images_are_predicted_as_classes_of_the_training(several, tmp_path):
    """A folder without labels and parts: all of its images, by the names that the checkpoint keeps."""
    trained = finetune()
    fit(trained, data(Colours(several), eval_size=8)).save_checkpoint(tmp_path / "trained.ckpt")
    for number in range(3):
        trees.write_image(tmp_path / "new" / f"{number}.png", number)
    given, model = data(Folder(str(tmp_path / "new")), eval_size=8), finetune(optim=Optim(name="sgd"))
    trainer = tiny_trainer(logger=MetricsLogger(tmp_path))
    (outputs,) = trainer.predict(model, datamodule=given, ckpt_path=str(tmp_path / "trained.ckpt"))
    assert [Path(row["path"]).name for row in predicted(tmp_path)] == ["0.png", "1.png", "2.png"]
    assert [row["class"] for row in predicted(tmp_path)] == ["abcd"[best] for best in outputs["logits"].argmax(dim=1)]
    probability = (outputs["logits"].sigmoid() if several else outputs["logits"].softmax(dim=1)).amax(dim=1)
    assert [float(row["probability"]) for row in predicted(tmp_path)] == pytest.approx(probability.tolist(), abs=1e-4)
