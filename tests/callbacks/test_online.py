"""The online probe and k-NN: they learn, and the method trains as it would without them."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from torch import nn

from fgssl.callbacks import online
from fgssl.callbacks.collapse import Collapse
from fgssl.callbacks.online import OnlineKNN, OnlineProbe, evaluating
from fgssl.data.batch import Batch
from fgssl.data.datamodule import DataModule
from fgssl.data.protocols import Protocol
from fgssl.data.views import Crop, Views
from fgssl.errors import UserError
from fgssl.evaluation.embedding import Embeddings
from fgssl.evaluation.knn import knn_accuracy
from fgssl.methods import MaskCon
from fgssl.tasks import Finetune
from tests.cli.test_cli import fit
from tests.methods.runs import assert_same_state, results
from tests.tasks.test_finetune import QUICK, Colours, data, finetune
from tests.tiny import BACKBONE, blob_loader, tiny_trainer

pytestmark = pytest.mark.slow

NAMES = ("OnlineProbe", "OnlineKNN", "Collapse")


def pairs() -> DataModule:
    return data(views=Views([Crop(8), Crop(8)]), protocol=Protocol(val_fraction=0.25))


def train(*callbacks, epochs: int = 2) -> tuple[Trainer, MaskCon]:
    """A student, a teacher and a memory, BatchNorm and stochastic depth: much that a callback could disturb."""
    torch.manual_seed(0)
    backbone = replace(BACKBONE, options={**BACKBONE.options, "drop_path_rate": 0.3})
    method = MaskCon(backbone, variant="selfcon", memory=16, dim=4, hidden=8, optim=QUICK)
    trainer = tiny_trainer(max_epochs=epochs, callbacks=list(callbacks))
    trainer.fit(method, pairs())
    return trainer, method


def test_the_method_trains_bit_for_bit_as_without_them():
    watched, method = train(OnlineProbe(), OnlineKNN(k=5), Collapse(images=16))
    plain, alone = train()
    assert_same_state(method.state_dict(), alone.state_dict())
    assert watched.callback_metrics["train/loss"] == plain.callback_metrics["train/loss"]
    logged = {"train/online_top1", "val/online_top1", "val/knn_top1", "train/rankme", "train/feature_std"}
    assert logged <= watched.callback_metrics.keys()
    assert not logged & plain.callback_metrics.keys()


def test_the_knn_is_that_of_the_embeddings():
    trainer, method = train(OnlineKNN(k=5))
    (metrics,) = trainer.test(method, pairs(), verbose=False)
    embedded, datamodule = [], pairs()
    with torch.no_grad(), evaluating(method):
        for loader in (datamodule.test_dataloader(), datamodule.gallery_loader()):
            batches = [datamodule.on_after_batch_transfer(batch, 0) for batch in loader]
            embedded.append(torch.cat([method.embed(batch.views[0]) for batch in batches]))
            embedded.append(torch.cat([batch.fine for batch in batches]))
    assert metrics["test/knn_top1"] == knn_accuracy(*embedded, k=5)


def test_online_go_by_short_names_and_into_the_run_folder(tmp_path):
    flags = [flag for name in NAMES for flag in ("--trainer.callbacks+", name)]
    folder = fit(tmp_path, "run", *flags, "--data.eval_batch_size", "256", epochs=1)
    assert {"test/online_top1", "test/online_top5", "test/knn_top1", "train/rankme"} <= results(folder)[
        "metrics"
    ].keys()
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["OnlineProbe"]
    assert saved["classifier"]["weight"].shape[0] == 10


def test_the_knn_may_be_taken_at_some_epochs_alone():
    trainer, _ = train(OnlineKNN(k=5, every_n_epochs=3))
    assert "val/knn_top1" not in trainer.callback_metrics


class Colour(Finetune):
    """Its features, mean colours, stay as they are: nothing but the probe can have learnt them."""

    def embed(self, images):
        return images.mean(dim=(2, 3)).repeat(1, 3)[:, :8]

    def step(self, batch):
        return super().step(batch._replace(views=[batch.views[0].new_zeros(8, 3, 1, 1)]))


def test_the_probe_learns_separable_classes():
    method, probe = Colour(BACKBONE, num_fine=4), OnlineProbe(lr=0.3)
    trainer = tiny_trainer(max_epochs=10, callbacks=[probe])
    trainer.fit(method, data())
    metrics = trainer.test(method, data(), verbose=False)[0]
    assert metrics["test/online_top1"] == 1
    assert metrics["test/top1"] < 0.6
    assert probe.state_dict()["classifier"]["weight"].shape == (4, 8)


def test_the_probe_is_adam_on_the_cross_entropy_of_the_features(monkeypatch):
    features, labels, embed = [], [], online.embed_view
    monkeypatch.setattr(online, "embed_view", lambda *given: features.append(embed(*given)) or features[-1])
    watch = LambdaCallback(on_train_batch_end=lambda *given: labels.append(given[3].fine))
    probe = OnlineProbe(lr=0.02)
    train(probe, watch)
    alone = nn.Linear(features[0].shape[1], 4)
    nn.init.zeros_(alone.weight), nn.init.zeros_(alone.bias)
    adam = torch.optim.Adam(alone.parameters(), lr=0.02)
    for features_BF, labels_B in zip(features, labels, strict=True):
        adam.zero_grad()
        nn.functional.cross_entropy(alone(features_BF), labels_B).backward()
        adam.step()
    torch.testing.assert_close(probe.classifier.weight, alone.weight)
    assert len(labels) > 4


@pytest.mark.parametrize("callback", [OnlineProbe(), OnlineKNN(k=1)])
def test_evaluated_images_without_a_label_are_left_out(callback, monkeypatch):
    monkeypatch.setattr(
        "fgssl.callbacks.online.embed_rows", lambda *_: Embeddings(torch.eye(3), torch.arange(3), torch.arange(3))
    )
    callback.classifier = nn.Linear(3, 3, bias=False)
    callback.classifier.weight.data = torch.eye(3)
    datamodule = SimpleNamespace(gallery_loader=lambda: None)
    trainer = SimpleNamespace(validating=False, testing=True, state=SimpleNamespace(fn="test"), datamodule=datamodule)
    logged: dict[str, torch.Tensor] = {}
    method = SimpleNamespace(log_dict=lambda values, **_: logged.update(values))
    for fine, share in (([0, -1, 2, 1, -1], 2 / 3), ([-1] * 5, None)):
        outputs = {"embedding": torch.eye(3)[[0, 1, 2, 2, 1]], "fine": torch.tensor(fine), "index": torch.arange(5)}
        logged.clear()
        callback.evaluate(trainer, method, [outputs], "test")
        top1 = [float(value) for name, value in logged.items() if name.endswith("top1")]
        assert top1 == ([] if share is None else [share])


def test_the_training_accuracy_is_the_share_of_right_answers(monkeypatch):
    method, probe = Colour(BACKBONE, num_fine=4), OnlineProbe()
    trainer = tiny_trainer(max_epochs=1, callbacks=[probe])
    trainer.fit(method, data())
    answer, logged = 1, {}
    with torch.no_grad():
        probe.classifier.weight.zero_()
        probe.classifier.bias.copy_(nn.functional.one_hot(torch.tensor(answer), 4))
    monkeypatch.setattr(method, "log", lambda name, value, **_: logged.update({name: value}))
    batch = Batch([torch.rand(8, 3, 8, 8)], *[torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])] * 4)
    probe.on_train_batch_end(trainer, method, None, batch, 0)
    assert logged == {"train/online_top1": 2 / 8}


def test_a_resumed_run_goes_on_with_its_classifier(tmp_path):
    def run(**options) -> dict:
        probe, method = OnlineProbe(lr=3e-2), finetune()
        keep = ModelCheckpoint(tmp_path, filename="first", monitor=None, save_top_k=1)
        trainer = tiny_trainer(max_epochs=2, callbacks=[probe, keep], enable_checkpointing=True)
        trainer.fit(method, data(), weights_only=True, **options)
        return probe.state_dict()

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnlineProbe, "on_train_epoch_start", lambda *a: stop() if a[1].current_epoch else None)
        with pytest.raises(Stop):
            run()
    first = tmp_path / "first.ckpt"
    resumed, whole = run(ckpt_path=first), run()
    assert_same_state(resumed["classifier"], whole["classifier"])
    assert_same_state(resumed["optimizer"]["state"][0], whole["optimizer"]["state"][0])
    assert int(resumed["optimizer"]["state"][0]["step"]) == 8


# ---- several processes ----------------------------------------------------------------------------------------------

WORLD = 2


class Means(nn.Module):
    """A method, as far as the probe asks: each image's mean colour."""

    device, dtype = torch.device("cpu"), torch.float64

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3)).double()

    def log(self, *_, **__) -> None:
        """Nothing is logged."""


