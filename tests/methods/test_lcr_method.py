"""LCR on MoCo-v2 and on BYOL as LightningModules: attention, GradCAM of their own loss, embedding."""

import pytest
import torch
from torch.nn import functional as F

from fgssl.errors import UserError
from fgssl.losses.contrastive import info_nce
from fgssl.losses.lcr import attention_fit
from fgssl.losses.prediction import negative_cosine
from fgssl.methods.lcr import BYOLLCR, LCR
from fgssl.nn.attention import MaxAttention, attention_pool
from fgssl.nn.backbones import Backbone
from fgssl.optim import Optim
from tests.tiny import BACKBONE, blob_loader, tiny_trainer


def lcr(**options) -> LCR:
    torch.manual_seed(0)
    settings = {"backbone": BACKBONE, "dim": 6, "hidden": 8, "memory": 12, "maps": 4, "optim": Optim(lr=0.1, warmup=0)}
    return LCR(**(settings | options))


def byol_lcr(**options) -> BYOLLCR:
    torch.manual_seed(0)
    settings = {"backbone": BACKBONE, "dim": 6, "hidden": 8, "maps": 4, "optim": Optim(lr=0.1, warmup=0)}
    return BYOLLCR(**(settings | options))


def filled(method: LCR) -> LCR:
    keys = F.normalize(torch.randn(12, 6, generator=torch.Generator().manual_seed(1)), dim=1)
    method.memory.enqueue(keys, torch.arange(12), torch.arange(12))
    return method


def one_batch():
    """Images of 16 px: with the network's stride of 8, the map is 2 x 2."""
    batch = next(iter(blob_loader()))
    return batch._replace(views=[F.interpolate(view, size=(16, 16)) for view in batch.views])


@pytest.mark.parametrize(("over", "tau"), [("rows", 1.0), ("map", 0.4)])
def test_step_is_the_papers(over, tau):
    method, batch = filled(lcr(nu=0.7, attention_over=over, attention_tau=tau)), one_batch()
    result = method.step(batch)
    view1, view2 = batch.views
    map_BFHW = method.query.backbone.forward_features(view1)
    q = F.normalize(method.query.head(map_BFHW.mean((2, 3))), dim=1)
    with torch.no_grad():
        k = F.normalize(method.key.head(method.key.backbone(view2)), dim=1)
    nce = info_nce(q, k, method.memory.keys, tau=0.2)
    (gradient,) = torch.autograd.grad(nce, map_BFHW)
    cam = (map_BFHW * gradient).sum(1).relu()
    expected = nce + 0.7 * attention_fit(plain_attention(method, map_BFHW), cam, tau=tau, over=over)
    torch.testing.assert_close(result.loss, expected, rtol=1e-5, atol=1e-6)
    keys, draw, index = result.enqueue["memory"]
    torch.testing.assert_close(keys, k)
    assert torch.equal(draw, batch.draw)
    assert torch.equal(index, batch.index)


def plain_attention(method: LCR | BYOLLCR, map_BFHW: torch.Tensor) -> torch.Tensor:
    linear, norm, _ = method.attention.maps
    maps = F.conv2d(map_BFHW, linear.weight[:, :, None, None])
    weights = F.batch_norm(maps, None, None, norm.weight, norm.bias, training=True).relu().amax(1)
    return weights / weights.amax((1, 2), keepdim=True)


def test_step_on_byol_is_the_released_codes():
    method, batch = byol_lcr(nu=0.7), one_batch()
    result = method.step(batch)
    map1 = method.online.backbone.forward_features(batch.views[0])
    z1 = method.online.head(map1.mean((2, 3)))
    z2 = method.online.head(method.online.backbone(batch.views[1]))
    with torch.no_grad():
        target1, target2 = (method.target.head(method.target.backbone(view)) for view in batch.views)
    loss = negative_cosine(method.predictor(z1), target2) / 2 + negative_cosine(method.predictor(z2), target1) / 2
    (gradient,) = torch.autograd.grad(loss, map1, retain_graph=True)
    cam = (map1 * gradient).sum(1).relu()
    expected = loss + 0.7 * attention_fit(plain_attention(method, map1), cam, tau=0.4, over="map")
    torch.testing.assert_close(result.loss, expected, rtol=1e-5, atol=1e-6)


