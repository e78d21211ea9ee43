"""MaskCon as a LightningModule: its step, its baselines, and what its callbacks do to it."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fgssl.errors import UserError
from fgssl.losses.contrastive import info_nce
from fgssl.losses.maskcon import soft_contrastive_loss, soft_targets
from fgssl.methods.maskcon import MaskCon
from fgssl.optim import Optim
from tests.tiny import BACKBONE, blob_loader, tiny_trainer

PLAIN = Optim(lr=0.1, warmup_epochs=0)


def maskcon(**options) -> MaskCon:
    torch.manual_seed(0)
    settings = {"dim": 6, "hidden": 8, "memory": 12, "num_coarse": 2, "num_fine": 4, "optim": PLAIN}
    return MaskCon(backbone=BACKBONE, **(settings | options))


def filled(method: MaskCon) -> MaskCon:
    generator = torch.Generator().manual_seed(1)
    keys = F.normalize(torch.randn(12, 6, generator=generator), dim=1)
    method.memory.enqueue(keys, torch.arange(12) % 2, torch.arange(12))
    return method


def one_batch():
    return next(iter(blob_loader()))


def test_step_is_the_papers():
    method, batch = filled(maskcon(tau=0.07, weight=0.8)), one_batch()
    result = method.step(batch)
    with torch.no_grad():
        q = F.normalize(method.query.head(method.query.backbone(batch.views[0])), dim=1)
        k = F.normalize(method.key.head(method.key.backbone(batch.views[1])), dim=1)
    z = soft_targets(k, method.memory.keys, batch.coarse, method.memory.labels, tau=0.07, weight=0.8)
    expected = soft_contrastive_loss(q, k, method.memory.keys, z, tau0=0.1)
    torch.testing.assert_close(result.loss, expected, rtol=1e-5, atol=1e-6)
    keys, labels, index = result.enqueue["memory"]
    torch.testing.assert_close(keys, k)
    assert torch.equal(labels, batch.coarse)
    assert torch.equal(index, batch.index)


def test_gradient_reaches_the_query_alone():
    method = filled(maskcon())
    method.step(one_batch()).loss.backward()
    assert all(p.grad is not None for p in method.query.parameters())
    assert method.query.backbone.conv1.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in method.key.parameters())


def losses(batch, **options) -> float:
    return filled(maskcon(**options)).step(batch).loss.item()


def test_baselines_are_what_their_names_say():
    batch = one_batch()
    method = filled(maskcon())
    with torch.no_grad():
        q, k = method.query(batch.views[0]), method.key(batch.views[1])
    selfcon = info_nce(q, k, method.memory.keys, tau=0.1).item()
    assert losses(batch, variant="selfcon") == pytest.approx(selfcon, rel=1e-5)
    assert losses(batch, weight=0.0) == pytest.approx(selfcon, rel=1e-5)
    supcon = losses(batch, variant="supcon")
    assert losses(batch, variant="grafit", weight=0.3) == pytest.approx(0.3 * supcon + 0.7 * selfcon, rel=1e-5)
    assert losses(batch, variant="maskcon", tau=math.inf) == pytest.approx(supcon, rel=1e-5)


def test_coins_mixes_cross_entropy_and_selfcon():
    batch = one_batch()
    coins = filled(maskcon(variant="coins", weight=0.2)).step(batch)
    expected = 0.2 * coins.parts["ce"] + 0.8 * coins.parts["contrastive"]
    torch.testing.assert_close(coins.loss, expected)
    torch.testing.assert_close(coins.parts["contrastive"].item(), losses(batch, variant="selfcon"), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("variant", "classes"), [("supce", 2), ("supfine", 4)])
def test_supervised_baselines_see_their_labels_and_need_no_key_encoder(variant, classes):
    method, batch = maskcon(variant=variant), one_batch()
    labels = batch.fine if variant == "supfine" else batch.coarse
    assert method.classifier.out_features == classes
    expected = F.cross_entropy(method.classifier(method.query.features(batch.views[0])), labels)
    torch.testing.assert_close(method.step(batch).loss, expected)
    assert not hasattr(method, "key")


@pytest.mark.parametrize("variant", ["maskcon", "grafit", "supcon", "selfcon", "coins", "supce", "supfine"])
def test_every_variant_trains(variant):
    method = maskcon(variant=variant, weight=0.5)
    before = method.query.backbone.conv1.weight.clone()
    tiny_trainer().fit(method, blob_loader())
    assert not torch.equal(before, method.query.backbone.conv1.weight)


def test_embedding_is_the_query_feature_not_the_projection():
    method, images = maskcon().eval(), one_batch().views[0]
    torch.testing.assert_close(method.embed(images), method.query.backbone(images))
    assert method.embed(images).shape == (8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 1.2}, "model.weight is 1.2"),
        ({"tau": -1.0}, "model.tau is -1.0"),
        ({"tau0": 0.0}, "model.tau0 is 0.0"),
        ({"num_coarse": 0}, "needs coarse labels"),
        ({"variant": "supfine", "num_fine": 0}, "needs fine labels"),
    ],
)
def test_impossible_settings_are_named(options, message):
    with pytest.raises(UserError, match=message):
        maskcon(**options)


def test_selfcon_needs_no_labels():
    assert isinstance(maskcon(variant="selfcon", num_coarse=0), nn.Module)
