"""Metric learning as a LightningModule: embeddings, losses with weights, frozen epochs, optimiser, checkpoints."""

import importlib
from dataclasses import replace

import pytest
import torch
from jsonargparse.typing import registered_type_handlers
from lightning.pytorch import Callback
from torch import nn

from fgssl.data.views import SingleView
from fgssl.errors import UserError
from fgssl.losses.proxies import proxy_nca_pp
from fgssl.methods import MetricLearning, arguments
from fgssl.nn.backbones import Backbone
from fgssl.nn.dml import Spec
from fgssl.optim import Group, Optim
from tests.tiny import BACKBONE, blob_loader, tiny_trainer

NETWORK = replace(BACKBONE, options={**BACKBONE.options, "stem_width": 4})
LOSSES = ["ProxyAnchor", "ProxyNCApp", "ArcFace", "SoftTriple", "CrossEntropy", "MultiSimilarity"]


def metric_learning(dml_loss="ProxyNCApp", **options) -> MetricLearning:
    torch.manual_seed(0)
    settings = {"dim": 6, "train_classes": [0, 1, 2, 3], "freeze_bn": False}
    settings["optim"] = Optim(name="adam", lr=1e-2, warmup=0)
    return MetricLearning(**({"backbone": NETWORK, "dml_loss": dml_loss} | settings | options))


def one_batch():
    batch = next(iter(blob_loader()))
    return batch._replace(views=batch.views[:1])


class Loader:
    """The blobs' batches with one view."""

    def __init__(self):
        self.loader = blob_loader(batch_size=8)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return (batch._replace(views=batch.views[:1]) for batch in self.loader)


def weights_of(method: MetricLearning) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in method.named_parameters()}


class Weights(Callback):
    """The weights before the first epoch and after each."""

    def on_train_start(self, trainer, method):
        self.seen = [weights_of(method)]

    def on_train_epoch_end(self, trainer, method):
        self.seen.append(weights_of(method))


def moved(before: dict, after: dict) -> set[str]:
    """First two names of the weights that differ: ``student.backbone``."""
    return {".".join(name.split(".")[:2]) for name in after if not torch.equal(before[name], after[name])}


# ---- the step -------------------------------------------------------------------------------------------------------


def test_step_is_the_loss_of_unit_embeddings_and_positions_among_the_training_classes():
    method, batch = metric_learning(train_classes=[0, 1, 2, 7], freeze_bn=True).train(), one_batch()
    batch = batch._replace(fine=torch.tensor([0, 7, 2, 2, 1, 7, 0, 1]))
    result = method.step(batch)
    z_BD = nn.functional.normalize(method.student.head(method.student.backbone(batch.views[0])), dim=1)
    expected = proxy_nca_pp(z_BD, torch.tensor([0, 3, 2, 2, 1, 3, 0, 1]), method.dml_loss.proxies)
    torch.testing.assert_close(result.loss, expected)
    assert result.parts == {}
    result.loss.backward()
    assert all(weight.grad is not None for weight in method.parameters())


def test_embeddings_keep_their_length_on_request_and_are_evaluated_at_unit_length():
    method, batch = metric_learning("CrossEntropy", normalize=False, freeze_bn=True).train(), one_batch()
    with torch.no_grad():
        method.dml_loss.classifier.weight.normal_()
        plain = method.student.head(method.student.backbone(batch.views[0]))
        logits = method.dml_loss.classifier(plain)
    expected = nn.functional.cross_entropy(logits, batch.fine, label_smoothing=0.1)
    torch.testing.assert_close(method.step(batch).loss, expected)
    method.eval()
    z_BD = method.embed(batch.views[0])
    torch.testing.assert_close(z_BD.norm(dim=1), torch.ones(len(z_BD)))


