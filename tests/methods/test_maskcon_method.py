"""MaskCon as a LightningModule: its step, its baselines, and what its callbacks do to it."""

import copy
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from fgssl.callbacks.retrieval import Retrieval
from fgssl.cli.compose import compose
from fgssl.commands.sweep_file import read_sweep
from fgssl.data.batch import Batch
from fgssl.data.datamodule import DataModule
from fgssl.data.datasets.sop import SOP
from fgssl.data.protocols import Protocol
from fgssl.errors import UserError
from fgssl.losses.contrastive import info_nce
from fgssl.losses.maskcon import soft_contrastive_loss, soft_targets
from fgssl.methods.maskcon import MaskCon
from fgssl.nn.backbones import Backbone
from fgssl.optim import Optim
from fgssl.report.published import rows_named
from tests.data.test_protocols import sop_index
from tests.tiny import BACKBONE, blob_loader, tiny_trainer

PLAIN = Optim(lr=0.1, warmup=0)


def maskcon(**options) -> MaskCon:
    torch.manual_seed(0)
    settings = {"dim": 6, "hidden": 8, "memory": 12, "num_coarse": 2, "train_classes": [0, 1, 2, 3], "optim": PLAIN}
    return MaskCon(backbone=BACKBONE, **(settings | options))


def filled(method: MaskCon) -> MaskCon:
    generator = torch.Generator().manual_seed(1)
    keys = F.normalize(torch.randn(12, 6, generator=generator), dim=1)
    method.memory.enqueue(keys, torch.arange(12) % 2, torch.arange(12))
    return method


def one_batch():
    return next(iter(blob_loader()))


def test_step_gives_the_loss_of_equation_5_and_enqueues_the_keys():
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


def test_step_gives_gradients_to_the_query_encoder_only():
    method = filled(maskcon())
    method.step(one_batch()).loss.backward()
    assert all(p.grad is not None for p in method.query.parameters())
    assert method.query.backbone.conv1.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in method.key.parameters())


def losses(batch, **options) -> float:
    return filled(maskcon(**options)).step(batch).loss.item()


def test_baselines_are_special_cases_of_one_step():
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


@pytest.mark.parametrize(("limit", "near"), [(0.0, 1e-6), (math.inf, 1e6)])
def test_tau_zero_and_inf_are_the_limits_of_small_and_large_tau(limit, near):
    batch = one_batch()
    assert losses(batch, tau=limit) == pytest.approx(losses(batch, tau=near), rel=1e-5)
    assert losses(batch, tau=limit) != pytest.approx(losses(batch, tau=0.1), rel=1e-3)


def test_small_input_stem_is_initialised_as_in_the_released_code():
    """PyTorch's default for a 3x3 convolution of 3 channels: uniform in +-1 / sqrt(27)."""
    torch.manual_seed(0)
    stem = Backbone("resnet18", small_input=True).build().conv1
    assert (stem.kernel_size, stem.stride, stem.padding, stem.bias) == ((3, 3), (1, 1), (1, 1), None)
    bound = 27**-0.5
    weight = stem.weight.detach()
    assert 0.98 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_coins_loss_mixes_cross_entropy_and_selfcon():
    batch = one_batch()
    coins = filled(maskcon(variant="coins", weight=0.2)).step(batch)
    expected = 0.2 * coins.parts["ce"] + 0.8 * coins.parts["contrastive"]
    torch.testing.assert_close(coins.loss, expected)
    torch.testing.assert_close(coins.parts["contrastive"].item(), losses(batch, variant="selfcon"), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("variant", "classes"), [("supce", 2), ("supfine", 4)])
def test_supervised_baselines_use_their_labels_and_have_no_key_encoder(variant, classes):
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


def test_recall_on_held_out_rows_is_logged_at_every_validation():
    """The recall curve of a run: ``data.protocol.val_fraction`` and ``trainer.check_val_every_n_epoch``."""
    seen = []

    class Watch(Callback):
        def on_validation_end(self, trainer, method):
            seen.append((trainer.current_epoch + 1, trainer.callback_metrics["val/recall@1"].item()))

    often = {"max_epochs": 4, "check_val_every_n_epoch": 2, "num_sanity_val_steps": 0}
    trainer = tiny_trainer(callbacks=[Retrieval(ks=[1]), Watch()], **often)
    trainer.fit(maskcon(), blob_loader(), blob_loader())
    assert [epoch for epoch, _ in seen] == [2, 4]
    assert all(0 < recall <= 1 for _, recall in seen)


