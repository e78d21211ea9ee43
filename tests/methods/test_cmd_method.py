"""CMD as a LightningModule: its terms, its switches, what DINO and EsViT are of it, and its centres."""

import json
import math
from functools import partial
from itertools import permutations
from pathlib import Path

import pytest
import torch

from fgssl.cli.compose import compose
from fgssl.data.batch import Batch
from fgssl.data.views import SingleView
from fgssl.errors import UserError
from fgssl.losses.cmd import image_distillation, inter_level, region_distillation
from fgssl.losses.koleo import koleo
from fgssl.methods import cmd
from fgssl.methods.cmd import CMD, Features, Networks
from fgssl.nn.backbones import Backbone
from fgssl.optim import Optim
from tests.losses.test_cmd import (
    CENTER,
    CENTER_REGION,
    INTER,
    INTRA,
    S_FEATURES,
    S_IMAGE,
    S_REGION,
    T_FEATURES,
    T_IMAGE,
    T_REGION,
)
from tests.tiny import tiny_trainer

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
DINO_GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "dino.json").read_text())
OPTIONS = {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8], "norm_layer": "groupnorm1", "output_stride": 8}
SMALL = {"prototypes": 7, "hidden": 8, "bottleneck": 4}
WEIGHTS = ("l_i", "l_r", "l_s", "l_t", "l_ts")
DINO = {"l_i": 1, "l_r": 0, "l_s": 0, "l_t": 0}
ESVIT = {"l_s": 0, "l_t": 0}


def method_of(**options) -> CMD:
    torch.manual_seed(0)
    method = CMD(Backbone("resnet18", options=OPTIONS), **(SMALL | options)).double()
    with torch.no_grad():  # a teacher that is no copy of its student
        for weight in method.teacher.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return method


def batch_of(sizes=(32, 32, 16, 16), count: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64) for size in sizes]
    rows = torch.arange(count)
    return Batch(views, rows, rows, rows, rows)


def step_of(batch: Batch | None = None, **options):
    method = method_of(**options)
    result = method.step(batch or batch_of())
    return method, result


def gradient_of(method: CMD, result) -> list[torch.Tensor]:
    weights = [p for p in method.parameters() if p.requires_grad]
    return list(torch.autograd.grad(result.loss, weights))


# ---- the numbers ----------------------------------------------------------------------------------------------------


class Given(torch.nn.Module):
    """Stands for a backbone's features or a head: logits are what it was told, and its last layer is the identity."""

    def __init__(self, logits: list[torch.Tensor]):
        super().__init__()
        self.logits = iter(logits)

    def forward(self, _):
        return torch.stack(list(self.logits))

    def project(self, _):
        return next(self.logits)

    def weight(self):
        return torch.eye(INTRA["K"], dtype=torch.float64)


def golden_method(monkeypatch, **options) -> tuple[CMD, Batch]:
    """A method whose networks give the golden vectors."""
    method = method_of(prototypes=INTRA["K"], tau_t_start=INTRA["tau_t"], tau_t=INTRA["tau_t"], **options)
    given = {"student": (S_FEATURES, S_IMAGE, S_REGION), "teacher": (T_FEATURES, T_IMAGE, T_REGION)}
    for name, (features, image, region) in given.items():
        networks = getattr(method, name)
        seen = [Features(f.mean(1), f) for f in features]
        monkeypatch.setattr(networks, "features", lambda crops, seen=seen: seen)
        networks.heads = torch.nn.ModuleDict({"image": Given(image), "region": Given(region)})
    method.centers["image"].value.copy_(CENTER[0])
    method.centers["region"].value.copy_(CENTER_REGION[0])
    return method, batch_of(count=INTRA["B"])


