"""What CMD and FLSL share of DINO, against the golden numbers."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from fgssl.cli.main import main
from fgssl.errors import UserError
from fgssl.methods.base import StepResult
from fgssl.methods.self_distillation import SelfDistillation, teacher_temperature, watch
from fgssl.nn.backbones import Backbone
from fgssl.nn.heads import DINOHead
from fgssl.nn.teacher import ema_update, without_drop_path
from fgssl.optim import Optim, clip_each, cosine
from tests.methods.runs import arguments
from tests.tiny import blob_loader, tiny_trainer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "dino.json").read_text())
SCHEDULES = GOLDEN["schedules"]


@pytest.mark.parametrize(
    ("values", "start", "end"),
    [
        (SCHEDULES["momentum_0.996_to_1_epochs3_niter4"], 0.996, 1.0),
        (SCHEDULES["weight_decay_0.04_to_0.4_epochs3_niter4"], 0.04, 0.4),
        (GOLDEN["flsl_schedules"]["wd_paper_0.05_0.5_epochs3_niter4"], 0.05, 0.5),
    ],
)
def test_cosine_gives_the_golden_schedules(values, start, end):
    assert [cosine(step, 12, start, end) for step in range(12)] == pytest.approx(values, rel=1e-12)
    assert cosine(12, 12, start, end) == pytest.approx(end)


def test_teacher_temperature_gives_the_golden_schedule():
    ours = [teacher_temperature(epoch, 0.04, 0.07, 3) for epoch in range(5)]
    assert ours == pytest.approx(SCHEDULES["teacher_temp_0.04_0.07_warm3_epochs5"], rel=1e-12)
    first = [teacher_temperature(epoch, 0.04, 0.07, 30) for epoch in (0, 1, 29, 30)]
    assert first == pytest.approx(GOLDEN["flsl_schedules"]["teacher_temp_300ep_first_and_30"][:4], rel=1e-12)
    assert [teacher_temperature(epoch, 0.04, 0.07, 0) for epoch in (0, 5)] == [0.07, 0.07]


def test_dino_head_gives_the_golden_logits():
    golden = {name: torch.tensor(value, dtype=torch.float64) for name, value in GOLDEN["dino_head"].items()}
    head = DINOHead(3, 3, hidden=4, bottleneck=2).double()
    for number, layer in zip("123", head.mlp[::2], strict=True):
        layer.weight.data, layer.bias.data = golden[f"W{number}"], golden[f"b{number}"]
    head.prototypes_KC.data = golden["V"]
    torch.testing.assert_close(head(golden["x"]), golden["logits"], rtol=1e-6, atol=0)
    head.prototypes_KC.data *= 7  # its length is fixed
    torch.testing.assert_close(head(golden["x"]), golden["logits"], rtol=1e-6, atol=0)


def reference_head(head: DINOHead) -> nn.Module:
    """The released head: torch's weight norm on the last layer, its lengths filled with 1 or whatever they are now."""
    last = nn.Linear(head.prototypes_KC.shape[1], len(head.prototypes_KC), bias=False).double()
    last.weight.data.copy_(head.prototypes_KC.detach())
    last = nn.utils.parametrizations.weight_norm(last)
    lengths = torch.ones(len(head.prototypes_KC), 1) if head.lengths_K1 is None else head.lengths_K1
    last.parametrizations.weight.original0.data.copy_(lengths.detach())
    return last


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_dino_head_is_weight_norm(norm_last_layer):
    """Logits and gradients of an independent formulation, at lengths that have moved from 1."""
    torch.manual_seed(0)
    head = DINOHead(6, 9, hidden=8, bottleneck=5, norm_last_layer=norm_last_layer).double()
    with torch.no_grad():
        for layer in head.mlp[::2]:
            layer.weight *= 30  # far enough from 0 for the GELU to bend
            layer.bias.normal_()
        if not norm_last_layer:
            head.lengths_K1.uniform_(0.5, 2)
    last, x = reference_head(head), torch.randn(4, 3, 6, dtype=torch.float64)
    hidden = head.mlp(x)
    reference = last(hidden / hidden.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(head(x), reference, rtol=1e-9, atol=0)
    direction = torch.randn_like(reference)
    g, v = last.parametrizations.weight.original0, last.parametrizations.weight.original1
    theirs = torch.autograd.grad((reference * direction).sum(), [v, g, *head.mlp.parameters()])
    ours = torch.autograd.grad((head(x) * direction).sum(), [*head.last_layer(), *head.mlp.parameters()])
    theirs = [theirs[0], *theirs[2:]] if norm_last_layer else theirs
    for our_gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our_gradient, expected, rtol=1e-9, atol=1e-12)


