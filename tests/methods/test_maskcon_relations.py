"""Where MaskCon's soft relations lie (experiments/evidence/maskcon_relations.py)."""

import runpy
from pathlib import Path

import pytest
import torch

from fgssl.cli.main import main
from fgssl.losses.maskcon import soft_targets
from tests.methods.runs import arguments

RELATIONS = runpy.run_path(str(Path(__file__).parents[2] / "experiments" / "evidence" / "maskcon_relations.py"))
MEMORY = torch.eye(4, dtype=torch.float64)  # four entries; the first three of the coarse label 0
COARSE = torch.tensor([0, 0, 0, 1])
SAME = torch.tensor([[True, True, False, False]])  # of the fine class


def shares(tau: float, own: list[bool]) -> tuple[float, float]:
    key_1D = torch.tensor([[0.6, 0.8, 0, 0]], dtype=torch.float64)
    targets_15 = soft_targets(key_1D, MEMORY, COARSE[:1], COARSE, tau=tau, weight=1)
    return RELATIONS["shares"](targets_15, SAME, torch.tensor([own]))


def test_share_is_of_the_relations_to_other_images():
    # Relations exp((d - 0.8) / 0.2): e^-1, 1 and e^-4.
    e = [torch.tensor(x, dtype=torch.float64).exp().item() for x in (-1, 0, -4)]
    assert shares(0.2, [False] * 4) == pytest.approx(((e[0] + e[1]) / sum(e), 1 / (1 + sum(e))))
    assert shares(0.2, [False, True, False, False]) == pytest.approx((e[0] / (e[0] + e[2]), 1 / (1 + sum(e))))


def test_equal_relations_have_the_share_of_the_fine_class_in_the_coarse_one():
    assert shares(torch.inf, [False] * 4) == pytest.approx((2 / 3, 1 / 4))
    assert shares(0, [False] * 4) == pytest.approx((1, 1 / 2))


@pytest.mark.slow
def test_script_prints_a_line_for_each_tau(tmp_path, monkeypatch, capsys):
    assert main(arguments("maskcon", tmp_path, "run", "--trainer.max_epochs", "1")) == 0
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["maskcon_relations", str(tmp_path / "maskcon" / "run")])
    RELATIONS["main"]()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [tau for tau, _, _ in lines] == ["0", "0.05", "0.1", "0.2", "inf"]
    found, own = zip(*((float(share), float(own)) for _, share, own in lines), strict=True)
    assert 0 < found[-1] < found[0] <= 100
    assert own[0] == 50
    assert list(own) == sorted(own, reverse=True)