def test_both_terms_train_the_backbone_and_the_fit_alone_the_attention():
    method = filled(lcr())
    method.step(one_batch()).loss.backward()
    assert all(p.grad is not None for p in [*method.query.parameters(), *method.attention.parameters()])
    assert method.attention.maps[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in method.key.parameters())
    plain, with_fit = filled(lcr(nu=0.0)), method
    plain.step(one_batch()).loss.backward()
    ours, theirs = (m.query.backbone.conv1.weight.grad for m in (with_fit, plain))
    assert not torch.allclose(ours, theirs)


def test_gradcam_leaves_no_gradient_behind():
    """The GradCAM takes a gradient of its own; weights have none before the backward pass."""
    method = filled(lcr())
    method.step(one_batch())
    assert all(p.grad is None for p in method.parameters())


@pytest.mark.parametrize("make", [lcr, byol_lcr])
def test_embedding_is_the_map_weighted_by_the_attention(make):
    method, images = make().eval(), one_batch().views[0]
    with torch.no_grad():
        found = method.embed(images)
        map_BFHW = method.backbones()["student"].forward_features(images)
        weights = method.attention(map_BFHW)
    for b in range(len(images)):
        total = sum(weights[b, y, x] * map_BFHW[b, :, y, x] for y in range(2) for x in range(2))
        torch.testing.assert_close(found[b], total / 4, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, map_BFHW.mean((2, 3)))


def test_embedding_of_an_image_does_not_depend_on_its_batch():
    method, images = lcr().eval(), one_batch().views[0]
    with torch.no_grad():
        torch.testing.assert_close(method.embed(images)[:1], method.embed(images[:1]))


def test_attention_is_between_0_and_1_with_the_largest_1():
    attention = MaxAttention(8, 32).eval()
    weights = attention(torch.randn(5, 8, 3, 4, generator=torch.Generator().manual_seed(0)))
    assert weights.shape == (5, 3, 4)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.amax((1, 2)), torch.ones(5))


def test_pooling_with_equal_weights_is_average_pooling():
    map_BFHW = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attention_pool(map_BFHW, torch.ones(2, 3, 4)), map_BFHW.mean((2, 3)))


def test_a_map_with_channels_last_has_a_gradcam():
    swin = {"img_size": 16, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 2, "patch_size": 2}
    method = filled(lcr(backbone=Backbone("swin_tiny_patch4_window7_224", options=swin)))
    result = method.step(one_batch())
    result.loss.backward()
    assert result.parts["cam_peak"] > 1
    assert method.embed(one_batch().views[0]).shape == (8, 16)


@pytest.mark.parametrize("make", [lcr, byol_lcr])
def test_a_class_token_is_refused(make):
    vit = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 1}
    with pytest.raises(UserError, match="global_pool: avg"):
        make(backbone=Backbone("vit_tiny_patch16_224", options=vit))


def test_two_epochs_lower_the_fit():
    """On a map with a GradCAM that is not flat: nu is large, and the key encoder stays."""
    method = lcr(nu=10.0, attention_tau=0.1, attention_over="map")
    method.memory.enqueue(filled(lcr()).memory.keys, torch.arange(12), torch.arange(12))
    batch, fits = one_batch(), []
    optimizer = torch.optim.SGD(method.attention.parameters(), lr=0.05)
    for _ in range(20):
        result = method.step(batch)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        fits.append(result.parts["fit"].item())
    assert fits[-1] < 0.8 * fits[0]


@pytest.mark.parametrize("make", [lcr, byol_lcr])
def test_training_moves_the_attention(make):
    method = make()
    before = method.attention.maps[0].weight.clone()
    tiny_trainer(max_epochs=1).fit(method, blob_loader())
    assert not torch.equal(method.attention.maps[0].weight, before)
