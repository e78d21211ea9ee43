"""CMD's losses against golden numbers, and what has to hold of them for any input."""

import json
from functools import partial
from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from fgssl.losses.cmd import bag_of, image_distillation, inter_level, log_posterior, posterior, region_distillation
from fgssl.nn.center import Center

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "cmd.json").read_text())
INTRA, INTER = GOLDEN["intra"], GOLDEN["inter"]
PAIRS = [(pair["teacher_crop"], pair["student_crop"]) for pair in INTRA["pairs"]]
PATCHES = [INTRA["T_global"]] * 2 + [INTRA["T_local"]] * 2  # of each crop
close = partial(torch.testing.assert_close, rtol=1e-6, atol=0)


def tensor(value) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def crops(rows: list, *, by_patch: bool) -> list[torch.Tensor]:
    """The golden file's rows, crop after crop, as [B, K] or [B, T, K] a crop."""
    counts = PATCHES if by_patch else [1] * 4
    split = [INTRA["B"] * count for count in counts]
    parts = tensor(rows).split(split[: 4 if len(rows) == sum(split) else 2])
    return [
        part.unflatten(0, (INTRA["B"], count)) if by_patch else part for part, count in zip(parts, counts, strict=False)
    ]


S_IMAGE, T_IMAGE = crops(INTRA["s_cls"], by_patch=False), crops(INTRA["t_cls"], by_patch=False)
S_REGION, T_REGION = crops(INTRA["s_region"], by_patch=True), crops(INTRA["t_region"], by_patch=True)
S_FEATURES, T_FEATURES = crops(INTRA["s_feat"], by_patch=True), crops(INTRA["t_feat"], by_patch=True)
CENTER, CENTER_REGION = tensor(INTRA["center"]), tensor(INTRA["center_grid"])
TAUS = {"tau_s": INTRA["tau_s"], "tau_t": INTRA["tau_t"]}
image_loss = partial(image_distillation, center=CENTER, **TAUS)
region_loss = partial(region_distillation, center=CENTER_REGION, **TAUS)


