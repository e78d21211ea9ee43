"""Losses and miners by name: ours, pytorch-metric-learning's, their arguments, and what is said of mistakes."""

import pytest
import torch
from pytorch_metric_learning import losses
from torch.nn.functional import normalize

from fgssl.errors import UserError
from fgssl.losses.metric_learning import multi_similarity
from fgssl.nn.dml import Margin, MultiSimilarity, ProxyNCApp, SoftTriple, Spec, build_dml, loss_label

FACTS = {"num_classes": 5, "embedding_size": 8}


def cloud(dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    z = torch.randn(20, 8, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return normalize(z, dim=1).requires_grad_(), torch.arange(5).repeat_interleave(4)


def value(dml_loss, miner=None) -> torch.Tensor:
    loss, picker = build_dml(dml_loss, miner, **FACTS)
    z, labels = cloud()
    result = loss(z, labels) if picker is None else loss(z, labels, picker(z, labels))
    result.backward()
    assert z.grad.isfinite().all()
    return result


@pytest.mark.parametrize(
    ("dml_loss", "miner"),
    [
        ("MultiSimilarity", None),
        ("Margin", "DistanceWeighted"),
        ({"class_path": "Margin", "init_args": {"beta": 0.6, "push_own": 0.4, "average": "pairs"}}, "RandomTriplets"),
        ("Margin", {"class_path": "SemiHard", "init_args": {"margin": 0.3}}),
        ("TripletMarginLoss", "SoftHard"),
        ("TripletMarginLoss", "TripletMarginMiner"),
        ("MultiSimilarityLoss", "MultiSimilarityMiner"),
        ("ProxyAnchorLoss", None),
        ("ProxyNCALoss", None),
        ("ArcFaceLoss", None),
        ("SoftTripleLoss", None),
        ("CrossEntropy", None),
        ("ProxyNCApp", None),
        ("SoftTriple", None),
        ("ContrastiveLoss", None),
        ("SupConLoss", None),
        ("NTXentLoss", "BatchEasyHardMiner"),
        ({"class_path": "CrossBatchMemory", "init_args": {"loss": {"class_path": "ContrastiveLoss"}}}, None),
        ("pytorch_metric_learning.losses.CircleLoss", None),
    ],
)
def test_build_dml_by_name_gives_a_finite_loss(dml_loss, miner):
    assert value(dml_loss, miner).isfinite()


def test_build_dml_passes_arguments_and_fills_in_facts():
    loss, _ = build_dml({"class_path": "ProxyAnchorLoss", "init_args": {"alpha": 16}}, None, **FACTS)
    assert (loss.alpha, tuple(loss.proxies.shape)) == (16, (5, 8))
    loss, _ = build_dml({"class_path": "Margin", "init_args": {"num_classes": 7}}, "SoftHard", **FACTS)
    assert isinstance(loss, Margin)
    assert loss.beta.tolist() == pytest.approx([1.2] * 7)


def test_build_dml_builds_arguments_that_are_objects():
    spec = {
        "class_path": "TripletMarginLoss",
        "init_args": {
            "margin": 0.2,
            "distance": {"class_path": "CosineSimilarity"},
            "reducer": {"class_path": "ThresholdReducer", "init_args": {"low": 0.1}},
        },
    }
    loss, _ = build_dml(spec, None, **FACTS)
    assert type(loss.distance).__name__ == "CosineSimilarity"
    assert loss.reducer.low == 0.1


def test_build_dml_prefers_our_class_of_a_name():
    z, labels = cloud()
    torch.testing.assert_close(value("MultiSimilarity"), multi_similarity(z, labels))
    torch.testing.assert_close(value("CircleLoss"), losses.CircleLoss()(z, labels))


@pytest.mark.parametrize(
    ("name", "of", "label"),
    [
        ("ProxyAnchor", losses.ProxyAnchorLoss, "ProxyAnchor"),
        ("ArcFaceLoss", losses.ArcFaceLoss, "ArcFace"),
        ("SoftTriple", SoftTriple, "SoftTriple"),
        ("SoftTripleLoss", losses.SoftTripleLoss, "SoftTripleLoss"),  # without the regulariser of ours
        ("MultiSimilarity", MultiSimilarity, "MS"),
        ("MultiSimilarityLoss", losses.MultiSimilarityLoss, "MultiSimilarityLoss"),
        ("ProxyNCApp", ProxyNCApp, "ProxyNCA++"),
        ("ProxyNCA", losses.ProxyNCALoss, "ProxyNCA"),
    ],
)
def test_a_loss_has_a_name_with_and_without_loss_at_its_end(name, of, label):
    loss, _ = build_dml(name, None, **FACTS)
    assert type(loss) is of
    assert loss_label(loss) == label


@pytest.mark.parametrize(
    ("dml_loss", "miner", "message"),
    [
        ("MultiSimilarty", None, "model.dml_loss: unknown class 'MultiSimilarty'. Did you mean 'MultiSimilarity'?"),
        ("Margin", "DistanceWeightd", "model.miner: unknown class 'DistanceWeightd'. Did you mean 'DistanceWeighted'?"),
        ("Margin", None, "model.miner: Margin needs one: RandomTriplets"),
        ("MultiSimilarity", "SemiHard", "model.miner: MultiSimilarity selects its pairs itself"),
        (
            {"class_path": "ProxyAnchorLoss", "init_args": {"alfa": 1}},
            None,
            "ProxyAnchorLoss takes no 'alfa'. Did you mean 'alpha'?",
        ),
        ({"class_path": "TripletMarginLoss", "init_args": {"distance": {"class_path": "Cosine"}}}, None, "distance"),
        ({"class": "Margin"}, None, "is neither a class's name nor {class_path: NAME, init_args: {...}}"),
        ("no.such.module.Loss", None, "there is no class 'no.such.module.Loss'"),
        ("torch.nn.functional.mse_loss", None, "'torch.nn.functional.mse_loss' is no class"),
        ("CrossBatchMemory", None, "CrossBatchMemory cannot be built"),
    ],
)
def test_build_dml_names_the_mistake(dml_loss, miner, message):
    with pytest.raises(UserError) as said:
        build_dml(dml_loss, miner, **FACTS)
    assert message in str(said.value)


def test_spec_equals_the_value_of_a_configuration():
    assert Spec.read("Margin") == "Margin"
    assert Spec("Margin") == "Margin"
    named = {"class_path": "Margin", "init_args": {"beta": 0.6}}
    assert Spec.read(named) == named
    assert Spec.read(named) != Spec("Margin")
    assert Spec.read({"class_path": "Margin"}).plain() == "Margin"