@pytest.mark.parametrize(
    ("reading", "key"), [("pairs", "with_ordered_region_pairs"), ("within_crop", "with_within_crop")]
)
def test_a_step_gives_the_golden_numbers(monkeypatch, reading, key):
    method, batch = golden_method(monkeypatch, inter_level=reading)
    result = method.step(batch)
    assert result.loss.item() == pytest.approx(INTER[f"total_eq16_{key}_lambda0.1"], rel=1e-6)
    assert result.parts["l_i"].item() == pytest.approx(INTRA["L_I"], rel=1e-6)
    assert result.parts["l_r"].item() == pytest.approx(INTRA["L_R"], rel=1e-6)
    for level, name in (("image", "center"), ("region", "center_grid")):
        expected = torch.tensor(INTRA[f"{name}_after_update_m0.9"], dtype=torch.float64)
        torch.testing.assert_close(method.centers[level].value[None], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("patches", [1, 5, 32, 512])
def test_a_step_is_the_losses_of_all_logits_at_once(monkeypatch, patches):
    """The step never holds all region logits, and gives the losses and gradients of those who do."""
    monkeypatch.setattr(cmd, "PATCHES", patches)  # a patch at a time, five, two images, all
    method, batch = method_of(l_ts=0.3), batch_of()
    ours = method.step(batch)
    ours_gradient = gradient_of(method, ours)
    student = method.student.features(batch.views)
    with torch.no_grad():
        teacher = method.teacher.features(batch.views[:2])
    zero = torch.zeros(7, dtype=torch.float64)
    options = {
        "center": zero,
        "tau_s": 0.1,
        "tau_t": 0.04,
        "pairs": [(t, s) for t in (0, 1) for s in range(4) if t != s],
    }
    logits = {
        (net, level): [getattr(method, net).heads[level](getattr(f, kind)).detach() if net == "teacher" else
                       method.student.heads[level](getattr(f, kind)) for f in features]
        for net, features in (("student", student), ("teacher", teacher))
        for level, kind in (("image", "pooled"), ("region", "patches"))
    }  # fmt: skip
    patches = [[f.patches for f in features] for features in (student, teacher)]
    l_i = image_distillation(logits["student", "image"], logits["teacher", "image"], **options)
    l_r = region_distillation(logits["student", "region"], logits["teacher", "region"], *patches, **options)
    s_bags = [(x / 0.1).softmax(-1).mean(1) for x in logits["student", "region"]]
    t_bags = [(x / 0.04).softmax(-1).mean(1) for x in logits["teacher", "region"]]
    l_s = inter_level(s_bags, pairs=list(permutations(range(4), 2)))
    l_t = inter_level(t_bags, pairs=[(0, 1), (1, 0)])
    l_ts = inter_level(t_bags + s_bags, pairs=[(t, 2 + s) for t in (0, 1) for s in range(4) if t != s])
    for name, term in zip(WEIGHTS, (l_i, l_r, l_s, l_t, l_ts), strict=True):
        torch.testing.assert_close(ours.parts[name], term)
    theirs = (l_i + l_r) / 2 + 0.1 * (l_s + l_t) + 0.3 * l_ts
    torch.testing.assert_close(ours.loss, theirs)
    their_gradient = torch.autograd.grad(theirs, [p for p in method.parameters() if p.requires_grad])
    for our, their in zip(ours_gradient, their_gradient, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-8, atol=1e-12)


# ---- which terms there are ------------------------------------------------------------------------------------------


def test_the_region_centre_moves_by_the_float32_mean_under_autocast():
    torch.manual_seed(0)
    method, batch = method_of().float(), batch_of()
    batch = batch._replace(views=[view.float() for view in batch.views])
    with torch.autocast("cpu", torch.bfloat16):
        method.step(batch)
        with torch.no_grad():
            z = [method.teacher.heads["region"].project(f.patches) for f in method.teacher.features(batch.views[:2])]
    logits = torch.cat([x.flatten(0, 1) for x in z]).double() @ method.teacher.heads["region"].weight().double().T
    moved = method.centers["region"].value / (1 - method.centers["region"].momentum)
    torch.testing.assert_close(moved.double(), logits.mean(dim=0), rtol=1e-4, atol=1e-7)


def pairs_seen(monkeypatch, sizes, **options) -> dict[str, int]:
    """Numbers of pairs that the losses of a step get."""
    seen = {}
    image, between = cmd.bag_distillation, cmd.inter_level

    def counted(name, loss, *args, pairs):
        seen.setdefault(name, len(pairs))
        return loss(*args, pairs=pairs)

    monkeypatch.setattr(cmd, "bag_distillation", partial(counted, "l_i", image))
    monkeypatch.setattr(cmd, "inter_level", partial(counted, "l_s", between))
    step_of(batch_of(sizes), **options)
    return seen


def test_18_terms_and_90_where_both_see_all_crops(monkeypatch):
    sizes = (32, 32) + (16,) * 8
    assert pairs_seen(monkeypatch, sizes) == {"l_i": 18, "l_s": 90}
    assert pairs_seen(monkeypatch, sizes, teacher_crops="all") == {"l_i": 90, "l_s": 90}


@pytest.mark.parametrize(("options", "pairs"), [({"bags": "both"}, 56), ({"inter_level": "within_crop"}, 4)])
def test_l_s_compares_the_pairs_of_its_reading(monkeypatch, options, pairs):
    assert pairs_seen(monkeypatch, (32, 32, 16, 16), **options)["l_s"] == pairs


def test_crops_of_one_size_share_a_forward(monkeypatch):
    shapes = []
    forward = cmd.last_features
    monkeypatch.setattr(cmd, "last_features", lambda net, x: shapes.append(tuple(x.shape)) or forward(net, x))
    step_of(batch_of((32, 32, 16, 16, 16)))
    assert shapes == [(6, 3, 32, 32), (9, 3, 16, 16), (6, 3, 32, 32)]  # the student's, then the teacher's


TABLE_IV = {  # row: views, options, terms of the loss
    "L_V": ((32, 32), DINO, {"l_i"}),
    "MIL": ((32, 32), DINO | {"image_bag": "instances"}, {"l_i"}),
    "L_R": ((32, 32, 16, 16), ESVIT, {"l_i", "l_r"}),
    "L_T": ((32, 32, 16, 16), {"l_s": 0}, {"l_i", "l_r", "l_t"}),
    "L_S": ((32, 32, 16, 16), {}, {"l_i", "l_r", "l_t", "l_s"}),
}


def test_each_row_of_table_4_has_its_own_terms():
    losses, gradients = {}, {}
    for row, (sizes, options, terms) in TABLE_IV.items():
        method, result = step_of(batch_of(sizes), **options)
        assert set(result.parts) & set(WEIGHTS) == terms, row
        expected = sum(getattr(method, term) * result.parts[term] for term in terms)
        torch.testing.assert_close(result.loss, expected)
        losses[row], gradients[row] = result.loss.item(), gradient_of(method, result)
    assert len(set(losses.values())) == 5
    # L_T is logged and moves the loss's value; its gradient is zero
    for with_t, without in zip(gradients["L_T"], gradients["L_R"], strict=True):
        assert torch.equal(with_t, without)
    assert any(not torch.equal(a, b) for a, b in zip(gradients["L_S"], gradients["L_T"], strict=True))


def test_koleo_is_of_the_students_features_of_the_two_image_crops():
    plain, without = step_of(**DINO)
    method, result = step_of(**DINO, koleo=0.1)
    first, second = (crop.pooled for crop in method.student.features(batch_of().views[:2]))
    torch.testing.assert_close(result.parts["koleo"], koleo(first) + koleo(second))
    torch.testing.assert_close(result.loss, without.loss + 0.1 * result.parts["koleo"])
    backbone = list(method.student.backbone.parameters())
    of_koleo = torch.autograd.grad(0.1 * (koleo(first) + koleo(second)), backbone)
    before = torch.autograd.grad(without.loss, list(plain.student.backbone.parameters()))
    for ours, theirs, added in zip(torch.autograd.grad(result.loss, backbone), before, of_koleo, strict=True):
        torch.testing.assert_close(ours, theirs + added)
    assert (plain.variant, method.variant, method_of(koleo=0.1).variant) == ("DINO", "DINO+KoLeo", "CMD+KoLeo")


def test_the_teachers_term_has_no_gradient_and_its_replacement_has():
    assert not step_of()[1].parts["l_t"].requires_grad
    method, alone = step_of(l_i=0, l_r=0, l_s=0, l_t=0, l_ts=1)
    assert set(alone.parts) & set(WEIGHTS) == {"l_ts"}
    assert any(gradient.abs().max() > 0 for gradient in gradient_of(method, alone))
    assert "no gradient" in CMD.__doc__
    assert "no gradient" in inter_level.__doc__


@pytest.mark.parametrize(
    ("options", "built", "trained"),
    [
        ({}, {"image", "region"}, {"image", "region"}),
        (DINO, {"image"}, {"image"}),
        (DINO | {"l_t": 0.1}, {"image", "region"}, {"image"}),
        ({"l_i": 0, "l_r": 1}, {"region"}, {"region"}),
        ({"l_i": 0, "inter_level": "within_crop"}, {"image", "region"}, {"image", "region"}),
        (DINO | {"l_s": 0.1, "bags": "image"}, {"image"}, {"image"}),
        (DINO | {"image_bag": "instances"}, {"image"}, {"image"}),
    ],
)
def test_heads_that_no_term_needs_are_not_built(options, built, trained):
    method, result = step_of(**options)
    assert set(method.student.heads) == set(method.centers) == built
    assert {level for level, head in method.student.heads.items() if head.prototypes_KC.requires_grad} == trained
    result.loss.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)  # or DDP would wait for it
    assert {"teacher_entropy", "teacher_student_kl"} <= set(result.parts)
    assert method.prototypes == 7


