"""Patch features of networks that give them in three forms."""

import pytest
import timm
import torch

from fgssl.errors import UserError
from fgssl.nn.feature_map import as_map, last_features

TINY_VIT = {"depth": 1, "embed_dim": 12, "num_heads": 3, "dynamic_img_size": True}
NETWORKS = {
    "resnet18": {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1), "embed_dim": 6, "num_heads": (1, 2), "strict_img_size": False},
    "vit_tiny_patch16_224": TINY_VIT,
    "twins_svt_small": {"embed_dims": (4, 4, 8, 8), "num_heads": (1, 1, 2, 2), "depths": (2, 2, 2, 2)},
}


def build(name):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **NETWORKS[name]).eval()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet18", (8, 2, 3)),
        ("swin_tiny_patch4_window7_224", (12, 8, 12)),
        ("vit_tiny_patch16_224", (12, 4, 6)),
        ("twins_svt_small", (8, 2, 3)),
    ],
)
def test_pooled_features_and_their_map_from_one_forward(name, shape):
    network, images = build(name), torch.randn(2, 3, 64, 96)
    pooled_BF, map_BFHW = last_features(network, images)
    assert map_BFHW.shape == (2, *shape)
    torch.testing.assert_close(pooled_BF, network(images))
    if name != "vit_tiny_patch16_224":  # which pools its class token
        torch.testing.assert_close(map_BFHW.mean((2, 3)), pooled_BF)


def test_map_keeps_the_places_of_tokens():
    network = build("vit_tiny_patch16_224")
    raw = torch.arange(1 + 6.0)[None, :, None].expand(1, 7, 12)
    assert as_map(network, raw, torch.zeros(1, 3, 32, 48))[0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_tokens_without_a_grid_are_refused():
    with pytest.raises(UserError, match="7 tokens"):
        as_map(build("vit_tiny_patch16_224"), torch.zeros(1, 8, 12), torch.zeros(1, 3, 32, 48))
