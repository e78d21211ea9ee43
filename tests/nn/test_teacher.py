"""The EMA teacher."""

import json
from pathlib import Path

import torch
from torch import nn

from fgssl.nn.teacher import ema_update, snapshot, teacher_of

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "maskcon.json").read_text())["ema"]


def test_ema_is_the_golden_one():
    student, teacher = nn.Linear(2, 1, bias=False).double(), nn.Linear(2, 1, bias=False).double()
    student.weight.data[:] = torch.tensor([GOLDEN["query"]])
    teacher.weight.data[:] = torch.tensor([GOLDEN["key"]])
    for step in (1, 2, 3):
        ema_update(student, teacher, GOLDEN["m"])
        if f"after_{step}" in GOLDEN:
            expected = torch.tensor([GOLDEN[f"after_{step}"]], dtype=torch.float64)
            torch.testing.assert_close(teacher.weight.data, expected, rtol=1e-6, atol=0)


def test_teacher_starts_equal_takes_no_gradient_and_keeps_its_own_buffers():
    student = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    teacher = teacher_of(student)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True))
    assert not any(p.requires_grad for p in teacher.parameters())
    student(torch.randn(8, 3) + 5)
    before = teacher[1].running_mean.clone()
    ema_update(student, teacher, 0.5)
    assert torch.equal(teacher[1].running_mean, before)
    assert not torch.equal(student[1].running_mean, before)


def test_momentum_one_and_zero_are_the_limits():
    student, teacher = nn.Linear(4, 4), nn.Linear(4, 4)
    before = teacher.weight.clone()
    ema_update(student, teacher, 1.0)
    assert torch.equal(teacher.weight, before)
    ema_update(student, teacher, 0.0)
    torch.testing.assert_close(teacher.weight, student.weight)


def test_a_snapshot_is_the_student_with_its_buffers():
    student = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    teacher = teacher_of(student)
    student(torch.randn(8, 3) + 5)
    with torch.no_grad():
        student[0].weight += 1
    snapshot(student, teacher)
    for ours, theirs in zip(student.state_dict().values(), teacher.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()
