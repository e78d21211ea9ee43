"""MLS as a LightningModule: its step, its variants, and its two dictionaries."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from experiments.evidence.mls_labels import LabelledMLS
from fgssl.cli.compose import compose
from fgssl.data.batch import Batch
from fgssl.errors import UserError
from fgssl.losses.contrastive import info_nce
from fgssl.losses.mls import bce_pos_loss, multi_label_loss, pseudo_labels
from fgssl.methods.mls import MLS
from fgssl.nn.memory import Memory
from fgssl.nn.teacher import ema_update
from fgssl.optim import Optim
from tests.tiny import BACKBONE, blob_loader, tiny_trainer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mls.json").read_text())
MAIN, ORDER = GOLDEN["main"], GOLDEN["enqueue_order"]
VARIANTS = ["mls", "knn", "bce_pos", "moco_v2"]


def mls(**options) -> MLS:
    torch.manual_seed(0)
    settings = {"dim": 6, "hidden": 8, "memory": 12, "k": 3, "optim": Optim(lr=0.1, warmup=0)}
    return MLS(backbone=BACKBONE, **(settings | options))


def filled(method: MLS) -> MLS:
    generator = torch.Generator().manual_seed(1)
    g, z = (F.normalize(torch.randn(12, d, generator=generator), dim=1) for d in (8, 6))
    keys = torch.cat([g, z], dim=1) if method.uses_g else z
    method.memory.enqueue(keys, torch.arange(12), torch.arange(12))
    return method


def one_batch() -> Batch:
    return next(iter(blob_loader()))


def of(name: str) -> torch.Tensor:
    return torch.tensor(MAIN[name], dtype=torch.float64)


def golden_method(**options) -> tuple[MLS, Batch]:
    """A method whose networks give the golden vectors: the images are g, and [2 g, z] is what an encoder makes of one.

    Features of a backbone are of any length; those of the golden values are of unit length.
    """
    method = mls(k=MAIN["k"], lam=MAIN["lambda"], tau=MAIN["tau"], **options).double()
    z_of = {tuple(g.tolist()): z for g, z in zip((*of("g1"), *of("g2")), (*of("z1"), *of("z2")), strict=True)}
    for encoder in (method.query, method.key):
        encoder.features = lambda images: 2 * images
        encoder.project = lambda g: torch.stack([z_of[tuple(row.tolist())] for row in g / 2])
    method.widths = (4 if method.uses_g else 0, 3)
    queues = [of("Qg"), of("Qz")] if method.uses_g else [of("Qz")]
    method.memory = Memory(8, sum(method.widths)).double()
    method.memory.enqueue(torch.cat(queues, dim=1), torch.arange(8), torch.arange(8))
    rows = torch.arange(3)
    return method, Batch([of("g1"), of("g2")], rows, rows, rows, rows)


def value(loss: torch.Tensor, expected: float):
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_step_gives_the_golden_loss_and_not_the_misaligned_one():
    method, batch = golden_method()
    result = method.step(batch)
    value(result.loss, MAIN["total"])
    value(result.parts["nce"], MAIN["L_nce"])
    value(result.parts["mls"], MAIN["L_ml"])
    assert result.parts["mls"].item() != pytest.approx(ORDER["misaligned"], rel=1e-3)
    method.memory.enqueue(*result.enqueue["memory"])
    value(method.step(batch).parts["mls"], ORDER["after"])  # the next step sees both dictionaries moved, together


@pytest.mark.parametrize("variant", ["knn", "bce_pos"])
def test_other_losses_give_the_golden_values(variant):
    method, batch = golden_method(variant=variant)
    value(method.step(batch).parts[variant], GOLDEN["ablation_losses"][variant])


@pytest.mark.parametrize("dictionary", ["g", "z"])
def test_single_dictionaries_give_the_golden_values(dictionary):
    method, batch = golden_method(dictionary=dictionary)
    value(method.step(batch).parts["mls"], GOLDEN["ablation_losses"][dictionary])


def test_moco_v2_is_info_nce_alone_and_keeps_no_features():
    method, batch = golden_method(variant="moco_v2")
    value(method.step(batch).loss, MAIN["L_nce"])
    assert mls(variant="moco_v2").memory.keys_KD.shape == (12, 6)
    assert mls(dictionary="z").memory.keys_KD.shape == (12, 6)
    assert mls().memory.keys_KD.shape == (12, 8 + 6)


def test_step_is_the_papers():
    method, batch = filled(mls(tau=0.3, lam=0.7)), one_batch()
    result = method.step(batch)
    with torch.no_grad():
        g1, g2 = method.query.backbone(batch.views[0]), method.key.backbone(batch.views[1])
        z1, z2 = F.normalize(method.query.head(g1), dim=1), F.normalize(method.key.head(g2), dim=1)
    q_g, q_z = method.memory.keys[:, :8], method.memory.keys[:, 8:]
    y = pseudo_labels(F.normalize(g1, dim=1), q_g, k=3)
    expected = info_nce(z1, z2, q_z, tau=0.3) + 0.7 * multi_label_loss(z1, q_z, y, tau=0.3)
    torch.testing.assert_close(result.loss, expected, rtol=1e-5, atol=1e-6)
    keys, draw, index = result.enqueue["memory"]
    torch.testing.assert_close(keys, torch.cat([F.normalize(g2, dim=1), z2], dim=1))
    assert torch.equal(draw, batch.draw)
    assert torch.equal(index, batch.index)


def test_both_dictionaries_hold_the_same_image_at_the_same_place():
    """Through two epochs and their wrap-arounds, by a network that does not move."""
    method = mls(optim=Optim(lr=1e-12, warmup=0, weight_decay=0), momentum=1.0, memory=13)
    method.key.eval().train = lambda mode=True: method.key  # its BatchNorm too: one feature an image
    tiny_trainer(max_epochs=2).fit(method, blob_loader())
    assert method.memory.fill == 13
    images = blob_loader().dataset.views[1]
    q_g, q_z = method.dictionaries()
    with torch.no_grad():
        g = method.key.backbone(images[method.memory.index])
        torch.testing.assert_close(q_g, F.normalize(g, dim=1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(q_z, method.key.project(g), rtol=1e-4, atol=1e-5)


def test_a_joint_permutation_of_the_dictionaries_changes_nothing():
    method, batch = golden_method()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    method.memory.keys_KD.copy_(method.memory.keys_KD[order])
    value(method.step(batch).loss, MAIN["total"])


@pytest.mark.parametrize("fill", [0, 1, 2])
def test_k_beyond_the_fill_is_all_of_it(fill):
    method = mls(k=3)
    keys = F.normalize(torch.randn(fill, 14, generator=torch.Generator().manual_seed(0)), dim=1)
    method.memory.enqueue(keys, torch.arange(fill), torch.arange(fill))
    result = method.step(one_batch())
    assert torch.isfinite(result.loss)
    result.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in method.query.parameters())


def test_gradient_reaches_the_query_alone():
    method = filled(mls(nce_weight=0.0))
    method.step(one_batch()).loss.backward()
    assert all(p.grad is not None for p in method.query.parameters())
    assert method.query.backbone.conv1.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in method.key.parameters())


def test_warm_up_is_info_nce_alone_and_then_the_weights_hold(monkeypatch):
    method, batch = golden_method(nce_warmup_epochs=2, nce_weight=0.0)
    for epoch, expected in ((0, MAIN["L_nce"]), (1, MAIN["L_nce"]), (2, MAIN["lambda"] * MAIN["L_ml"])):
        monkeypatch.setattr(MLS, "current_epoch", epoch)
        value(method.step(batch).loss, expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("keys_batch_norm", ["shuffled", "synchronised", "plain"])
def test_every_variant_trains_and_on_one_process_the_keys_batch_norm_makes_no_difference(variant, keys_batch_norm):
    def trained(**options) -> MLS:
        method = mls(variant=variant, momentum=0.5, **options)
        tiny_trainer().fit(method, blob_loader())
        return method

    method, plain = trained(keys_batch_norm=keys_batch_norm), trained(keys_batch_norm="plain")
    assert method.memory.fill == 12
    assert not torch.equal(method.query.backbone.conv1.weight, mls().query.backbone.conv1.weight)
    for name, weight in plain.state_dict().items():
        assert not isinstance(weight, torch.Tensor) or torch.equal(method.state_dict()[name], weight), name


def test_teacher_moves_by_the_papers_momentum():
    method = mls()
    with torch.no_grad():
        for weight in method.key.parameters():
            weight.zero_()
        for weight in method.query.parameters():
            weight.fill_(1)
    seen = []
    for step in range(100):
        ema_update(method.query, method.key, method.teacher_momentum(step, 100))
        seen.append(next(method.key.parameters()).flatten()[0].item())
    assert [seen[0], seen[1], seen[99]] == pytest.approx(GOLDEN["moco"]["ema"], rel=1e-4)


EXPERIMENTS = Path(__file__).parents[2] / "experiments"
OWN = sorted([*EXPERIMENTS.glob("mls_*.yaml"), *EXPERIMENTS.glob("mocov2_*.yaml")])


@pytest.mark.parametrize("experiment", OWN, ids=lambda path: path.stem)
def test_experiments_initialise_resnets_as_moco(experiment):
    """Another backbone.name drops the options of the fragment; with timm's initialisation Q_z collapses on digits."""
    assert compose([experiment])["model"]["init_args"]["backbone"]["options"]["zero_init_last"] is False