def trained_on(rank: int, world: int) -> dict[str, torch.Tensor]:
    """The classifier after three steps of eight images, of which this rank sees its share."""
    trainer = SimpleNamespace(
        precision_plugin=SimpleNamespace(forward_context=nullcontext), datamodule=SimpleNamespace(num_fine=4)
    )
    probe = OnlineProbe(lr=0.1)
    for batch in blob_loader(24, 8):
        rows = torch.arange(8).chunk(world)[rank]
        mine = Batch([batch.views[0][rows]], *(column[rows] for column in batch[1:]))
        probe.on_train_batch_end(trainer, Means(), {}, mine, 0)
    return probe.state_dict()["classifier"]


def one_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    torch.save(trained_on(rank, WORLD), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.ddp
def test_processes_train_the_same_classifier(tmp_path):
    mp.start_processes(one_rank, args=(str(tmp_path),), nprocs=WORLD, start_method="fork")
    expected = trained_on(0, 1)
    assert expected["weight"].abs().max() > 0.1
    for rank in range(WORLD):
        for name, value in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=0)


def test_each_module_returns_to_its_own_mode():
    network = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    network[1].eval()
    with evaluating(network):
        assert not any(module.training for module in network.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in network.modules()] == [True, True, False, False, False]


@pytest.mark.parametrize("callback", [OnlineProbe, OnlineKNN])
def test_data_without_one_label_an_image_are_refused(callback):
    trainer = tiny_trainer(callbacks=[callback()])
    with pytest.raises(UserError, match=f"{callback.__name__} needs one class label"):
        trainer.fit(finetune(), data(Colours(several=True)))


def test_wrong_options_are_refused():
    for make, message in (
        (lambda: OnlineProbe(lr=0), "lr is 0"),
        (lambda: OnlineKNN(k=0), "k is 0"),
        (lambda: OnlineKNN(temperature=0), "temperature is 0"),
    ):
        with pytest.raises(UserError, match=message):
            make()


def test_there_is_something_to_validate_or_it_is_said():
    trainer = tiny_trainer(callbacks=[OnlineKNN(k=50)])
    with pytest.warns(UserWarning, match="holds no validation rows out"):
        trainer.fit(finetune(), data())
    metrics = trainer.test(finetune(), data(), verbose=False)[0]
    assert 0 < metrics["test/knn_top1"] <= 1