def test_embedding_is_the_query_feature_not_the_projection():
    method, images = maskcon().eval(), one_batch().views[0]
    torch.testing.assert_close(method.embed(images), method.query.backbone(images))
    assert method.embed(images).shape == (8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 1.2}, "weight is 1.2"),
        ({"tau": -1.0}, "tau is -1.0"),
        ({"tau0": 0.0}, "tau0 is 0.0"),
        ({"num_coarse": 0}, "needs coarse labels"),
        ({"variant": "supfine", "train_classes": []}, "needs fine labels"),
        ({"tau": math.nan}, "tau is nan"),
        ({"tau0": math.inf}, "model.tau0 is inf"),
        ({"momentum": 1.5}, "momentum is 1.5"),
    ],
)
def test_invalid_settings_are_rejected_by_name(options, message):
    with pytest.raises(UserError, match=message):
        maskcon(**options)


def test_selfcon_is_built_without_coarse_labels():
    assert isinstance(maskcon(variant="selfcon", num_coarse=0), nn.Module)


def test_supfine_has_one_output_per_training_class_and_relabels_them():
    labels = torch.tensor([3, 7, 11, 40])
    method, batch = maskcon(variant="supfine", train_classes=labels.tolist()), one_batch()
    batch = batch._replace(fine=labels[batch.fine])
    assert method.classifier.out_features == 4
    expected = F.cross_entropy(method.classifier(method.query.features(batch.views[0])), one_batch().fine)
    torch.testing.assert_close(method.step(batch).loss, expected)


def test_supfine_on_sop_split1_has_2517_outputs():
    """The data module's training classes; its 5,035 classes include the 2,518 of the test part."""

    class ListedSOP(SOP):
        def index(self):
            return sop_index()

    data = DataModule(ListedSOP(), Protocol(split="sop_split1"))
    assert data.num_fine == 5035
    assert maskcon(variant="supfine", train_classes=data.train_classes).classifier.out_features == 2517


@pytest.mark.parametrize(
    ("variant", "weight", "same"),
    [("coins", 1.0, "supce"), ("coins", 0.0, "selfcon"), ("grafit", 1.0, "supcon"), ("grafit", 0.0, "selfcon")],
)
def test_mixture_at_weight_0_or_1_warns_that_it_equals_another_baseline(variant, weight, same):
    with pytest.warns(UserWarning, match=f"model.variant {variant} at model.weight {weight:g} is {same}"):
        maskcon(variant=variant, weight=weight)


# ---- training steps against an independent derivation, float64 ----

LR, SGD_MOMENTUM, WEIGHT_DECAY, TAU0, TEACHER, MEMORY, STEPS = 0.1, 0.9, 5e-4, 0.1, 0.6, 20, 3


def target_of(key: Tensor, label: int, bank: list, tau: float) -> list[float]:
    """Eq. 11-14 for one sample, in plain numbers: relation to itself, then to each (key, label) of the bank."""
    cosine = [float(key @ entry) for entry, _ in bank]
    same = [j for j, (_, other) in enumerate(bank) if other == label]
    relation = [0.0] * len(bank)
    if same and tau == 0:
        relation[max(same, key=lambda j: cosine[j])] = 1.0
    elif same:
        exponent = {j: 1.0 if tau == math.inf else math.exp(cosine[j] / tau) for j in same}
        total = sum(exponent.values())
        largest = max(value / total for value in exponent.values())
        for j, value in exponent.items():
            relation[j] = value / total / largest
    return [1.0, *relation]