def test_embedding_is_the_query_feature_not_the_projection():
    method, images = mls().eval(), one_batch().views[0]
    torch.testing.assert_close(method.embed(images), method.query.backbone(images))


REDUCTIONS = ["mean", "balanced", "sum"]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("variant", "loss_of"), [("mls", multi_label_loss), ("bce_pos", bce_pos_loss)])
def test_reduction_reaches_the_loss_and_its_logged_terms(variant, loss_of, reduction):
    method, batch = golden_method(variant=variant, reduction=reduction)
    result = method.step(batch)
    expected = loss_of(of("z1"), of("Qz"), of("y"), tau=MAIN["tau"], reduction=reduction)
    value(result.parts[variant], expected.item())
    value(result.loss, MAIN["L_nce"] + MAIN["lambda"] * expected.item())
    both = result.parts["pull"] + result.parts["push"]
    value(both, multi_label_loss(of("z1"), of("Qz"), of("y"), tau=MAIN["tau"], reduction=reduction).item())
    value(result.parts["pull"], bce_pos_loss(of("z1"), of("Qz"), of("y"), tau=MAIN["tau"], reduction=reduction).item())


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_logs_the_length_of_the_mean_of_q_z(variant):
    method, batch = golden_method(variant=variant)
    value(method.step(batch).parts["q_z_mean"], of("Qz").mean(dim=0).norm().item())