def test_the_step_does_not_depend_on_the_order_of_instances():
    """Eq. 4 to the letter: turning all patches of a network that sees each alone leaves every bag."""
    method = method_of(image_bag="instances")
    student = [Features(torch.zeros(3, 8), torch.randn(3, 5, 8)) for _ in range(3)]
    student = [Features(f.pooled.double(), f.patches.double()) for f in student]
    shuffled = [Features(f.pooled, f.patches[:, torch.randperm(5)]) for f in student]
    for level in ("image", "region"):
        (_, bags), (_, others) = (method.by_patch(level, x, x[:2], pairs=[]) for x in (student, shuffled))
        method.centers[level].value.zero_()
        for bag, other in zip(bags.student, others.student, strict=True):
            torch.testing.assert_close(bag, other)
            torch.testing.assert_close(bag.sum(-1), torch.ones(3, dtype=torch.float64))


def test_evaluation_sees_the_teachers_pooled_features():
    method, images = method_of(), batch_of().views[0]
    torch.testing.assert_close(method.embed(images), method.teacher.features([images])[0].pooled)


# ---- schedules ------------------------------------------------------------------------------------------------------


class Watched(CMD):
    """Notes what each step goes by."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.seen = {"lr": [], "weight_decay": [], "momentum": [], "tau_t": []}

    def step(self, batch):
        self.seen["tau_t"].append(self.tau_t)
        return super().step(batch)

    def on_before_optimizer_step(self, optimizer):
        super().on_before_optimizer_step(optimizer)
        (group,) = [group for group in optimizer.param_groups if group.get("decayed")]
        self.seen["lr"].append(group["lr"])
        self.seen["weight_decay"].append(group["weight_decay"])

    def teacher_momentum(self, step, total):
        self.seen["momentum"].append(super().teacher_momentum(step, total))
        return self.seen["momentum"][-1]


@pytest.fixture(scope="module")
def trained() -> Watched:
    """3 epochs of 4 steps."""
    torch.manual_seed(0)
    optim = Optim(name="adamw", lr=0.01, min_lr=0.001, warmup=1, weight_decay=0.04, weight_decay_end=0.4)
    method = Watched(Backbone("resnet18", options=OPTIONS), **SMALL, optim=optim, tau_t_epochs=3)
    batch = batch_of((16, 16))
    batches = [batch._replace(views=[view.float() for view in batch.views])] * 4
    tiny_trainer(max_epochs=3).fit(method, torch.utils.data.DataLoader(batches, batch_size=None))
    return method


def test_schedules_at_the_first_a_middle_and_the_last_step(trained):
    schedules = DINO_GOLDEN["schedules"]
    assert trained.seen["momentum"] == pytest.approx(schedules["momentum_0.996_to_1_epochs3_niter4"], rel=1e-12)
    assert trained.seen["weight_decay"] == pytest.approx(
        schedules["weight_decay_0.04_to_0.4_epochs3_niter4"], rel=1e-12
    )
    assert trained.seen["tau_t"] == pytest.approx([0.04] * 4 + [0.055] * 4 + [0.07] * 4)
    after_warmup = [0.001 + 0.0045 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert trained.seen["lr"] == pytest.approx([0, 0.0025, 0.005, 0.0075, *after_warmup])


def test_training_moves_teacher_and_centers(trained):
    method = method_of().float()
    for level in ("image", "region"):
        assert trained.centers[level].value.abs().max() > 0
    moved = [
        (a - b).abs().max() > 0 for a, b in zip(trained.teacher.parameters(), trained.student.parameters(), strict=True)
    ]
    assert any(moved)
    assert method.teachers()[0].teacher is method.teacher


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32])
def test_instance_size_of_fig_5_is_the_stride_of_the_map(size):
    """The networks of the ablations, narrower: a region crop of 96 px has (96 / size) squared instances."""
    files = ["cmd_cub", *([f"cmd_ablations/fig5_instance_{size}"] if size != 32 else [])]
    backbone = compose([EXPERIMENTS / f"{name}.yaml" for name in files])["model"]["init_args"]["backbone"]
    assert backbone["pretrained"] is (size > 4)  # no ImageNet weights fit a network of fewer stages
    network = Backbone(backbone["name"], options=backbone["options"] | {"embed_dim": 24}).build()
    with torch.no_grad():
        (of_crop,) = Networks(network, {}).features([torch.randn(1, 3, 96, 96)])
    assert of_crop.patches.shape[:2] == (1, (96 // size) ** 2)
    assert of_crop.pooled.shape == (1, network.num_features)


def test_bad_arguments_are_refused():
    for wrong in ({"l_s": -1}, {"prototypes": 1}, {"hidden": 0}, {"l_i": 0, "l_r": 0, "l_s": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            method_of(**wrong)
    with pytest.raises(UserError, match=r"gives 1 views of an image, but CMD needs 2 or more.*MultiCrop"):
        method_of().check_views(SingleView(16).crops)