def test_dino_head_starts_as_the_released_one():
    """Prototypes of nn.Linear's length, 0.58 = sqrt(1/3), at g = 1; the other layers truncated normal of 0.02."""
    torch.manual_seed(0)
    head = DINOHead(64, 512, hidden=128, bottleneck=256, norm_last_layer=False)
    assert head.prototypes_KC.norm(dim=1).mean().item() == pytest.approx(math.sqrt(1 / 3), rel=0.01)
    assert head.prototypes_KC.abs().max() <= 1 / 16  # uniform between -1 and 1 over sqrt(256)
    assert torch.equal(head.lengths_K1, torch.ones(512, 1))
    assert torch.equal(head.weight().norm(dim=1), head.weight().norm(dim=1).clamp(1 - 1e-5, 1 + 1e-5))
    assert head.mlp[2].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not any(layer.bias.any() for layer in head.mlp[::2])
    assert DINOHead(64, 512).lengths_K1 is None


def test_clip_each_gives_the_golden_gradients():
    golden = GOLDEN["clip"]
    parameters = [nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in golden["grads"]]
    for parameter, gradient in zip(parameters, golden["grads"], strict=True):
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
    clip_each(parameters, 3.0)
    for parameter, expected in zip(parameters, golden["clipped_per_parameter"], strict=True):
        torch.testing.assert_close(parameter.grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)
    clip_each([nn.Parameter(torch.zeros(2))], 3.0)  # none has a gradient


def test_watch_gives_entropy_and_divergence():
    student, teacher = torch.randn(4, 6), torch.randn(4, 6).softmax(dim=-1)
    ours = watch(-(teacher * (student / 0.5).log_softmax(dim=-1)).sum(dim=-1).mean(), teacher)
    s, t = torch.distributions.Categorical(logits=student / 0.5), torch.distributions.Categorical(probs=teacher)
    torch.testing.assert_close(ours["teacher_entropy"], t.entropy().mean())
    torch.testing.assert_close(ours["teacher_student_kl"], torch.distributions.kl_divergence(t, s).mean())
    one_hot = torch.eye(6)[:4]
    assert watch(torch.tensor(1.0), one_hot)["teacher_entropy"] == 0
    even = watch(torch.tensor(1.0), torch.full((4, 6), 1 / 6))
    assert even["teacher_entropy"].item() == pytest.approx(math.log(6))


class Distilled(SelfDistillation):
    """The smallest method of the kind."""

    def __init__(self, **base):
        super().__init__(**base)
        backbone = Backbone("vit_tiny_patch16_224", options=VIT).build()
        self.student = nn.Sequential(backbone, DINOHead(8, 5, hidden=6, bottleneck=4, norm_last_layer=False))
        self.make_teacher()
        self.decays, self.gradients, self.last_layers = [], [], []

    def embed(self, images):
        return self.teacher[0](images)

    def step(self, batch):
        loss = -(self.student(batch.views[0]).log_softmax(-1) * self.teacher(batch.views[1]).softmax(-1)).sum(-1).mean()
        return StepResult(100 * loss)

    def on_train_batch_end(self, *_):
        (group,) = [group for group in self.optimizers().param_groups if group.get("decayed")]
        self.decays.append(group["weight_decay"])
        self.last_layers.append([weight.detach().clone() for weight in self.student[1].last_layer()])

    def on_before_zero_grad(self, optimizer):
        self.gradients += [p.grad.norm().item() for p in self.parameters() if p.grad is not None]


