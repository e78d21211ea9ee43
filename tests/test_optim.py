"""The learning rate's schedule and the parameter groups."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from torch import nn

from fgssl.errors import UserError
from fgssl.methods import BYOL
from fgssl.methods.base import Method, StepResult
from fgssl.nn.backbones import Backbone
from fgssl.optim import Group, Optim, own_groups, parameter_groups, warmup_cosine, warmup_linear, warmup_steps
from tests.tiny import BACKBONE, blob_loader, tiny_trainer

SCHEDULE = json.loads((Path(__file__).parent / "golden" / "maskcon.json").read_text())["lr_schedule"]


@pytest.mark.parametrize("point", SCHEDULE["points"], ids=lambda p: f"epoch{p['epoch']}-it{p['it']}")
def test_schedule_is_the_golden_one(point):
    per_epoch = SCHEDULE["iters_per_epoch"]
    step = point["epoch"] * per_epoch + point["it"]
    factor = warmup_cosine(step, SCHEDULE["epochs"] * per_epoch, SCHEDULE["warm_up"] * per_epoch)
    assert SCHEDULE["base"] * factor == pytest.approx(point["lr"], rel=1e-6, abs=1e-15)


def test_schedule_ends_at_the_floor_and_needs_no_warmup():
    assert warmup_cosine(0, 100, 0) == 1
    assert warmup_cosine(100, 100, 10, floor=0.1) == pytest.approx(0.1)
    assert warmup_cosine(150, 100, 10, floor=0.1) == pytest.approx(0.1)


def test_linear_schedule_falls_from_the_peak_to_the_floor_also_where_all_steps_are_warmup():
    factors = [warmup_linear(step, 12, 2, floor=0.1, power=2.0) for step in (0, 1, 2, 7, 12, 15)]
    assert factors == pytest.approx([0, 0.5, 1, 0.1 + 0.9 / 4, 0.1, 0.1])
    assert warmup_linear(10, 10, 10, floor=0.1, power=1.0) == 1


class Line(Method):
    """A regression on the mean colour, without data module, teacher and evaluation."""

    default_views, embeds = None, False

    def __init__(self, **optim):
        super().__init__(Optim(warmup=0, **optim))
        self.line = nn.Linear(3, 1)

    def step(self, batch):
        return StepResult(self.line(batch.views[0].mean((2, 3))).pow(2).mean())


class Look(Callback):
    """Keeps learning rate and weight decay of each step, and stops after ``most`` steps."""

    def __init__(self, most: int = 10):
        self.most, self.rates, self.decays = most, [], []

    def on_train_batch_end(self, trainer, method, *_):
        (group,) = trainer.optimizers[0].param_groups
        self.rates.append(group["lr"])
        self.decays.append(group["weight_decay"])
        trainer.should_stop = trainer.global_step == self.most


@pytest.mark.parametrize("limits", [(2, -1), (2, 5000), (5000, 8), (-1, 8)])
def test_schedules_end_with_the_run_whichever_limit_ends_it(limits):
    epochs, steps = limits
    look = Look()
    method = Line(lr=0.1, schedule="linear", weight_decay=0.0, weight_decay_end=0.2)
    tiny_trainer(max_epochs=epochs, max_steps=steps, callbacks=[look]).fit(method, blob_loader(32, 8))
    assert look.rates == pytest.approx([0.1 * (1 - step / 8) for step in range(1, 9)])
    assert look.decays == pytest.approx([0.1 * (1 - math.cos(math.pi * step / 8)) for step in range(8)])


def test_a_warmup_of_a_share_of_an_epoch_is_rounded_to_the_nearest_step():
    """The 1,000 steps of a paper are 0.1364 epochs of COCO, 999.8 steps."""
    look, method = Look(), Line()
    method.optim = Optim(lr=0.1, warmup=0.7, schedule="steps")  # 2.8 of 4 steps
    tiny_trainer(max_epochs=1, callbacks=[look]).fit(method, blob_loader(32, 8))
    assert look.rates == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.1])


def test_a_run_without_a_length_is_refused_where_something_depends_on_it():
    endless = {"max_epochs": -1, "max_time": {"hours": 1}}
    for optim, what in (({}, "the learning rate"), ({"length": 4, "weight_decay_end": 0.2}, "the weight decay")):
        look = Look()
        with pytest.raises(UserError, match=f"are both -1, but the length of the run sets {what}"):
            tiny_trainer(callbacks=[look], **endless).fit(Line(**optim), blob_loader())
        assert not look.rates
    for optim in ({"length": 2, "schedule": "linear"}, {"schedule": "steps", "milestones": [1]}):
        look = Look(most=10)
        tiny_trainer(callbacks=[look], **endless).fit(Line(**optim), blob_loader())
        assert len(look.rates) == 10


def test_a_teachers_momentum_depends_on_the_length_of_the_run_where_it_grows():
    assert BYOL(BACKBONE, optim=Optim(length=9)).follows_length() == ["the momentum of the teacher"]
    assert not BYOL(BACKBONE, momentum=1.0, optim=Optim(length=9)).follows_length()


def test_sgd_of_a_configuration_file_is_sgd_without_nesterov_momentum():
    (group,) = Optim(name=yaml.safe_load("sgd")).build(nn.Linear(2, 2), 1).param_groups
    assert not group["nesterov"]


def test_groups_spare_one_dimensional_parameters_when_asked():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    module[0].bias.requires_grad_(False)
    (all_of_them,) = parameter_groups(module.named_parameters(), 0.1)
    assert len(all_of_them["params"]) == 3
    decayed, rest = parameter_groups(module.named_parameters(), 0.1, decay_1d=False)
    assert [p.ndim for p in decayed["params"]] == [2]
    assert rest["weight_decay"] == 0


def test_learning_rate_scales_with_the_global_batch():
    module = nn.Linear(2, 2)
    assert Optim(lr=0.1).build(module, 512).param_groups[0]["lr"] == pytest.approx(0.1)
    scaled = Optim(lr=0.1, reference_batch=256).build(module, 512)
    assert scaled.param_groups[0]["lr"] == pytest.approx(0.2)
    assert isinstance(Optim(name="adamw").build(module, 1), torch.optim.AdamW)


@pytest.mark.parametrize("decay_1d", [True, False])
def test_biases_and_normalisation_have_a_learning_rate_of_their_own_when_asked(decay_1d):
    """Barlow Twins: 0.2 and 0.0048 for 256 images."""
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optim = Optim(name="lars", lr=0.2, lr_1d=0.0048, weight_decay=1e-6, decay_1d=decay_1d, reference_batch=256)
    weights, rest = optim.build(module, 1024).param_groups
    assert [p.ndim for p in weights["params"]] == [2]
    assert [p.ndim for p in rest["params"]] == [1, 1, 1]
    assert (weights["lr"], rest["lr"]) == pytest.approx((0.8, 0.0192))
    assert (weights["weight_decay"], rest["weight_decay"]) == (1e-6, 1e-6 if decay_1d else 0)


def test_layers_have_the_rates_of_vitdets_code_and_the_heads_the_full_one():
    """Of layer n of 4 blocks: 0.7 to the 5 - n; 0 is the patches and positions, n + 1 block n, 5 all the rest."""
    options = {"embed_dim": 16, "depth": 4, "num_heads": 2, "img_size": 64, "window_size": 2}
    module = nn.ModuleDict(
        {"network": Backbone("vitdet_base_patch16", options=options).build(), "head": nn.Linear(4, 2)}
    )
    module["network"].neck.requires_grad_(False)  # a detector does not use it
    optim = Optim(name="adamw", lr=1e-4, weight_decay=0.1, decay_1d=False, layer_decay=0.7, reference_batch=32)
    optimizer = optim.build(module, 64)
    assert isinstance(optimizer, torch.optim.AdamW)
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in optimizer.param_groups)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert len(found) == len(trained)
    for name, weight in trained.items():
        embeds = "pos_embed" in name or "patch_embed" in name
        layer = 0 if embeds else int(name.split(".")[2]) + 1 if "blocks" in name else 5
        assert found[id(weight)]["lr"] == pytest.approx(2e-4 * 0.7 ** (5 - layer))
        decays = weight.ndim > 1 and "pos_embed" not in name
        assert found[id(weight)]["weight_decay"] == (0.1 if decays else 0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2e-4)  # the one that is logged


def test_layers_of_a_plain_vit_have_the_rates_of_the_windowed_one():
    """The last block is below the heads, whether or not the network has a normalisation of its own after it."""
    options = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 32}
    module = nn.ModuleDict(
        {"network": Backbone("vit_tiny_patch16_224", options=options).build(), "head": nn.Linear(4, 2)}
    )
    found = Optim(lr=1.0, layer_decay=0.5).build(module, 1).param_groups
    rates = {id(p): group["lr"] for group in found for p in group["params"]}
    network = module["network"]
    weights = (module["head"].weight, network.blocks[1].attn.qkv.weight, network.blocks[0].attn.qkv.weight)
    assert [rates[id(w)] for w in (*weights, network.patch_embed.proj.weight)] == pytest.approx([1, 0.5, 0.25, 0.125])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer_decay": 0}, "layer_decay is 0; it must be above 0 and up to 1"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
        ({"layer_decay": 0.7, "lr_1d": 0.1}, "layer_decay and lr_1d are both given"),
        ({"warmup": 5, "length": 5}, "length is 5; it must be above the warmup, 5"),
        ({"warmup": 5, "length": 4}, "length is 4; it must be above the warmup, 5"),
        ({"layer_decay": 0.7}, "trains no network whose layers timm knows"),
    ],
)
def test_values_that_do_not_go_together_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        Optim(**options).build(nn.Linear(2, 2), 1)


def test_steps_fall_at_the_milestones_after_the_warmup():
    assert [warmup_steps(step, 2, [4, 6], 0.3) for step in range(8)] == pytest.approx(
        [0, 0.5, 1, 1, 0.3, 0.3, 0.09, 0.09]
    )
    assert warmup_steps(0, 0, [], 0.3) == 1


def test_parameters_with_settings_of_their_own_leave_the_rest():
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    own, rest = own_groups(module.named_parameters(), [Group("1.", lr=5e-4)])
    (group,) = own
    assert all(p is expected for p, expected in zip(group["params"], module[1].parameters(), strict=True))
    assert (group["lr"], group["weight_decay"]) == (5e-4, 0)
    assert [name for name, _ in rest] == ["0.weight", "0.bias"]
    with pytest.raises(UserError, match="no trainable parameter of the model is named '2"):
        own_groups(module.named_parameters(), [Group("2.", lr=1.0)])


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.8, "nesterov": False}),
        ("adam", torch.optim.Adam, {"betas": (0.9, 0.999), "eps": 1e-8, "decoupled_weight_decay": False}),
        ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.999), "eps": 1e-8}),
    ],
)
def test_optimiser_of_the_papers_is_torchs_own(name, kind, settings):
    module = nn.Linear(2, 2)
    built = Optim(name=name, lr=0.3, momentum=0.8, weight_decay=0.01).build(module, global_batch=1)
    assert type(built) is kind
    (group,) = built.param_groups
    assert {"lr": 0.3, "weight_decay": 0.01, **settings}.items() <= group.items()


@pytest.mark.parametrize("name", ["lars", "lamb", "lion"])
def test_optimiser_of_timm_takes_a_step_with_groups_of_its_own(name):
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    groups = [Group("1.", lr=0.5, weight_decay=0.25)]
    built = Optim(name=name, lr=0.1, weight_decay=0.01, decay_1d=False, groups=groups).build(module, global_batch=1)
    assert [(group["lr"], group["weight_decay"]) for group in built.param_groups] == [
        (0.1, 0.01),
        (0.1, 0.0),
        (0.5, 0.25),
    ]
    before = [weight.detach().clone() for weight in module.parameters()]
    module(torch.ones(3, 2)).sum().backward()
    built.step()
    assert all(not old.equal(new) for old, new in zip(before, module.parameters(), strict=True))


def test_unknown_optimiser_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"model.optim.name: unknown optimiser 'larz'. Did you mean 'lars'\?"):
        Optim(name="larz").build(nn.Linear(1, 1), global_batch=1)


def test_lars_step_is_that_of_its_paper_and_spares_biases():
    """You, Gitman & Ginsburg (2017), algorithm 1, in plain floats: two steps with momentum."""
    lr, momentum, decay, trust = 0.3, 0.9, 0.01, 0.001
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    names = [name for name, _ in module.named_parameters()]
    optim = Optim(name="lars", lr=lr, momentum=momentum, weight_decay=decay, decay_1d=False, warmup=0)
    built = optim.build(module, global_batch=1)
    expected = {name: weight.detach().flatten().tolist() for name, weight in module.named_parameters()}
    speed = {name: [0.0] * len(values) for name, values in expected.items()}

    def length(values: list[float]) -> float:
        return sum(v * v for v in values) ** 0.5

    for step in range(2):
        built.zero_grad()
        for scale, weight in enumerate(module.parameters(), start=1):
            weight.grad = scale * torch.sin(torch.arange(weight.numel(), dtype=torch.float64) + step).view_as(weight)
        for name, weight in module.named_parameters():
            gradient, old = weight.grad.flatten().tolist(), expected[name]
            rate = 1.0
            if name == "0.weight":
                rate = trust * length(old) / (length(gradient) + decay * length(old))
                gradient = [g + decay * w for g, w in zip(gradient, old, strict=True)]
            speed[name] = [momentum * v + rate * g for v, g in zip(speed[name], gradient, strict=True)]
            expected[name] = [w - lr * v for w, v in zip(old, speed[name], strict=True)]
        built.step()
    assert names == ["0.weight", "0.bias", "1.weight", "1.bias"]
    for name, weight in module.named_parameters():
        assert weight.flatten().tolist() == pytest.approx(expected[name], rel=1e-7, abs=1e-12), name


def test_parameters_with_a_constant_rate_are_groups_of_their_own_with_the_same_settings():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optim = Optim(lr=0.1, reference_batch=256, weight_decay=0.3, decay_1d=False, constant="1.")
    built = optim.build(module, global_batch=512)
    settings = [(len(g["params"]), g["lr"], g["weight_decay"], g.get("constant", False)) for g in built.param_groups]
    assert settings == [(1, 0.2, 0.3, False), (1, 0.2, 0.0, False), (1, 0.2, 0.3, True), (1, 0.2, 0.0, True)]
    with pytest.raises(UserError, match="model.optim.constant: no trainable parameter of the model is named '2"):
        Optim(constant="2").build(module, global_batch=1)


def test_eps_is_that_of_adam_and_refused_where_there_is_none():
    """A step of Adam at the start is lr g / (|g| + eps): eps 1 makes it nearly a step of gradient descent."""
    module = nn.Linear(3, 1)
    start = module.weight.detach().clone()
    optimizer = Optim(name="adam", lr=0.1, eps=1.0, weight_decay=0).build(module, 1)
    module.weight.grad = torch.tensor([[0.5, -2.0, 1e-3]])
    module.bias.grad = torch.zeros(1)
    optimizer.step()
    expected = -0.1 * module.weight.grad / (module.weight.grad.abs() + 1)
    torch.testing.assert_close(module.weight.detach() - start, expected)
    with pytest.raises(UserError, match="model.optim.eps: sgd has none; set it to null"):
        Optim(name="sgd", eps=1.0).build(module, 1)
    with pytest.raises(UserError, match="eps is 0"):
        Optim(eps=0)


def test_layer_decay_marks_the_weights_whose_decay_follows_the_schedule():
    options = {"img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": 8, "num_heads": 2}
    network = Backbone("vit_tiny_patch16_224", options=options).build()
    groups = Optim(lr=1.0, layer_decay=0.5, weight_decay=0.1).build(nn.ModuleDict({"network": network}), 1).param_groups
    assert {group["decayed"] for group in groups} == {True, False}
    assert all(group["decayed"] == (group["weight_decay"] > 0) for group in groups)
