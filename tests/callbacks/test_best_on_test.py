"""BestOnTest: the best epoch on the test rows as an extra figure, beside the last epoch's."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from fgssl.callbacks.best_on_test import BestOnTest
from fgssl.callbacks.online import evaluating
from fgssl.callbacks.retrieval import Retrieval
from fgssl.errors import UserError
from fgssl.evaluation.embedding import embed_rows
from fgssl.metrics.clustering import clustering_metrics
from fgssl.metrics.retrieval import retrieval_metrics
from fgssl.metrics.structure import embedding_density, spectral_decay
from fgssl.optim import Optim
from tests.cli.test_cli import fit
from tests.methods.runs import assert_same_state, results
from tests.methods.test_obd_sd_method import digits, obd_sd
from tests.tiny import tiny_trainer

pytestmark = pytest.mark.slow

PLAIN = Optim(name="adam", lr=0.01, warmup=0, schedule="steps")


class EachEpoch(Callback):
    """Recall@1 and NMI of the labelled test rows after each epoch, measured by other means."""

    def __init__(self, data=None):
        self.data, self.recall, self.nmi = data or digits(), [], []

    def on_train_epoch_end(self, trainer, method):
        data = self.data
        with torch.no_grad(), evaluating(method):
            batches = [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]
            z = torch.cat([method.embed(batch.views[0]) for batch in batches])
        fine = torch.cat([batch.fine for batch in batches])
        z, fine = z[fine >= 0], fine[fine >= 0]
        self.recall.append(retrieval_metrics(z, fine, ks=[1])["recall@1"])
        self.nmi.append(clustering_metrics(z, fine)["nmi"])


class SpoilLast(Callback):
    """Leaves one dimension of the embedding after the last step: the last epoch is not the best."""

    def on_train_batch_end(self, trainer, method, *_):
        if trainer.current_epoch == trainer.max_epochs - 1:
            method.student.head.weight.data[1:] = 0


def train(*callbacks, epochs: int = 2, **options):
    method = obd_sd(train_classes=[0, 1, 2, 3, 4], optim=PLAIN)
    trainer = tiny_trainer(max_epochs=epochs, callbacks=[*callbacks, Retrieval(ks=[1], grid=0)], **options)
    trainer.fit(method, datamodule=digits())
    return trainer, method


def test_test_images_without_a_label_are_left_out():
    data, half = digits(), digits().parts.test[::2]
    data.parts.index.fine[half] = -1
    each, best = EachEpoch(data), BestOnTest(nmi=True)
    tiny_trainer(callbacks=[best, each]).fit(obd_sd(train_classes=[0, 1, 2, 3, 4], optim=PLAIN), datamodule=data)
    assert best.best["recall@1"][0] == pytest.approx(each.recall[0])
    assert best.best["nmi"][0] == pytest.approx(each.nmi[0])


def test_best_epoch_is_the_best_of_the_measured_ones_and_the_last_stays_the_result():
    each = EachEpoch()
    trainer, method = train(BestOnTest(nmi=True), each, SpoilLast())
    (metrics,) = trainer.test(method, digits(), verbose=False)
    for name, values in (("recall@1", each.recall), ("nmi", each.nmi)):
        assert metrics[f"test/best_epoch_{name}"] == max(values)
        assert metrics[f"test/best_epoch_of_{name}"] == 1 + values.index(max(values))
    assert metrics["test/recall@1"] == each.recall[-1] < max(each.recall)


def test_the_first_of_equal_epochs_is_the_best(monkeypatch):
    best = BestOnTest()
    monkeypatch.setattr(best, "_measure", lambda trainer, rows: {"recall@1": 0.5})
    train(best)
    assert best.best == {"recall@1": (0.5, 1)}


def test_structure_of_each_epoch_is_logged_and_has_no_best():
    best = BestOnTest(structure=True)
    trainer, method = train(best, epochs=1)
    logged = {name: value.item() for name, value in trainer.logged_metrics.items()}
    with torch.no_grad(), evaluating(method):
        rows = embed_rows(trainer, method, trainer.datamodule.test_dataloader())
    assert logged["test_each_epoch/density"] == embedding_density(rows.embedding, rows.fine)
    assert logged["test_each_epoch/spectral_decay"] == spectral_decay(rows.embedding)
    assert best.best.keys() == {"recall@1"}


def test_training_is_unchanged_bit_for_bit():
    _, watched = train(BestOnTest())
    _, alone = train(epochs=2)
    assert_same_state(watched.state_dict(), alone.state_dict())


def test_last_epoch_is_measured_whatever_the_interval():
    best, each = BestOnTest(every_n_epochs=2**10), EachEpoch()
    train(best, each, SpoilLast())
    assert best.best["recall@1"] == (each.recall[-1], 2)


@pytest.mark.parametrize("limit", [2, 0.1])
def test_limited_test_is_measured_on_the_same_rows(limit):
    trainer, method = train(BestOnTest(), epochs=1, limit_test_batches=limit)
    (metrics,) = trainer.test(method, digits(), verbose=False)
    assert metrics["test/best_epoch_recall@1"] == metrics["test/recall@1"]


def test_best_epoch_survives_a_resume(tmp_path):
    best = BestOnTest()
    train(best, ModelCheckpoint(tmp_path, filename="kept"), enable_checkpointing=True)
    loaded = BestOnTest()
    trainer = tiny_trainer(max_epochs=2, callbacks=[loaded], enable_checkpointing=False)
    method = obd_sd(train_classes=[0, 1, 2, 3, 4], optim=PLAIN)
    trainer.fit(method, datamodule=digits(), ckpt_path=tmp_path / "kept.ckpt", weights_only=True)
    assert loaded.best == best.best != {}


def test_best_on_test_goes_by_its_short_name_into_the_results(tmp_path):
    folder = fit(tmp_path, "run", "--trainer.callbacks+", "BestOnTest", "--data.eval_batch_size", "256", epochs=1)
    metrics = results(folder)["metrics"]
    assert metrics["test/best_epoch_recall@1"] == metrics["test/recall@1"]
    assert metrics["test/best_epoch_of_recall@1"] == 1
    plain = fit(tmp_path, "plain", "--data.eval_batch_size", "256", epochs=1)
    assert not any("best_epoch" in name for name in results(plain)["metrics"])


def test_no_test_rows_are_refused_before_training():
    with pytest.raises(UserError, match=r"limit_test_batches is 0"):
        train(BestOnTest(), limit_test_batches=0)


def test_bad_options_and_methods_without_embeddings_are_refused(monkeypatch):
    with pytest.raises(UserError, match="every_n_epochs"):
        BestOnTest(every_n_epochs=0)
    method = obd_sd()
    monkeypatch.setattr(type(method), "embeds", False)
    with pytest.raises(UserError, match="BestOnTest needs a method that embeds images"):
        tiny_trainer(callbacks=[BestOnTest()]).fit(method, datamodule=digits())
