"""BN-Inception: the published network, by its parameter count, its layout and its numbers."""

import pytest
import torch

from fgssl.errors import UserError
from fgssl.nn.backbones import Backbone
from fgssl.nn.bn_inception import MEAN, STD, BNInception

# Of pretrainedmodels' BNInception with the weights of ``patterned``, in float64, channels reversed beforehand.
GOLDEN_FEATURES = [
    7.70321813859044,
    6.090230623983767,
    0.08031130434236287,
    5.453421880192451,
    13.226693673439998,
    4.195002652256329,
]
GOLDEN_LOGITS = [7.3422981298518835, 6.128880007773681, 3.3163990834206136, -0.37425236687562674]


def patterned(network: BNInception) -> BNInception:
    """Weights by a formula, in double precision and evaluation mode."""
    network = network.double().eval()
    with torch.no_grad():
        for number, (name, weight) in enumerate(sorted(network.state_dict().items())):
            if not weight.is_floating_point():
                continue
            wave = torch.sin(torch.arange(weight.numel(), dtype=torch.float64) * 0.7 + number).view(weight.shape)
            if name.endswith("running_var"):
                wave = 1 + 0.5 * wave
            elif name.endswith("_bn.weight"):
                wave = 1 + 0.3 * wave
            elif weight.ndim > 1:
                wave = wave * (0.7 / weight[0].numel()) ** 0.5
            else:
                wave = 0.1 * wave
            weight.copy_(wave)
    return network


def images() -> torch.Tensor:
    return torch.sin(torch.arange(2 * 3 * 64 * 96, dtype=torch.float64) * 0.37).view(2, 3, 64, 96)


def test_parameter_counts_are_the_published_ones():
    assert sum(p.numel() for p in BNInception().parameters()) == 11_295_240
    assert sum(p.numel() for p in BNInception(num_classes=0).parameters()) == 11_295_240 - 1025 * 1000


def test_features_and_logits_match_the_distributed_implementation():
    network = patterned(BNInception(num_classes=10))
    with torch.no_grad():
        map_BFHW = network.forward_features(images())
        logits = network(images())
    assert map_BFHW.shape == (2, 1024, 2, 3)
    features = map_BFHW.mean(dim=(2, 3))
    assert features[0, [0, 351, 400, 700, 900, 1023]].tolist() == pytest.approx(GOLDEN_FEATURES, rel=1e-6)
    assert logits[1, :4].tolist() == pytest.approx(GOLDEN_LOGITS, rel=1e-6)


def test_module_names_are_those_of_the_distributed_weights():
    names = set(BNInception().state_dict())
    assert len(names) == 69 * 7 + 2  # convolution weight and bias, five of BatchNorm; the classifier
    assert {
        "conv1_7x7_s2.weight", "conv1_7x7_s2_bn.running_mean", "conv2_3x3_reduce.bias", "inception_3a_1x1.weight",
        "inception_3c_double_3x3_2.weight", "inception_4e_3x3_bn.weight", "inception_5b_pool_proj.bias",
        "last_linear.weight",
    } <= names  # fmt: skip
    assert "inception_3c_1x1.weight" not in names


def test_normalised_image_is_what_the_weights_were_trained_on():
    """Blue, green, red in 0 to 255 less (104, 117, 128)."""
    pixels = torch.randint(0, 256, (1, 3, 32, 32)).double()
    seen = []
    network = BNInception(num_classes=0).double().eval()
    network.conv1_7x7_s2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        network((pixels / 255 - mean) / std)
    torch.testing.assert_close(seen[0], pixels[:, [2, 1, 0]] - torch.tensor([104.0, 117, 128]).view(3, 1, 1).double())


@pytest.mark.parametrize("pooling", [None, "avg+max"])
def test_backbone_builds_it_by_name(pooling):
    network = Backbone("bn_inception", pooling=pooling).build().eval()
    with torch.no_grad():
        map_BFHW = network.forward_features(torch.randn(2, 3, 32, 64))
        features = network.forward_head(map_BFHW, pre_logits=True)
    expected = map_BFHW.mean(dim=(2, 3)) + (map_BFHW.amax(dim=(2, 3)) if pooling else 0)
    torch.testing.assert_close(features, expected)
    assert network.num_features == features.shape[1] == 1024


def test_file_of_the_distributed_weights_loads_without_its_classifier(tmp_path):
    trained = patterned(BNInception()).float()
    with torch.no_grad():
        expected = trained.forward_features(images().float())
    # as distributed: no num_batches_tracked, which BatchNorm counts since later
    state = {name: w for name, w in trained.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "bn_inception-52deb4733.pth")
    backbone = Backbone("bn_inception", pretrained=True, weights=str(tmp_path / "bn_inception-52deb4733.pth"))
    assert backbone.normalisation() == (MEAN, STD)
    with torch.no_grad():
        torch.testing.assert_close(backbone.build().eval().forward_features(images().float()), expected)


def test_weights_to_download_and_other_sizes_are_refused():
    with pytest.raises(UserError, match="--model.backbone.weights bn_inception-52deb4733.pth"):
        Backbone("bn_inception", pretrained=True).build()
    with pytest.raises(UserError, match="multiples of 32 px, not 64 x 100"):
        BNInception()(torch.zeros(1, 3, 64, 100))
