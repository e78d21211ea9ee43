"""DenseCL as a LightningModule: both losses of its step, and both memories."""

import pytest
import torch
from torch.nn import functional as F

from fgssl.errors import UserError
from fgssl.losses.contrastive import info_nce
from fgssl.losses.densecl import correspondence, dense_info_nce
from fgssl.methods.densecl import DenseCL, matched
from fgssl.optim import Optim
from tests.tiny import BACKBONE, blob_loader, tiny_trainer


def densecl(**options) -> DenseCL:
    torch.manual_seed(0)
    settings = {"dim": 6, "hidden": 8, "memory": 12, "optim": Optim(lr=0.1, warmup=0)}
    return DenseCL(backbone=BACKBONE, **(settings | options))


def filled(method: DenseCL) -> DenseCL:
    generator = torch.Generator().manual_seed(1)
    keys = torch.cat([F.normalize(torch.randn(12, 6, generator=generator), dim=1) for _ in range(2)], dim=1)
    method.memory.enqueue(keys, torch.arange(12), torch.arange(12))
    return method


def one_batch():
    """Images of 24 x 16 px: with the network's stride of 8, the map is 3 x 2."""
    batch = next(iter(blob_loader()))
    return batch._replace(views=[F.interpolate(view, size=(24, 16)) for view in batch.views])


def test_step_is_the_papers():
    method, batch = filled(densecl(lam=0.3, tau=0.25)), one_batch()
    result = method.step(batch)
    query, key = method.query, method.key
    f1 = query.backbone.forward_features(batch.views[0]).flatten(2).transpose(1, 2)
    with torch.no_grad():
        f2 = key.backbone.forward_features(batch.views[1]).flatten(2).transpose(1, 2)
    assert f1.shape == (8, 6, 8)
    q, k = (F.normalize(encoder.head(f.mean(1)), dim=1) for encoder, f in ((query, f1), (key, f2)))
    r, t = query.dense(f1), key.dense(f2)
    queue, dense_queue = method.memory.keys[:, :6], method.memory.keys[:, 6:]
    dense = dense_info_nce(F.normalize(r, dim=2), F.normalize(t, dim=2), correspondence(f1, f2), dense_queue, tau=0.25)
    expected = 0.7 * info_nce(q, k, queue, tau=0.25) + 0.3 * dense
    torch.testing.assert_close(result.loss, expected, rtol=1e-5, atol=1e-6)
    keys, draw, index = result.enqueue["memory"]
    torch.testing.assert_close(keys, torch.cat([k, F.normalize(t.mean(1), dim=1)], dim=1))
    assert torch.equal(draw, batch.draw)
    assert torch.equal(index, batch.index)


@pytest.mark.parametrize(("lam", "unused"), [(0.0, "dense"), (1.0, "head")])
def test_lambda_is_the_share_of_the_dense_loss(lam, unused):
    method = filled(densecl(lam=lam))
    result = method.step(one_batch())
    torch.testing.assert_close(result.loss, result.parts["dense" if lam else "nce"])
    result.loss.backward()
    for name in ("head", "dense"):
        moved = sum(p.grad.abs().sum() for p in getattr(method.query, name).parameters())
        assert (moved == 0) == (name == unused)


def test_gradient_reaches_the_query_alone():
    method = filled(densecl())
    method.step(one_batch()).loss.backward()
    assert all(p.grad is not None for p in method.query.parameters())
    assert all(p.grad is None for p in method.key.parameters())


def test_training_fills_both_memories_with_unit_lengths():
    method = densecl(memory=13)
    tiny_trainer(max_epochs=2).fit(method, blob_loader())
    assert method.memory.fill == 13
    for columns in method.memory.keys.split(6, dim=1):
        torch.testing.assert_close(columns.norm(dim=1), torch.ones(13))


def test_matched_is_the_fraction_of_positions_that_occur():
    assert matched(torch.tensor([[0, 0, 0, 0], [3, 2, 1, 0]])).item() == pytest.approx((1 / 4 + 1) / 2)


@pytest.mark.parametrize("lam", [-0.1, 1.1])
def test_a_share_outside_0_and_1_is_refused(lam):
    with pytest.raises(UserError, match=f"^lam is {lam}; it must be from 0 to 1"):
        densecl(lam=lam)
