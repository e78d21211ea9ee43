"""Networks whose head widens the pooled features, such as MobileNetV3's."""

import pytest
import torch

from fgssl.errors import UserError
from fgssl.methods import CMD, MaskCon
from fgssl.nn.backbones import Backbone
from fgssl.nn.feature_map import last_features

NAMES = ["mobilenetv3_small_050", "lcnet_050", "resnet18", "efficientnet_lite0", "vit_tiny_patch16_224"]


@pytest.mark.parametrize("name", NAMES)
def test_pooled_features_have_num_features_and_the_map_has_map_channels(name):
    network = Backbone(name).build().eval()
    images = torch.zeros(1, 3, 224, 224)
    with torch.no_grad():
        pooled, map_1CHW = last_features(network, images)
        assert network(images).shape == pooled.shape == (1, network.num_features)
    assert map_1CHW.shape[1] == network.map_channels


def test_maskcon_trains_mobilenet():
    method = MaskCon(Backbone("mobilenetv3_small_050"), variant="supce", num_coarse=3)
    features = method.embed(torch.zeros(2, 3, 64, 64))
    assert method.classifier(features).shape == (2, 3)
    assert MaskCon(Backbone("mobilenetv3_small_050"), num_coarse=3, dim=8).query(torch.zeros(2, 3, 64, 64)).shape == (
        2,
        8,
    )


def test_cmd_refuses_patches_of_another_width():
    with pytest.raises(UserError, match="have 288 features, its images 1024"):
        CMD(Backbone("mobilenetv3_small_050"), prototypes=16)
