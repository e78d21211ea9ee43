"""The detectors: what each neck gives, that all of it trains, and what they share with torchvision."""

import pytest
import torch
from torchvision.models.detection.roi_heads import RoIHeads

from fgssl.errors import UserError
from fgssl.nn.backbones import Backbone, of_any_size
from fgssl.nn.detectors import Res5Heads, build_detector

RESNET = Backbone("resnet18", options={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]})
VIT = Backbone(
    "vit_tiny_patch16_224",
    options={"embed_dim": 16, "depth": 4, "num_heads": 2, "img_size": 32, "patch_size": 8, "class_token": False}
    | {"global_pool": "avg", "fc_norm": False, "dynamic_img_size": True},  # FLSL's
)
COARSE = Backbone("vit_tiny_patch16_224", options={"embed_dim": 16, "depth": 4, "num_heads": 2, "img_size": 64})
BUILDS = {  # name -> backbone, neck
    "resnet_c4": (RESNET, "c4"),
    "resnet_fpn": (RESNET, "fpn"),
    "vit_fpn": (VIT, "fpn"),
    "vit_simple": (VIT, "simple"),
    "vit_simple_16": (COARSE, "simple"),
}


def build(name: str, **options):
    torch.manual_seed(0)
    backbone, neck = BUILDS[name]
    settings = {"masks": True, "sizes": [64], "width": 16} | options
    return build_detector(of_any_size(backbone), neck, classes=2, **settings)


def scene() -> tuple[list, list]:
    """Two images of different size; the second one shows nothing."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(3, 48, 64, generator=generator), torch.randn(3, 64, 40, generator=generator)]
    masks = torch.zeros(2, 48, 64, dtype=torch.uint8)
    masks[0, 4:20, 4:24], masks[1, 20:44, 30:60] = 1, 1
    shown = {
        "boxes": torch.tensor([[4.0, 4, 24, 20], [30, 20, 60, 44]]),
        "labels": torch.tensor([1, 2]),
        "masks": masks,
    }
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return images, [shown, nothing | {"masks": torch.zeros(0, 64, 40, dtype=torch.uint8)}]


@pytest.mark.parametrize("name", BUILDS)
def test_levels_have_their_strides(name):
    features = build(name).eval().backbone(torch.randn(1, 3, 64, 96))
    if name == "resnet_c4":
        assert features.shape == (1, 16, 4, 6)
        return
    sides = {level: tuple(features[level].shape) for level in features}
    expected = {str(n): (1, 16, 64 // stride, 96 // stride) for n, stride in enumerate((4, 8, 16, 32))}
    assert sides == expected | {"pool": (1, 16, 1, 2)}


@pytest.mark.parametrize("name", BUILDS)
def test_every_weight_that_trains_has_a_gradient_and_images_may_show_nothing(name):
    detector = build(name)
    losses = detector(*scene())
    names = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
    assert losses.keys() == names
    sum(losses.values()).backward()
    idle = [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
    losses = detector(scene()[0][1:], scene()[1][1:])
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_mask"] == 0


def test_detections_lie_in_the_image_and_masks_have_its_size():
    detector = build("resnet_fpn").eval()
    with torch.no_grad():
        for image, found in zip(scene()[0], detector(scene()[0]), strict=True):
            height, width = image.shape[1:]
            assert len(found["boxes"]) > 0
            assert (found["boxes"] >= 0).all()
            assert (found["boxes"] <= torch.tensor([width, height, width, height])).all()
            assert found["masks"].shape == (len(found["boxes"]), 1, height, width)


def test_c4_masks_from_the_boxes_features_are_torchvisions_masks():
    """With BatchNorm's statistics as they are, the two ways differ in the order of sums alone."""
    detector = build("resnet_c4", norm=False).double()
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    images, targets = [image.double() for image in scene()[0]], scene()[1]
    losses = []
    for kind in (Res5Heads, RoIHeads):
        detector.roi_heads.__class__ = kind
        torch.manual_seed(0)
        losses.append(detector(images, targets))
    for name, loss in losses[0].items():
        torch.testing.assert_close(loss, losses[1][name], rtol=1e-9, atol=0)


def test_moco_adds_batch_norm_and_frozen_statistics_add_none():
    def added(name: str, **options) -> int:
        own = sum(isinstance(m, torch.nn.BatchNorm2d) for m in of_any_size(BUILDS[name][0]).modules())
        return sum(isinstance(m, torch.nn.BatchNorm2d) for m in build(name, **options).modules()) - own

    assert (added("resnet_c4"), added("resnet_fpn"), added("vit_simple")) == (1, 8, 0)
    assert added("resnet_c4", norm=False) == added("resnet_fpn", norm=False) == added("vit_fpn", norm=False) == 0


def test_fpn_of_a_vit_is_that_of_flsls_code():
    """Blocks 3, 5, 7 and 11 of 12, BatchNorm between the two deconvolutions alone, no norm of the last block."""
    backbone = Backbone(VIT.name, options=VIT.options | {"depth": 12, "patch_size": 16, "img_size": 64})
    detector = build_detector(of_any_size(backbone), "fpn", classes=2, sizes=[64], width=16)
    pyramid = detector.backbone
    assert pyramid.indices == [3, 5, 7, 11]
    assert [name for name, m in detector.named_modules() if isinstance(m, torch.nn.BatchNorm2d)] == [
        "backbone.scale.0.1"
    ]
    blocks, maps = [], []
    for block in pyramid.network.blocks:
        block.register_forward_hook(lambda _, given, tokens_BND: blocks.append(tokens_BND))
    for module in pyramid.scale:
        module.register_forward_pre_hook(lambda _, given: maps.append(given[0]))
    pyramid(torch.randn(1, 3, 64, 64))
    expected = [blocks[index].transpose(1, 2).unflatten(2, (4, 4)) for index in (3, 5, 7, 11)]
    torch.testing.assert_close(maps, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("backbone", "neck", "said"),
    [
        (VIT, "c4", "neck c4 is for ResNets, and the backbone is a VisionTransformer"),
        (RESNET, "simple", "neck simple is for ViTs, and the backbone is a ResNet"),
        (
            Backbone("vit_tiny_patch16_224", options={"patch_size": 14, "img_size": 28, "depth": 1}),
            "fpn",
            "patches of 14 px give no pyramid",
        ),
        (Backbone("mixer_s32_224"), "fpn", "needs four stages or a ViT"),
    ],
)
def test_what_does_not_go_together_is_named(backbone, neck, said):
    with pytest.raises(UserError, match=said):
        build_detector(of_any_size(backbone), neck, classes=2, sizes=[64])
