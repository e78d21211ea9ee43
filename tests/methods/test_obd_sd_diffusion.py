"""What the diffusion inside a batch does to OBD-SD's targets (experiments/evidence/obd_sd_diffusion.py)."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from fgssl.cli.main import main
from fgssl.losses.obd_sd import diffused_targets
from tests.test_experiments import SMALL_NETWORK
from tests.trees import make_cub

EVIDENCE = Path(__file__).parents[2] / "experiments" / "evidence"
DIFFUSION = runpy.run_path(str(EVIDENCE / "obd_sd_diffusion.py"))


def similarities(count: int = 40) -> torch.Tensor:
    z_BD = normalize(torch.randn(count, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=1)
    return z_BD @ z_BD.T


@pytest.mark.parametrize("omega", [0.1, 0.3, 0.9])
def test_walk_without_neighbourhoods_is_the_contraction_of_the_docstring(omega):
    d_BB = similarities()
    diffused_BB = diffused_targets(d_BB, omega=omega, tau=1.0, tau_d=1e9)
    c, share = DIFFUSION["contraction"](torch.softmax(d_BB, dim=1), diffused_BB)
    assert c == pytest.approx((1 - omega) / (1 + omega / (len(d_BB) - 1)), rel=1e-6)
    assert share == pytest.approx(1, abs=1e-6)


def test_walk_between_near_neighbours_is_no_contraction():
    d_BB = similarities()
    diffused_BB = diffused_targets(d_BB, omega=0.3, tau=1.0, tau_d=0.005)
    assert DIFFUSION["contraction"](torch.softmax(d_BB, dim=1), diffused_BB)[1] < 0.5


@pytest.mark.slow
def test_script_prints_a_line_for_each_walk(tmp_path, monkeypatch, capsys):
    root = str(make_cub(tmp_path))
    status = main(
        [
            "fit", "--config", str(EVIDENCE / "obd_sd.yaml"), "--config", str(EVIDENCE / "obd_sd" / "psd.yaml"),
            "--data.dataset.root", root, "--run.root", str(tmp_path), "--run.name", "run",
            "--model.backbone", "{name: resnet18, pretrained: false, freeze: 0}",
            "--model.backbone.options", SMALL_NETWORK, "--data.batch_size", "4", "--data.images_per_class", "2",
            "--trainer.callbacks", "null", "--trainer.max_steps", "1",
        ]
    )  # fmt: skip
    assert status == 0
    run = tmp_path / "psd" / "run"
    assert json.loads((run / "results.json").read_text())["status"] == "finished"
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["obd_sd_diffusion", str(run)])
    DIFFUSION["main"]()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("tau_d", "Eq."))]
    assert len(lines) == 6
    assert all(0 <= float(line.split()[-1]) <= 100.01 for line in lines)
