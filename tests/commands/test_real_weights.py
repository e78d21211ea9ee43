"""Published ImageNet weights on real photographs: run where FGSSL_DATA has both."""

import pytest
import timm
import torch
from safetensors.torch import load_file

from fgssl.cli.main import main
from fgssl.nn.backbones import Backbone
from tests.cli.test_cli import results


@pytest.fixture
def weights(research_data):
    path = research_data / "weights" / "tf_efficientnet_lite0.in1k.safetensors"
    if not path.is_file() or not (research_data / "CUB_200_2011").is_dir():
        pytest.skip("FGSSL_DATA has no weights/tf_efficientnet_lite0.in1k.safetensors or no CUB_200_2011")
    return path


def recall_of_unseen_birds(weights, root, *flags: str) -> float:
    """Recall@1 on the 50 test species of CUB-100: shorter side 146 px, central crop 128 px."""
    network = ["--model", "timm/tf_efficientnet_lite0", "--weights", str(weights)]
    data = ["--data", "cub", "--data.dataset.partial", "true", "--data.protocol.split", "zero_shot"]
    view = ["--data.eval_resize", "146", "--data.eval_size", "128", "--data.eval_resample", "bilinear"]
    run = ["--data.num_workers", "0", "--retrieval.grid", "0", "--run.root", str(root), "--run.name", "birds"]
    assert main(["embed", *network, *data, *view, *run, "--trainer.enable_progress_bar", "false", *flags]) == 0
    return results(root / "embed" / "birds")["metrics"]["test/recall@1"]


def test_features_are_what_the_published_classifier_sees(weights):
    published = timm.create_model("tf_efficientnet_lite0").eval()
    published.load_state_dict(load_file(weights))
    ours = Backbone("tf_efficientnet_lite0", weights=str(weights))
    images = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = published.forward_head(published.forward_features(images), pre_logits=True)
        assert torch.equal(ours.build().eval()(images), expected)
    assert ours.normalisation() == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_recall_of_some_unseen_birds(weights, tmp_path):
    few = ("--trainer.limit_test_batches", "6", "--data.eval_batch_size", "64")
    assert recall_of_unseen_birds(weights, tmp_path, *few) == pytest.approx(344 / 384, abs=0.003)


@pytest.mark.long
def test_recall_of_all_unseen_birds(weights, tmp_path):
    assert recall_of_unseen_birds(weights, tmp_path) == pytest.approx(0.765, abs=0.002)
