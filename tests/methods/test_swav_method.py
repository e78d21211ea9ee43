"""SwAV's prototypes, queue and crops of two sizes."""

import pytest
import torch
from lightning.pytorch import Callback
from torch.nn.functional import normalize

from fgssl.data.batch import Batch
from fgssl.errors import UserError
from fgssl.losses.swav import sinkhorn
from fgssl.methods.swav import SwAV
from fgssl.optim import Optim
from tests.tiny import BACKBONE, blob_loader, tiny_trainer

TINY = {"prototypes": 12, "dim": 6, "hidden": 8, "optim": Optim(lr=0.5, warmup=0)}


def make(**options) -> SwAV:
    torch.manual_seed(0)
    return SwAV(BACKBONE, **(TINY | options))


class Watch(Callback):
    """Prototypes and queue at the start of each epoch and at the end, and the lengths that a step sees."""

    def __init__(self):
        self.prototypes, self.fills, self.lengths = [], [], []

    def on_train_epoch_start(self, trainer, method) -> None:
        self.prototypes.append(method.c_KD.detach().clone())
        self.fills.append(method.memory.fill if method.memory is not None else 0)

    def on_train_end(self, trainer, method) -> None:
        self.on_train_epoch_start(trainer, method)

    def on_before_zero_grad(self, trainer, method, optimizer) -> None:  # after the forward pass, before the step
        self.lengths.append(method.c_KD.detach().norm(dim=1))


def fitted(method: SwAV, epochs: int) -> Watch:
    watch = Watch()
    tiny_trainer(max_epochs=epochs, callbacks=[watch]).fit(method, blob_loader())
    return watch


def test_prototypes_stay_in_the_first_epoch_and_are_of_unit_length_in_every_step():
    method = make(optim=Optim(lr=0.5, warmup=0, weight_decay=0.1))
    start = method.c_KD.detach().clone()
    watch = fitted(method, epochs=2)
    torch.testing.assert_close(watch.prototypes[1], start)  # no decay and no momentum either
    moved = watch.prototypes[2]
    assert (normalize(moved, dim=1) * start).sum(dim=1).min() < 0.999
    assert (moved.norm(dim=1) - 1).abs().max() > 1e-3  # the step leaves the sphere
    for lengths in watch.lengths:
        torch.testing.assert_close(lengths, torch.ones(12))


def test_codes_are_found_among_the_batch_and_the_queue_once_it_takes_part():
    method = make(queue=20, queue_start=1).eval()
    z_iBD, past_iND = normalize(torch.randn(2, 5, 6), dim=2), normalize(torch.randn(2, 20, 6), dim=2)
    rows = torch.arange(20)
    method.memory.enqueue(torch.cat(list(past_iND), dim=1), rows, rows)
    c_DK = method.c_KD.detach().T
    alone = [sinkhorn(z @ c_DK, epsilon=0.05, iterations=3) for z in z_iBD]
    torch.testing.assert_close(method.codes(z_iBD), torch.stack(alone))  # epoch 0
    method.queue_start = 0
    both = [
        sinkhorn(torch.cat([z, past]) @ c_DK, epsilon=0.05, iterations=3)[:5]
        for z, past in zip(z_iBD, past_iND, strict=True)
    ]
    torch.testing.assert_close(method.codes(z_iBD), torch.stack(both))
    assert not torch.allclose(torch.stack(both), torch.stack(alone), atol=1e-3)


def test_queue_holds_the_last_projections_of_both_views_and_is_full_from_the_start():
    method = make(queue=20)
    watch = fitted(method, epochs=1)
    assert watch.fills == [20, 20]
    torch.testing.assert_close(method.memory.keys.unflatten(1, (2, 6)).norm(dim=2), torch.ones(20, 2))
    assert sorted(method.memory.index.tolist()) == list(range(12, 32))  # of 32 images, in batches of 8
    assert fitted(make(), epochs=1).fills == [0, 0]


def test_entries_of_the_queue_are_the_projections_of_the_first_two_views():
    method = make(queue=20).eval()
    views, rows = [torch.randn(3, 3, 8, 8) for _ in range(4)], torch.arange(3)
    keys, draws, index = method.step(Batch(views, rows, rows, rows, rows + 7)).enqueue["memory"]
    expected = torch.cat([method.encoder(view) for view in views[:2]], dim=1)
    torch.testing.assert_close(keys, expected.detach())
    assert not keys.requires_grad
    assert (draws.tolist(), index.tolist()) == ([7, 8, 9], [0, 1, 2])


def test_projections_of_crops_of_two_sizes_are_those_of_each_crop_alone():
    method = make().eval()
    crops = [torch.randn(3, 3, size, size) for size in (16, 16, 8, 8, 8)]
    z_VBD = method.project(crops)
    assert z_VBD.shape == (5, 3, 6)
    torch.testing.assert_close(z_VBD, torch.stack([method.encoder(crop) for crop in crops]))


def test_every_view_and_the_prototypes_have_a_gradient():
    method = make()
    views = [torch.randn(6, 3, 8, 8, requires_grad=True) for _ in range(4)]
    rows = torch.arange(6)
    method.step(Batch(views, rows, rows, rows, rows)).loss.backward()
    assert all(view.grad.abs().sum() > 0 for view in views)
    assert method.c_KD.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tau": 0.0}, "tau is 0.0; it must be above 0"),
        ({"epsilon": 0.01}, "epsilon is 0.01; it must be 0.025 or more"),
        ({"iterations": 0}, "iterations is 0; it must be 1 or more"),
        ({"queue": -1}, "queue is -1; it must be 0 or more"),
    ],
)
def test_options_that_cannot_be_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        make(**options)
