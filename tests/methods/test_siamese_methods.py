"""SimCLR, BYOL and SimSiam as LightningModules: what their steps compare, where gradients run, and their rates."""

import pytest
import torch
from lightning.pytorch import Callback

from fgssl.cli.compose import compose
from fgssl.data.batch import Batch
from fgssl.errors import UserError
from fgssl.losses.contrastive import nt_xent
from fgssl.methods import BYOL, SimCLR, SimSiam
from fgssl.methods.base import Method
from fgssl.optim import Optim
from tests.methods.runs import ROOT
from tests.tiny import BACKBONE, blob_loader, tiny_trainer

B, SIZES = 6, {"dim": 6, "hidden": 8}
NO_WARMUP = Optim(lr=0.1, warmup=0)


def built(kind: type[Method], **options) -> Method:
    torch.manual_seed(0)
    return kind(backbone=BACKBONE, **{"optim": NO_WARMUP, **SIZES, **options}).double().train()


def batch(seed: int = 0) -> Batch:
    generator, rows = torch.Generator().manual_seed(seed), torch.arange(B)
    views = [torch.randn(B, 3, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2)]
    return Batch(views, rows, rows, rows, rows)


def gradients(loss: torch.Tensor, method: Method) -> dict[str, torch.Tensor]:
    trained = {name: weight for name, weight in method.named_parameters() if weight.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return dict(zip(trained, found, strict=True))


def minus_cosine(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return -((p * z).sum(dim=1) / p.norm(dim=1) / z.norm(dim=1)).mean()


@pytest.mark.parametrize("kind", [SimCLR, BYOL, SimSiam])
def test_step_does_not_depend_on_which_view_is_the_first(kind):
    one = batch()
    other = one._replace(views=one.views[::-1])
    torch.testing.assert_close(built(kind).step(one).loss, built(kind).step(other).loss, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [SimCLR, BYOL, SimSiam])
def test_gradient_reaches_every_weight_that_is_trained(kind):
    method = built(kind)
    found = gradients(method.step(batch()).loss, method)
    assert [name for name, gradient in found.items() if gradient is None] == []
    heads = [gradient for name, gradient in found.items() if "backbone" not in name]
    assert all(bool(gradient.any()) for gradient in heads)
    assert len(found) == sum(weight.requires_grad for weight in method.parameters())


def test_simclr_normalises_both_views_in_one_batch():
    method, views = built(SimCLR), batch().views
    ours = method.step(batch()).loss
    z1, z2 = built(SimCLR).encoder(torch.cat(views)).chunk(2)
    torch.testing.assert_close(ours, nt_xent(z1, z2, tau=0.1), rtol=1e-12, atol=0)
    assert method.encoder.backbone.bn1.num_batches_tracked == 1
    assert not method.encoder.head[-1].bias.requires_grad  # the shift of the last BatchNorm stays at 0


def test_simclr_has_a_hidden_layer_as_wide_as_the_features():
    assert built(SimCLR, hidden=None).encoder.head[0].weight.shape == (8, 8)
    with pytest.raises(UserError, match="tau is 0"):
        built(SimCLR, tau=0)


def test_simsiam_step_is_equation_4_whose_targets_are_constants():
    method, views = built(SimSiam), batch().views
    ours = method.step(batch()).loss
    again = built(SimSiam)
    z1, z2 = (again.encoder.head(again.encoder.backbone(view)) for view in views)
    p1, p2 = again.predictor(z1), again.predictor(z2)
    c1, c2 = z1.detach().clone(), z2.detach().clone()
    torch.testing.assert_close(ours, (minus_cosine(p1, c2) + minus_cosine(p2, c1)) / 2, rtol=1e-10, atol=0)
    theirs = gradients((minus_cosine(p1, c2) + minus_cosine(p2, c1)) / 2, again)
    for name, gradient in gradients(ours, method).items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-7, atol=1e-12, msg=name)


def test_simsiam_has_the_layers_of_the_released_code():
    method = built(SimSiam)
    kinds = [type(layer).__name__ for layer in method.encoder.head]
    assert kinds == ["Linear", "GlobalBatchNorm1d", "ReLU"] * 2 + ["Linear", "GlobalBatchNorm1d"]
    assert not method.encoder.head[-1].affine
    assert [type(layer).__name__ for layer in method.predictor] == ["Linear", "GlobalBatchNorm1d", "ReLU", "Linear"]
    assert method.predictor[-1].bias is not None


def test_byol_step_is_equation_2_in_both_directions_against_the_target_network():
    method, views = built(BYOL), batch().views
    with torch.no_grad():
        for weight in method.target.parameters():
            weight.mul_(0.5).add_(0.01)  # the target is another network
    again = built(BYOL)
    again.load_state_dict(method.state_dict())
    z1, z2 = (again.online.head(again.online.backbone(view)) for view in views)
    with torch.no_grad():
        t1, t2 = (again.target.head(again.target.backbone(view)) for view in views)
    expected = 4 + 2 * minus_cosine(again.predictor(z1), t2) + 2 * minus_cosine(again.predictor(z2), t1)
    loss = method.step(batch()).loss
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    theirs = gradients(expected, again)
    for name, gradient in gradients(loss, method).items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-7, atol=1e-12, msg=name)
    assert not any(weight.requires_grad for weight in method.target.parameters())