@pytest.mark.parametrize("norm", [None, "layer", "batch"])
@pytest.mark.parametrize("dim", [6, None])
def test_features_are_normalised_before_the_embedding_layer(norm, dim):
    method, (images,) = metric_learning(dim=dim, feature_norm=norm).train(), one_batch().views
    h_BF = 5 + 3 * method.student.backbone(images).detach()
    along = {None: None, "layer": 1, "batch": 0}[norm]
    x_BF = h_BF
    if along is not None:
        centred = h_BF - h_BF.mean(along, keepdim=True)
        x_BF = centred / (h_BF.var(along, unbiased=False, keepdim=True) + 1e-5).sqrt()
    linear = next((part for part in method.student.head.modules() if isinstance(part, nn.Linear)), nn.Identity())
    assert (dim is None) == isinstance(linear, nn.Identity)
    z_BD = nn.functional.normalize(linear(x_BF), dim=1)
    torch.testing.assert_close(method.student.project(h_BF), z_BD, rtol=1e-4, atol=1e-5)
    assert method.dml_loss.proxies.shape == (4, z_BD.shape[1])


def test_step_loss_is_float32_under_autocast():
    for name in LOSSES:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = metric_learning(name).train().step(one_batch()).loss
        assert loss.dtype == torch.float32, name


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_the_network_and_its_own_weights(name):
    method, watch = metric_learning(name), Weights()
    tiny_trainer(max_epochs=1, callbacks=[watch]).fit(method, Loader())
    owners = {".".join(place.split(".")[:2]) for place, _ in method.named_parameters()}
    assert moved(watch.seen[0], watch.seen[1]) == owners


def test_proxies_form_a_parameter_group_with_the_rate_of_their_own():
    optim = Optim(name="adamw", lr=1e-4, weight_decay=1e-4, warmup=0, groups=[Group("dml_loss", 1e-2, 1e-4)])
    method = metric_learning("ProxyAnchor", optim=optim)
    rest, proxies = optim.build(method, 8).param_groups
    assert (rest["lr"], proxies["lr"], proxies["weight_decay"]) == (1e-4, 1e-2, 1e-4)
    assert [weight is method.dml_loss.proxies for weight in proxies["params"]] == [True]
    assert len(rest["params"]) + 1 == len(list(method.parameters()))


def test_backbone_stays_as_it_starts_in_the_frozen_epochs():
    optim = Optim(name="adamw", lr=1e-2, weight_decay=0.1, warmup=0)  # weight decay would move it too
    method, watch = metric_learning(frozen_epochs=2, optim=optim), Weights()
    tiny_trainer(max_epochs=3, callbacks=[watch]).fit(method, Loader())
    start, *after = watch.seen
    assert [moved(before, now) for before, now in zip(watch.seen, after, strict=False)] == [
        {"student.head", "dml_loss.proxies"},
        {"student.head", "dml_loss.proxies"},
        {"student.backbone", "student.head", "dml_loss.proxies"},
    ]
    with pytest.raises(UserError, match="frozen_epochs"):
        metric_learning(frozen_epochs=-1)


# ---- views and checkpoints ------------------------------------------------------------------------------------------


def test_default_view_is_one():
    method = metric_learning()
    method.check_views(SingleView(12).crops)
    with pytest.raises(UserError, match="MetricLearning needs 1"):
        method.check_views(SingleView(12).crops * 2)


def test_checkpoint_is_loaded_from_python_without_the_command_line(tmp_path, monkeypatch):
    """A loss by its short name is no import path: that the parser takes it was said by the command line alone."""
    method = metric_learning(Spec("SoftTriple", {"centers_per_class": 2}), feature_norm="layer")
    trainer = tiny_trainer(max_epochs=1)
    trainer.fit(method, Loader())
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    monkeypatch.delitem(registered_type_handlers, Spec)
    importlib.reload(arguments)
    loaded = MetricLearning.load_from_checkpoint(tmp_path / "one.ckpt")
    assert (loaded.variant, loaded.dml_loss.centers.shape) == ("SoftTriple", (4, 2, 6))
    for name, value in method.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_backbone_is_an_argument_by_place():
    assert MetricLearning(Backbone("test_resnet"), dim=4).student.backbone.num_features > 4