def derived_loss(query: nn.Module, classifier, batch: Batch, keys: Tensor, bank: list, kind: str, w: float, tau: float):
    """Eq. 2, 5, 9, 10 and 15, sample by sample."""
    features = query.backbone(batch.views[0])
    if kind in ("supce", "supfine", "coins"):
        labels = batch.fine if kind == "supfine" else batch.coarse
        log_p = torch.log_softmax(features @ classifier.weight.T + classifier.bias, dim=1)
        ce = -sum(log_p[i, label] for i, label in enumerate(labels.tolist())) / len(labels)
        if kind != "coins":
            return ce
    projected = query.head(features)
    projected = projected / projected.norm(dim=1, keepdim=True)
    total = 0.0
    for i, (q, k) in enumerate(zip(projected, keys, strict=True)):
        log_q = torch.log_softmax(torch.stack([q @ k, *(q @ entry for entry, _ in bank)]) / TAU0, dim=0)
        target = target_of(k, int(batch.coarse[i]), bank, math.inf if kind in ("supcon", "grafit") else tau)
        scale = sum(target)
        of_labels = -sum(z / scale * log_q[n] for n, z in enumerate(target))
        of_itself = -log_q[0]
        mix = {"selfcon": 0.0, "coins": 0.0, "supcon": 1.0}.get(kind, w)
        total = total + mix * of_labels + (1 - mix) * of_itself
    contrastive = total / len(projected)
    return w * ce + (1 - w) * contrastive if kind == "coins" else contrastive


def derived_training(method: MaskCon, kind: str, w: float, tau: float) -> tuple[nn.Module, list]:
    """The released code's order: bank filled, then in each step EMA, loss, SGD, enqueue. Query encoder and bank."""
    method = copy.deepcopy(method).double()
    query, classifier = method.query, getattr(method, "classifier", None)
    key, bank = copy.deepcopy(query), []
    parameters = [*query.parameters(), *(classifier.parameters() if classifier else [])]
    velocity = [torch.zeros_like(p) for p in parameters]
    batches = list(blob_loader())

    def keys_of(batch: Batch) -> Tensor:
        with torch.no_grad():
            projected = key.head(key.backbone(batch.views[1]))
            return projected / projected.norm(dim=1, keepdim=True)

    batches = [batch._replace(views=[view.double() for view in batch.views]) for batch in batches]
    contrasts = kind not in ("supce", "supfine")
    if contrasts:
        for batch in batches:
            bank += list(zip(keys_of(batch), batch.coarse.tolist(), strict=True))
    bank, place = bank[:MEMORY], 0
    for step, batch in enumerate(batches[:STEPS]):
        with torch.no_grad():
            for k, q in zip(key.parameters(), query.parameters(), strict=True):
                k.copy_(k * TEACHER + q * (1 - TEACHER))
        keys = keys_of(batch) if contrasts else None
        loss = derived_loss(query, classifier, batch, keys, bank, kind, w, tau)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        lr = LR * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        with torch.no_grad():
            for p, g, v in zip(parameters, gradients, velocity, strict=True):
                if g is not None:
                    v.mul_(SGD_MOMENTUM).add_(g + WEIGHT_DECAY * p)
                    p.sub_(lr * v)
        for entry in zip(keys, batch.coarse.tolist(), strict=True) if contrasts else ():
            bank[place] = entry
            place = (place + 1) % MEMORY
    return query, bank


@pytest.mark.parametrize(
    ("kind", "w", "tau"),
    [
        ("maskcon", 0.8, 0.1),  # Table 7: SOP-split1
        ("maskcon", 0.5, 0.05),  # SOP-split2
        ("maskcon", 1.0, 0.1),  # Cars
        ("maskcon", 0.2, 0.0),  # Fig. 2
        ("maskcon", 0.8, math.inf),
        ("grafit", 0.8, 0.1),
        ("grafit", 0.5, 0.1),
        ("supcon", 0.3, 0.1),
        ("selfcon", 0.3, 0.1),
        ("coins", 0.5, 0.1),
        ("coins", 0.2, 0.1),
        ("supce", 0.3, 0.1),
        ("supfine", 0.3, 0.1),
    ],
)
def test_three_training_steps_equal_the_independent_derivation(kind, w, tau):
    optim = Optim(lr=LR, momentum=SGD_MOMENTUM, weight_decay=WEIGHT_DECAY, warmup=0)
    settings = {"variant": kind, "weight": w, "tau": tau, "tau0": TAU0, "memory": MEMORY, "momentum": TEACHER}
    method = maskcon(**settings, optim=optim)
    expected_query, expected_bank = derived_training(method, kind, w, tau)
    tiny_trainer(max_steps=STEPS, max_epochs=-1, precision="64-true").fit(method, blob_loader())
    for ours, theirs in zip(method.query.parameters(), expected_query.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    if expected_bank:
        torch.testing.assert_close(
            method.memory.keys, torch.stack([key for key, _ in expected_bank]), rtol=1e-9, atol=1e-12
        )
        assert method.memory.labels.tolist() == [label for _, label in expected_bank]


@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.99])
def test_key_encoder_follows_with_the_configured_momentum(momentum):
    method = maskcon(momentum=momentum)
    start = copy.deepcopy(method.query.head[0].weight).detach()
    tiny_trainer(max_steps=1, max_epochs=-1).fit(method, blob_loader())
    moved = method.query.head[0].weight.detach()
    assert not torch.equal(moved, start)
    torch.testing.assert_close(method.key.head[0].weight, momentum * start + (1 - momentum) * moved)


