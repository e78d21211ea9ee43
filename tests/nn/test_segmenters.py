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
EFFICIENT, MOBILE = Backbone("efficientnet_lite0"), Backbone("mobilenetv3_small_050")
BUILDS = [
    (RESNET, "linear"), (RESNET, "fpn"), (VIT, "linear"), (VIT, "fpn"), (TIMM_VIT, "linear"), (TIMM_VIT, "fpn"),
    (CONVNEXT, "linear"), (CONVNEXT, "fpn"), (SWIN, "linear"), (SWIN, "fpn"), (PATCH_14, "linear"),
    (EFFICIENT, "linear"), (EFFICIENT, "fpn"), (MOBILE, "linear"), (MOBILE, "fpn"),
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


def test_padding_is_cut_off_the_scores():
    """On an image that fits, padding does nothing; scores far from the padding are those of the padded image."""
    torch.manual_seed(0)
    network = of_any_size(RESNET).eval()
    head = build_head(network, "linear", classes=3, width=16)
    image = torch.randn(1, 3, 64, 64)
    padded = torch.nn.functional.pad(image[..., :50], (0, 14))
    torch.testing.assert_close(
        class_scores(network, head, image[..., :50]), class_scores(network, head, padded)[..., :50]
    )


def test_semantic_fpn_is_that_of_flsls_code():
    """Blocks 2, 5, 8 and 11; 1, 1, 2 and 3 convolutions with BatchNorm a level; dropout of whole channels."""
    backbone = Backbone(VIT.name, options=VIT.options | {"depth": 12, "patch_size": 16, "img_size": 64})
    network = of_any_size(backbone)
    head = build_head(network, "fpn", classes=150, width=256)
    assert head.indices == [2, 5, 8, 11]
    for branch, convolutions in zip(head.branches, (1, 1, 2, 3), strict=True):
        kinds = [type(layer).__name__ for layer in branch]
        one = ["Conv2d", "BatchNorm2d", "ReLU"] + (["Upsample"] if branch is not head.branches[0] else [])
        assert kinds == one * convolutions
        assert branch[0].weight.shape == (128, 256, 3, 3)
    head.train()
    seen = []
    head.classify.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        head(network, torch.randn(40, 3, 64, 64))
        dropped = (seen[0] == 0).all(dim=(2, 3)).float().mean().item()
        assert dropped == pytest.approx(0.1, abs=0.02)
        head.eval()(network, torch.randn(2, 3, 64, 64))
    assert not (seen[1] == 0).all(dim=(2, 3)).any()


def test_semantic_fpn_refuses_a_network_without_stages():
    with pytest.raises(UserError, match="needs four stages or a ViT"):
        build_head(of_any_size(Backbone("mixer_s32_224")), "fpn", classes=3, width=16)
