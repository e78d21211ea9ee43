"""LEWEL as a LightningModule: both losses of its step, its layers, and what it refuses."""

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from torch.nn import functional as F

from fgssl.errors import UserError
from fgssl.losses.lewel import aligned_features, alignment_maps
from fgssl.methods.lewel import LEWEL
from fgssl.nn.backbones import Backbone
from fgssl.optim import Optim
from tests.tiny import BACKBONE, blob_loader, tiny_trainer


def lewel(**options) -> LEWEL:
    torch.manual_seed(0)
    settings = {"backbone": BACKBONE, "dim": 6, "heads": 2, "hidden": 8, "optim": Optim(lr=0.1, warmup=0)}
    return LEWEL(**(settings | options)).double().train()


def one_batch():
    """Images of 24 x 16 px: with the network's stride of 8, the map is 3 x 2."""
    batch = next(iter(blob_loader()))
    return batch._replace(views=[F.interpolate(view.double(), size=(24, 16)) for view in batch.views])


def plain_head(head: torch.nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """A head as the released code's: 1 x 1 convolutions of [B, F, M] with BatchNorm over B and M."""
    first, norm, _, last = head
    hidden = F.conv1d(x, first.weight[:, :, None])
    hidden = F.batch_norm(hidden, None, None, norm.weight, norm.bias, training=True).relu()
    return F.conv1d(hidden, last.weight[:, :, None])


def plain_outputs(encoder, images: torch.Tensor, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
    """z [B, D, 1] and the parts [B, D, P]."""
    f = encoder.backbone.forward_features(images).flatten(2)
    z = plain_head(encoder.head, torch.cat([f.mean(2, keepdim=True), f], dim=2))
    maps = alignment_maps(z[:, :, 1:].mT, tau=tau)
    return z[:, :, :1], plain_head(encoder.part_head, aligned_features(f.mT, maps, heads=2).mT)


def both_networks() -> LEWEL:
    """The target is another network than the online one."""
    method = lewel(lam=0.3, tau=0.25)
    with torch.no_grad():
        for weight in method.target.parameters():
            weight.mul_(0.5).add_(0.01)
    return method


def test_step_is_the_released_codes():
    method, batch = both_networks(), one_batch()
    result = method.step(batch)
    again = both_networks()
    online = [plain_outputs(again.online, view, 0.25) for view in batch.views]
    with torch.no_grad():
        target = [plain_outputs(again.target, view, 0.25) for view in batch.views]
    pooled, aligned, minus_cosine = 0, 0, NegativeCosineSimilarity(dim=1)
    for (z, a), (t, u) in zip(online, target[::-1], strict=True):
        assert a.shape == (8, 6, 3)
        pooled = pooled + 2 + 2 * minus_cosine(plain_head(again.predictor, z), t)
        aligned = aligned + 2 + 2 * minus_cosine(plain_head(again.part_predictor, a), u)
    torch.testing.assert_close(result.parts["pooled"], pooled, rtol=1e-9, atol=0)
    torch.testing.assert_close(result.parts["aligned"], aligned, rtol=1e-9, atol=0)
    torch.testing.assert_close(result.loss, 0.7 * pooled + 0.3 * aligned, rtol=1e-9, atol=0)
    result.loss.backward()
    (0.7 * pooled + 0.3 * aligned).backward()
    for (name, ours), theirs in zip(method.named_parameters(), again.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-12, msg=name)
        else:
            assert ours.grad is None


def test_step_does_not_depend_on_which_view_is_the_first():
    one = one_batch()
    other = one._replace(views=one.views[::-1])
    torch.testing.assert_close(lewel().step(one).loss, lewel().step(other).loss, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("lam", "unused"), [(0.0, "part_predictor"), (1.0, "predictor")])
def test_lambda_is_the_share_of_the_loss_of_the_parts(lam, unused):
    method = lewel(lam=lam)
    method.step(one_batch()).loss.backward()
    for name in ("predictor", "part_predictor"):
        moved = sum(p.grad.abs().sum() for p in getattr(method, name).parameters())
        assert (moved == 0) == (name == unused)


def test_loss_of_the_parts_trains_the_projector_by_its_maps():
    method = lewel(lam=1.0)
    method.step(one_batch()).loss.backward()
    assert all(p.grad.any() for p in [*method.online.head.parameters(), *method.online.part_head.parameters()])


def test_default_has_64_parts_of_4_heads():
    method = LEWEL(backbone=BACKBONE, hidden=8).train()
    z, parts, maps = method.online.outputs(torch.randn(2, 3, 24, 16))
    assert z.shape == (2, 256)
    assert parts.shape == (2, 64, 256)
    assert maps.shape == (2, 6, 256)


def test_target_follows_both_projectors_and_evaluation_has_the_pooled_features():
    method = LEWEL(backbone=BACKBONE, dim=6, heads=2, hidden=8, momentum=0.5, optim=Optim(lr=0.1, warmup=0))
    start = {name: p.clone() for name, p in method.target.named_parameters()}
    assert all(torch.equal(p, start[name]) for name, p in method.online.named_parameters())
    tiny_trainer().fit(method, blob_loader())
    moved = {name.split(".")[0] for name, p in method.target.named_parameters() if not torch.equal(p, start[name])}
    assert moved == {"backbone", "head", "part_head"}
    method.eval()
    images = one_batch().views[0].float()
    torch.testing.assert_close(method.embed(images), method.online.backbone.forward_features(images).mean((2, 3)))


def test_tokens_of_a_vit_are_positions():
    vit = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 1}
    method = lewel(backbone=Backbone("vit_tiny_patch16_224", options=vit))
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert method.online.outputs(images)[2].shape == (2, 16, 6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lam": 1.1}, "lam is 1.1; it must be from 0 to 1"),
        ({"lam": -0.1}, "lam is -0.1; it must be from 0 to 1"),
        ({"tau": 0.0}, "tau is 0.0; it must be above 0"),
        ({"heads": 0}, "heads"),
        ({"heads": 4}, "model.dim, 6"),
        ({"heads": 3}, "8 features"),
        ({"backbone": Backbone("mobilenetv3_small_050")}, "projector takes both"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        lewel(**options)