def test_losses_differ():
    """Or the variants would be one."""
    batch = one_batch()
    seen = {v: filled(mls(variant=v)).step(batch).loss.item() for v in ("mls", "knn", "bce_pos")}
    assert len(set(seen.values())) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"lam": -1.0}, "lam is -1.0"),
        ({"lam": 0.0, "nce_weight": 0.0}, "both 0"),
        ({"memory": 0}, "memory is 0"),
        ({"variant": "knn", "reduction": "sum"}, "model.reduction sum has no effect on model.variant knn"),
    ],
)
def test_impossible_settings_are_named(options, message):
    with pytest.raises(UserError, match=message):
        mls(**options)


@pytest.mark.parametrize("labels", ["pseudo", "none", "true"])
def test_labelled_mls_of_the_evidence_uses_the_labels_that_it_names(labels):
    torch.manual_seed(0)
    settings = {"dim": 6, "hidden": 8, "memory": 12, "k": 3, "optim": Optim(lr=0.1, warmup=0)}
    method = filled(LabelledMLS(labels, backbone=BACKBONE, reduction="balanced", **settings))
    method.fine_of_row = torch.arange(12) % 2  # the memory's rows are 0 to 11
    batch = one_batch()
    true_BD = (batch.fine[:, None] == method.fine_of_row).float()
    g1_BF = method.query.features(batch.views[0])
    own_BD = pseudo_labels(F.normalize(g1_BF, dim=1), method.dictionaries()[0], k=3)
    y_BD = {"pseudo": own_BD, "none": torch.zeros_like(own_BD), "true": true_BD}[labels]

    parts = method.step(batch).parts

    z1_BC = method.query.project(g1_BF)
    wanted = multi_label_loss(z1_BC, method.dictionaries()[1], y_BD, tau=0.2, reduction="balanced")
    torch.testing.assert_close(parts["mls"], wanted)
    torch.testing.assert_close(parts["label_precision"], (own_BD * true_BD).sum() / own_BD.sum())
