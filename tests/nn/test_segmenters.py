"""The heads of segmentation: scores of every pixel from any network, and all that trains has a gradient."""

import pytest
import torch

from fgssl.errors import UserError
from fgssl.nn.backbones import Backbone, of_any_size
from fgssl.nn.segmenters import build_head, class_scores
from tests.nn.test_detectors import RESNET, VIT

TIMM_VIT = Backbone("vit_tiny_patch16_224", options={"embed_dim": 16, "depth": 4, "num_heads": 2, "img_size": 64})
PATCH_14 = Backbone("vit_tiny_patch16_224", options=TIMM_VIT.options | {"patch_size": 14, "img_size": 56})
CONVNEXT = Backbone("convnext_atto", options={"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]})
SWIN = Backbone(
    "swin_tiny_patch4_window7_224", options={"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
)
BUILDS = [
    (RESNET, "linear"), (RESNET, "fpn"), (VIT, "linear"), (VIT, "fpn"), (TIMM_VIT, "linear"), (TIMM_VIT, "fpn"),
    (CONVNEXT, "linear"), (CONVNEXT, "fpn"), (SWIN, "linear"), (SWIN, "fpn"), (PATCH_14, "linear"),
]  # fmt: skip


@pytest.mark.parametrize(("backbone", "head"), BUILDS)
def test_every_pixel_has_scores_and_every_weight_that_trains_a_gradient(backbone, head):
    torch.manual_seed(0)
    network = of_any_size(backbone)
    built = build_head(network, head, classes=3, width=16)
    images = torch.randn(2, 3, 50, 70)
    scores = class_scores(network, built, images)
    assert scores.shape == (2, 3, 50, 70)
    scores.square().sum().backward()
    weights = [*network.named_parameters(), *built.named_parameters()]
    assert [name for name, weight in weights if weight.requires_grad and weight.grad is None] == []
    if head == "fpn":
        assert built(network, torch.randn(1, 3, 64, 96)).shape == (1, 3, 16, 24)


def test_what_pads_an_image_is_cut_off():
    """On an image that fits, padding does nothing; scores far from the padding are those of the padded image."""
    torch.manual_seed(0)
    network = of_any_size(RESNET).eval()
    head = build_head(network, "linear", classes=3, width=16)
    image = torch.randn(1, 3, 64, 64)
    padded = torch.nn.functional.pad(image[..., :50], (0, 14))
    torch.testing.assert_close(
        class_scores(network, head, image[..., :50]), class_scores(network, head, padded)[..., :50]
    )


def test_a_network_without_stages_has_no_pyramid():
    with pytest.raises(UserError, match="needs four stages or a ViT"):
        build_head(of_any_size(Backbone("mixer_s32_224")), "fpn", classes=3, width=16)