# ---- the files of the baselines and tables ----

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
W = {  # Tables 7, 10 and 12: data set -> w of Grafit and of CoIns
    "cars": (1.0, 1.0),
    "cifar100": (0.8, 0.5),
    "cifartoy_good": (0.5, 0.8),
    "cifartoy_bad": (0.8, 0.8),
    "sop_split1": (0.8, 0.5),
    "sop_split2": (0.8, 0.2),
}


@pytest.mark.parametrize("data", W)
def test_baseline_files_set_variant_and_the_papers_weight(data):
    for variant, weight in zip(("grafit", "coins"), W[data], strict=True):
        file = EXPERIMENTS / "maskcon_baselines" / f"{data}_{variant}.yaml"
        before, after = (
            compose([EXPERIMENTS / f"maskcon_{data}.yaml", *more])["model"]["init_args"] for more in ([], [file])
        )
        assert after == before | {"variant": variant, "weight": weight}
        command = (
            f"fgssl fit --config experiments/maskcon_{data}.yaml --config experiments/maskcon_baselines/{file.name}"
        )
        assert command in file.read_text()


@pytest.mark.parametrize(("variant", "weight"), [("selfcon", 0), ("supcon", 1), ("supce", 1), ("supfine", 0.8)])
def test_baseline_files_without_a_weight_of_their_own_set_the_limit(variant, weight):
    file = EXPERIMENTS / "maskcon_baselines" / f"{variant}.yaml"
    settings = compose([EXPERIMENTS / "maskcon_sop_split1.yaml", file])["model"]["init_args"]
    assert (settings["variant"], settings["weight"]) == (variant, weight)


def cells_of(row: dict[str, str]) -> list[dict]:
    """The cells of our sweeps of the row's data set."""
    split = row["split"] if row["split"] not in ("good", "bad", "official") else ""
    data = {"cifar10toy": f"cifartoy_{row['split']}"}.get(row["dataset"], split or row["dataset"])
    files = [EXPERIMENTS / "sweeps" / f"maskcon_{data}{kind}.yaml" for kind in ("", "_baselines", "_bounds")]
    return [{"model.variant": "maskcon", **cell} for file in files for cell in read_sweep(file).cells()]


@pytest.mark.parametrize("number", [10, 11, 12, 13, 14])
def test_sweeps_have_a_cell_for_every_row_of_the_papers_table(number):
    rows = [row for row in rows_named(f"maskcon, Table {number}") if row["metric"] == "recall@1"]
    assert len(rows) >= 14
    for row in rows:
        printed = dict(part.split("=") for part in row["setting"].split(";") if part.startswith(("w=", "tau=")))
        wanted = {"model.variant": row["method"].lower(), "run.paper": f"maskcon, Table {number}"}
        wanted |= {f"model.{'weight' if name == 'w' else name}": float(value) for name, value in printed.items()}
        assert any(wanted.items() <= cell.items() for cell in cells_of(row)), wanted


def test_figure_2_sweeps_w_and_tau_from_zero_to_infinity():
    sweep = read_sweep(EXPERIMENTS / "sweeps" / "maskcon_cifar100_figure2.yaml")
    assert sweep.axes["model.weight"] == [0, 0.2, 0.5, 0.8, 1]
    assert sweep.axes["model.tau"] == [0, 0.01, 0.05, 0.1, 0.5, math.inf]