def bags_of(level: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The student's and the teacher's."""
    if level == "image":
        student = [log_posterior(logits, tau=TAUS["tau_s"]).exp() for logits in S_IMAGE]
        return student, [posterior(logits, center=CENTER, tau=TAUS["tau_t"]) for logits in T_IMAGE]
    student = [bag_of(log_posterior(logits, tau=TAUS["tau_s"]).exp()) for logits in S_REGION]
    return student, [bag_of(posterior(logits, center=CENTER_REGION, tau=TAUS["tau_t"])) for logits in T_REGION]


def test_image_level_gives_the_golden_loss_and_gradient():
    student = [logits.clone().requires_grad_() for logits in S_IMAGE]
    loss = image_loss(student, T_IMAGE, pairs=PAIRS)
    close(loss, tensor(INTRA["L_I"]))
    for (t, s), pair in zip(PAIRS, INTRA["pairs"], strict=True):
        close(image_loss(S_IMAGE, T_IMAGE, pairs=[(t, s)]), tensor(pair["L_I"]))
    (loss / 2).backward()
    torch.testing.assert_close(torch.cat([x.grad for x in student]), tensor(INTRA["grad_s_cls"]), rtol=1e-6, atol=1e-12)


def test_region_level_gives_the_golden_loss():
    features = (S_FEATURES, T_FEATURES)
    loss = region_loss(S_REGION, T_REGION, *features, pairs=PAIRS)
    close(loss, tensor(INTRA["L_R"]))
    close((image_loss(S_IMAGE, T_IMAGE, pairs=PAIRS) + loss) / 2, tensor(INTRA["intra_total_(L_I+L_R)/2"]))
    for (t, s), pair in zip(PAIRS, INTRA["pairs"], strict=True):
        close(region_loss(S_REGION, T_REGION, *features, pairs=[(t, s)]), tensor(pair["L_R"]))


def test_region_level_gradient_is_that_of_the_plain_sum():
    """The loss computes each crop anew in the backward pass; here all of it is kept."""
    student = [logits.clone().requires_grad_() for logits in S_REGION]
    region_loss(student, T_REGION, S_FEATURES, T_FEATURES, pairs=PAIRS).backward()
    ours = [logits.grad.clone() for logits in student]
    plain = torch.zeros((), dtype=torch.float64)
    for (t, s), pair in zip(PAIRS, INTRA["pairs"], strict=True):
        p = ((T_REGION[t] - CENTER_REGION) / TAUS["tau_t"]).softmax(-1)
        nearest = torch.tensor(pair["match"])
        log_p = (student[s] / TAUS["tau_s"]).log_softmax(-1)
        plain = plain - torch.stack([(p[b, nearest[b]] * log_p[b]).sum(-1).mean() for b in range(INTRA["B"])]).mean()
    theirs = torch.autograd.grad(plain / len(PAIRS), student)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-9, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    assert torch.autograd.gradcheck(
        lambda *student: image_loss(list(student), T_IMAGE, pairs=PAIRS), [x.clone().requires_grad_() for x in S_IMAGE]
    )
    region = [x.clone().requires_grad_() for x in S_REGION]
    assert torch.autograd.gradcheck(
        lambda *student: region_loss(list(student), T_REGION, S_FEATURES, T_FEATURES, pairs=PAIRS), region
    )
    between = list(permutations(range(4), 2))
    assert torch.autograd.gradcheck(
        lambda *student: inter_level([bag_of((x / 0.1).softmax(-1)) for x in student], pairs=between), region
    )


def test_bags_give_the_golden_numbers():
    for ours, theirs in zip(bags_of("region"), (INTER["student_bags"], INTER["teacher_bags"]), strict=True):
        torch.testing.assert_close(torch.stack(ours), tensor(theirs), rtol=1e-6, atol=1e-15)
    for ours, theirs in zip(bags_of("image"), (INTER["student_image"], INTER["teacher_image"]), strict=True):
        torch.testing.assert_close(torch.stack(ours), tensor(theirs), rtol=1e-6, atol=1e-15)


def test_a_bag_sums_to_one_and_has_no_order():
    instances = torch.randn(3, 7, 11, dtype=torch.float64).softmax(dim=-1)
    bag = bag_of(instances)
    torch.testing.assert_close(bag.sum(dim=-1), torch.ones(3, dtype=torch.float64))
    for order in (torch.randperm(7), torch.arange(7).flip(0)):
        torch.testing.assert_close(bag_of(instances[:, order]), bag)
    assert not torch.allclose(bag_of(instances[:, [0, 0, 1, 2, 3, 4, 5]]), bag)


@pytest.mark.parametrize(
    ("levels", "key"),
    [
        (("region",), "eq14_region_bags_ordered_pairs"),
        (("image", "region"), "eq14_image_and_region_bags_ordered_pairs"),
    ],
)
def test_inter_level_gives_the_golden_loss_over_all_ordered_pairs(levels, key):
    student = [bag for level in levels for bag in bags_of(level)[0]]
    pairs = list(permutations(range(len(student)), 2))
    assert len(pairs) == INTER[key]["n_pairs"]
    close(inter_level(student, pairs=pairs), tensor(INTER[key]["L_S"]))


def test_inter_level_of_the_teacher_gives_the_golden_loss():
    close(
        inter_level(bags_of("region")[1], pairs=[(0, 1), (1, 0)]),
        tensor(INTER["eq15_region_bags_ordered_pairs"]["L_T"]),
    )


def test_inter_level_within_a_crop_gives_the_golden_loss():
    for net, name in enumerate(("L_S", "L_T")):
        image, region = bags_of("image")[net], bags_of("region")[net]
        pairs = [(crop, len(image) + crop) for crop in range(len(image))]
        close(inter_level(image + region, pairs=pairs), tensor(INTER["within_crop_KL(image||region_bag)"][name]))


def test_inter_level_is_torchs_divergence():
    bags = [torch.randn(3, 9, dtype=torch.float64).softmax(-1) for _ in range(3)]
    pairs = [(0, 1), (2, 1), (1, 0), (0, 2)]
    theirs = [F.kl_div(bags[j].log(), bags[i], reduction="batchmean") for i, j in pairs]
    close(inter_level(bags, pairs=pairs), torch.stack(theirs).mean())
    assert inter_level([bags[0], bags[0].clone()], pairs=[(0, 1)]) == 0


def test_a_probability_of_zero_is_no_nan():
    certain, other = torch.tensor([[1.0, 0.0]], requires_grad=True), torch.tensor([[0.5, 0.5]], requires_grad=True)
    loss = inter_level([certain, other], pairs=[(0, 1), (1, 0)])
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(certain.grad).all()
    assert torch.isfinite(other.grad).all()


def test_centers_give_the_golden_values_after_the_loss():
    for start, logits, end in (
        (CENTER, torch.cat(T_IMAGE), INTRA["center_after_update_m0.9"]),
        (CENTER_REGION, torch.cat([x.flatten(0, 1) for x in T_REGION]), INTRA["center_grid_after_update_m0.9"]),
    ):
        center = Center(INTRA["K"]).double()
        center.value.copy_(start[0])
        center.update(logits)
        close(center.value[None], tensor(end))