def test_byol_target_follows_the_online_network_with_a_momentum_that_rises_to_one():
    """BYOL, section 3.3: tau = 1 - (1 - 0.996) (cos(pi k / K) + 1) / 2."""
    method = built(BYOL)
    assert [method.teacher_momentum(step, 100) for step in (1, 51, 101)] == pytest.approx([0.996, 0.998, 1.0])
    constant = built(BYOL, momentum_end=0.996)
    assert [constant.teacher_momentum(step, 100) for step in (1, 51, 101)] == pytest.approx([0.996] * 3)
    ((student, teacher, every),) = method.teachers()
    assert student.state_dict().keys() == teacher.state_dict().keys()
    assert every == "step"


@pytest.mark.parametrize("kind", [BYOL, SimSiam])
def test_collapse_shows_in_the_deviation_of_the_channels(kind):
    method = built(kind)
    alive = method.step(batch()).parts["z_std"]
    same = batch().views[0][:1].expand(B, 3, 8, 8)
    assert 0.1 < alive < 1
    assert method.step(batch()._replace(views=[same, same])).parts["z_std"] < 1e-6


class Rates(Callback):
    """Learning rates of all parameter groups at each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, method, *_):
        self.seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def rates(optim: Optim) -> list[list[float]]:
    """Of the four steps of an epoch, with the rate of the predictor last."""
    torch.manual_seed(0)
    seen = Rates()
    method = SimSiam(backbone=BACKBONE, **SIZES, optim=optim)
    tiny_trainer(callbacks=[seen]).fit(method, blob_loader())
    return seen.seen


def test_rate_of_the_predictor_stays_and_all_others_follow_the_cosine():
    optim = Optim(lr=0.2, warmup=0, constant="predictor")
    fallen = [0.1 * (1 + torch.tensor(torch.pi * step / 4).cos().item()) for step in (1, 2, 3, 4)]
    assert [step[1] for step in rates(optim)] == [0.2] * 4
    assert [step[0] for step in rates(optim)] == pytest.approx(fallen)


def test_schedule_may_be_longer_than_the_run():
    """Four of 16 steps: after them the cosine of 16 steps is at a quarter of its way."""
    optim = Optim(lr=0.2, warmup=0, length=16, unit="step")
    fallen = [0.1 * (1 + torch.tensor(torch.pi * step / 16).cos().item()) for step in (1, 2, 3, 4)]
    assert [step[0] for step in rates(optim)] == pytest.approx(fallen, rel=1e-5)
    with pytest.raises(UserError, match="length is 5; it must be above the warmup, 5"):
        Optim(warmup=5, length=5)


@pytest.mark.parametrize(("name", "lr"), [("byol", 0.15), ("simclr", 0.15), ("simsiam", 0.025)])
def test_learning_rate_of_the_experiments_is_that_of_their_batch(name, lr):
    optim = Optim(**compose([ROOT / "experiments" / "rivals" / f"{name}_cub.yaml"])["model"]["init_args"]["optim"])
    assert optim.peak(128) == pytest.approx(lr)