VIT = {"img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": 8, "num_heads": 2, "drop_path_rate": 0.5}
OPTIM = {"name": "adamw", "lr": 0.01, "warmup": 0, "decay_1d": False}


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    optim = Optim(**OPTIM, weight_decay=0.04, weight_decay_end=0.4, clip_each=0.01)
    method = Distilled(optim=optim)
    tiny_trainer(max_epochs=3).fit(method, blob_loader())
    return method


def test_weight_decay_follows_its_schedule(trained):
    assert trained.decays == pytest.approx(SCHEDULES["weight_decay_0.04_to_0.4_epochs3_niter4"], rel=1e-12)


def test_each_gradient_is_clipped(trained):
    assert 0.009 < max(trained.gradients) <= 0.01 + 1e-6


def test_the_last_layer_is_frozen_in_the_first_epoch(trained):
    first, *_, last_of_epoch_0 = trained.last_layers[:4]
    for before, after, later in zip(first, last_of_epoch_0, trained.last_layers[4], strict=True):
        assert torch.equal(before, after)
        assert not torch.equal(after, later)
    lengths = dict(trained.teacher.named_parameters())["1.lengths_K1"]
    assert not torch.equal(lengths, torch.ones_like(lengths))  # the teacher's follow


def test_only_the_student_has_stochastic_depth(trained):
    images = torch.randn(4, 3, 8, 8)
    trained.train()
    torch.manual_seed(0)
    assert not torch.equal(trained.student(images), trained.student(images))
    assert torch.equal(trained.teacher(images), trained.teacher(images))
    assert not any(p.requires_grad for p in trained.teacher.parameters())
    assert without_drop_path(nn.Identity())  # a network without any


def test_bad_arguments_are_refused():
    for wrong in ({"tau_s": 0}, {"tau_t": -1}, {"momentum": -0.1}, {"tau_t_epochs": None}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Distilled(**wrong)
    with pytest.raises(UserError, match="clip_each"):
        Optim(clip_each=0)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_weights_of_16_bits_are_refused_for_a_moving_average(precision, tmp_path, capsys):
    assert main(arguments("maskcon", tmp_path, "run", "--trainer.precision", precision)) == 2
    said = capsys.readouterr().err
    assert f"trainer.precision {precision} has weights of 16 bits" in said
    assert f"MaskCon's teacher would be rounded away. Take {precision.replace('true', 'mixed')}" in said
    assert not (tmp_path / "maskcon" / "run" / "checkpoints").exists()


def test_the_moving_average_that_is_refused_would_stand_still():
    student, teacher = nn.Linear(8, 8), nn.Linear(8, 8)
    teacher.load_state_dict(student.state_dict())
    with torch.no_grad():
        student.weight.mul_(1.3)
    before = teacher.to(torch.bfloat16).weight.clone()
    ema_update(student.to(torch.bfloat16), teacher, 0.996)
    assert torch.equal(teacher.weight, before)


def test_a_method_without_a_moving_average_may_have_weights_of_16_bits(tmp_path):
    flags = ("--trainer.precision", "bf16-true", "--trainer.max_steps", "2", "--data.num_workers", "0")
    assert main(arguments("finetune", tmp_path, "run", *flags)) == 0


@pytest.mark.parametrize(("half", "eps"), [(True, 1e-6), (False, 1e-12)], ids=["float16", "float32, as released"])
def test_a_patch_without_features_has_a_gradient_that_float16_can_hold(half, eps):
    """All biases are 0 at the start, so that the head of such a patch gives 0."""
    head = DINOHead(4, prototypes=5, hidden=6, bottleneck=3)
    with torch.autocast("cpu", torch.float16, enabled=half):
        projected = head.project(torch.zeros(1, 4))
    assert not projected.any()
    (projected.float().sum() / 256).backward()
    torch.testing.assert_close(head.mlp[-1].bias.grad, torch.full((3,), 1 / 256 / eps), rtol=0.1, atol=0)
