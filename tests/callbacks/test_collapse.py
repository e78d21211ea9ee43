"""A collapse is seen and said once; learning is not called one."""

import math
import warnings

import pytest
import torch

from fgssl.callbacks.collapse import Collapse, signs
from fgssl.methods.base import StepResult
from fgssl.metrics import feature_std, rankme
from fgssl.tasks.finetune import Finetune
from tests.cli.test_cli import fit, rows
from tests.tasks.test_finetune import QUICK, data
from tests.tiny import BACKBONE, tiny_trainer

HEALTHY = {"feature_std": 0.6, "rankme": 20.0}


class Distils(Finetune):
    """A self-distilling method as the monitor sees one: prototypes, and what the step says of its teacher."""

    prototypes = 16
    entropy = math.log(16) / 2

    def step(self, batch) -> StepResult:
        parts = {"teacher_entropy": torch.tensor(self.entropy), "teacher_student_kl": torch.tensor(0.1)}
        return super().step(batch)._replace(parts=parts)


class Constant(Distils):
    def embed(self, images):
        return super().embed(images) * 0 + 1


def trained(kind: type[Finetune], epochs: int = 3, **attributes) -> tuple[list[str], dict[str, float]]:
    """The warnings, and what was logged."""
    torch.manual_seed(0)
    method = kind(BACKBONE, num_fine=4, optim=QUICK)
    for name, value in attributes.items():
        setattr(method, name, value)
    trainer = tiny_trainer(max_epochs=epochs, callbacks=[Collapse(images=16)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(method, data())
    said = [str(warning.message) for warning in caught if "Collapse?" in str(warning.message)]
    return said, {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_learning_is_logged_and_not_warned_of():
    said, logged = trained(Distils)
    assert said == []
    assert 0.05 < logged["train/feature_std"] < 1
    assert 1.5 < logged["train/rankme"] <= 8
    assert logged["train/teacher_entropy"] == pytest.approx(math.log(16) / 2)


def test_a_collapse_is_said_once_after_the_second_epoch():
    (said,), logged = trained(Constant, epochs=4)
    assert "After epoch 2: feature_std" in said
    assert "rankme 1.00" in said
    assert logged["train/feature_std"] == pytest.approx(0, abs=1e-6)
    assert trained(Constant, epochs=1)[0] == []


@pytest.mark.parametrize(("entropy", "words"), [(1e-4, "one prototype alone"), (2.7725, "all prototypes alike")])
def test_the_teachers_entropy_tells_a_collapse_too(entropy, words):
    (said,), _ = trained(Distils, entropy=entropy)
    assert words in said
    assert "feature_std" not in said


def test_a_method_without_prototypes_is_judged_by_its_features_alone():
    assert signs({**HEALTHY, "teacher_entropy": 0.0}, None) == []
    assert signs(HEALTHY, 16) == []
    assert len(signs({"feature_std": math.nan, "rankme": math.nan}, None)) == 2, "features of zeros alone"


def test_collapse_is_on_for_methods_with_prototypes_alone(tmp_path, monkeypatch):
    from fgssl.methods.maskcon import MaskCon

    short = ("--trainer.max_steps", "2", "--trainer.limit_test_batches", "1", "--trainer.limit_train_batches", "1")
    assert "train/rankme" not in rows(fit(tmp_path, "plain", *short))[0]
    monkeypatch.setattr(MaskCon, "prototypes", 16, raising=False)
    assert "train/rankme" in rows(fit(tmp_path, "default", *short))[0]


# ---- the figures ----------------------------------------------------------------------------------------------------


def test_effective_rank():
    basis = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    assert rankme(basis) == pytest.approx(8, rel=1e-5)
    assert rankme(basis[:3]) == pytest.approx(3, rel=1e-5)
    assert rankme(torch.ones(8, 4)) == pytest.approx(1, abs=1e-4)
    assert rankme(3 * basis) == pytest.approx(rankme(basis), rel=1e-12)
    assert math.isnan(rankme(torch.zeros(4, 3)))


def test_effective_rank_golden():
    """Singular values 3, 2 and 1, worked out by hand: p = 1/2, 1/3, 1/6."""
    expected = math.exp(math.log(2) / 2 + math.log(3) / 3 + math.log(6) / 6)
    diagonal = torch.zeros(5, 3, dtype=torch.float64)
    diagonal[range(3), range(3)] = torch.tensor([3.0, 2, 1], dtype=torch.float64)
    assert rankme(diagonal, eps=0.0) == pytest.approx(expected, rel=1e-12)
    assert rankme(diagonal) == pytest.approx(expected, rel=1e-5)


def test_feature_standard_deviation():
    z = torch.tensor([[1.0, 0], [0, 2], [-3, 0], [0, -1]], dtype=torch.float64)
    assert feature_std(z) == pytest.approx(1, rel=1e-12)  # each dimension: 1, 0, -1, 0
    assert feature_std(torch.ones(5, 3)) == pytest.approx(0, abs=1e-12)
    spread = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    assert feature_std(spread) == pytest.approx(1, abs=0.02)
    assert feature_std(spread * torch.rand(4000, 1)) == pytest.approx(feature_std(spread), rel=1e-6)
    with pytest.raises(ValueError, match="at least two rows, got 1"):
        feature_std(z[:1])
