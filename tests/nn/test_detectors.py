"""The detectors: what each neck gives, that all of it trains, and what they share with torchvision."""

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou, clip_boxes_to_image

from fgssl.errors import UserError
from fgssl.nn.backbones import Backbone, of_any_size
from fgssl.nn.detectors import build_detector

RESNET = Backbone("resnet18", options={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]})
VIT = Backbone(
    "vit_tiny_patch16_224",
    options={"embed_dim": 16, "depth": 4, "num_heads": 2, "img_size": 32, "patch_size": 8, "class_token": False}
    | {"global_pool": "avg", "fc_norm": False, "dynamic_img_size": True},  # FLSL's
)
COARSE = Backbone("vit_tiny_patch16_224", options={"embed_dim": 16, "depth": 4, "num_heads": 2, "img_size": 64})
WINDOWED = Backbone(
    "vitdet_base_patch16",
    options={"embed_dim": 16, "depth": 4, "num_heads": 2, "img_size": 64}
    | {"window_size": 3, "global_attn_indexes": [1, 3]},
)
SWIN = Backbone(
    "swin_tiny_patch4_window7_224", options={"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
)
BUILDS = {  # name -> backbone, neck
    "resnet_c4": (RESNET, "c4"),
    "resnet_fpn": (RESNET, "fpn"),
    "vit_fpn": (VIT, "fpn"),
    "vit_simple": (VIT, "simple"),
    "vit_simple_16": (COARSE, "simple"),
    "vitdet_simple": (WINDOWED, "simple"),
    "swin_fpn": (SWIN, "fpn"),
    "mobilenet_fpn": (Backbone("mobilenetv3_small_050"), "fpn"),
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


def test_regions_are_cut_with_the_strides_of_the_levels():
    heads = build("resnet_fpn").roi_heads
    for align in (heads.box_roi_pool, heads.mask_roi_pool):
        assert align.strides == {"0": 4, "1": 8, "2": 16, "3": 32}


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


def test_images_are_padded_to_the_square_at_their_lower_right():
    detector = build("vitdet_simple", pad_to=96, long_side=96)
    for training in (True, False):
        padded, _ = detector.train(training).transform(scene()[0])
        assert padded.tensors.shape == (2, 3, 96, 96)
        assert padded.image_sizes == [(64, 85), (96, 60)]
        assert not padded.tensors[0, :, 64:].any()
        assert not padded.tensors[0, :, :, 85:].any()
        assert padded.tensors[0, :, 63, 84].all()
    with pytest.raises(UserError, match="pad_to is 64; it must be a multiple of 32 px, and long_side, 96 px, or more"):
        build("vitdet_simple", pad_to=64, long_side=96)
    with pytest.raises(UserError, match="pad_to is 100"):
        build("vitdet_simple", pad_to=100, long_side=96)


def test_detections_lie_in_the_image_and_masks_have_its_size():
    detector = build("resnet_fpn").eval()
    with torch.no_grad():
        for image, found in zip(scene()[0], detector(scene()[0]), strict=True):
            height, width = image.shape[1:]
            assert len(found["boxes"]) > 0
            assert (found["boxes"] >= 0).all()
            assert (found["boxes"] <= torch.tensor([width, height, width, height])).all()
            assert found["masks"].shape == (len(found["boxes"]), 1, height, width)


@pytest.mark.parametrize("name", ["resnet_c4", "resnet_fpn"])
def test_losses_are_torchvisions_but_for_l1(name, monkeypatch):
    """With BatchNorm's statistics as they are, and the other losses of the boxes in torchvision's own code."""
    detector = build(name, norm=False).double()
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    images, targets = [image.double() for image in scene()[0]], scene()[1]
    torch.manual_seed(0)
    losses = detector(images, targets)

    def l1(x, y, beta, reduction):
        return torch.nn.functional.l1_loss(x, y, reduction=reduction)

    monkeypatch.setattr(torch.nn.functional, "smooth_l1_loss", l1)
    monkeypatch.setattr(type(detector.roi_heads), "forward", RoIHeads.forward)
    monkeypatch.setattr(type(detector.rpn), "compute_loss", RegionProposalNetwork.compute_loss)
    torch.manual_seed(0)
    for loss, expected in detector(images, targets).items():
        torch.testing.assert_close(losses[loss], expected, rtol=1e-9, atol=0)


# ---- Detectron2's numbers -------------------------------------------------------------------------------------------

PROPOSALS = {"resnet_c4": ((12000, 6000), (2000, 1000)), "resnet_fpn": ((2000, 1000), (1000, 1000))}


@pytest.mark.parametrize("name", PROPOSALS)
def test_numbers_of_proposals_and_detections_are_detectron2s(name):
    detector, (before, after) = build(name), PROPOSALS[name]
    for training, number in ((True, 0), (False, 1)):
        detector.train(training)
        assert detector.rpn.pre_nms_top_n() == before[number]
        assert detector.rpn.post_nms_top_n() == after[number]
    assert (detector.rpn.nms_thresh, detector.rpn.fg_bg_sampler.batch_size_per_image) == (0.7, 256)
    heads = detector.roi_heads
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 100)
    assert (heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction) == (512, 0.25)
    assert heads.box_coder.weights == (10.0, 10.0, 5.0, 5.0)


@pytest.mark.parametrize("name", BUILDS)
def test_heads_are_initialised_as_detectron2s(name):
    detector = build(name, width=64)

    def deviation(layer: torch.nn.Module) -> float:
        assert layer.bias is None or layer.bias.abs().max() == 0
        return layer.weight.std().item()

    heads = detector.roi_heads
    assert deviation(detector.rpn.head.conv[0][0]) == pytest.approx(0.01, rel=0.1)
    assert deviation(detector.rpn.head.cls_logits) == pytest.approx(0.01, rel=0.3)
    assert deviation(detector.rpn.head.bbox_pred) == pytest.approx(0.01, rel=0.3)
    assert deviation(heads.box_predictor.cls_score) == pytest.approx(0.01, rel=0.3)
    assert deviation(heads.box_predictor.bbox_pred) == pytest.approx(0.001, rel=0.3)
    assert deviation(heads.mask_predictor.mask_fcn_logits) == pytest.approx(0.001, rel=0.3)
    deconvolution = heads.mask_predictor.conv5_mask
    assert deviation(deconvolution) == pytest.approx((2 / (4 * deconvolution.weight.shape[0])) ** 0.5, rel=0.1)
    for layer in heads.box_head.modules():
        if isinstance(layer, torch.nn.Linear):
            assert deviation(layer) == pytest.approx(layer.in_features**-0.5, rel=0.05)
    if name != "resnet_c4":
        assert deviation(heads.mask_head[0][0]) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)


def test_anchors_are_not_rounded():
    anchors = build("resnet_fpn").rpn.anchor_generator.cell_anchors[0]
    side = 32 / 2**0.5
    torch.testing.assert_close(anchors[0], torch.tensor([-side, -side / 2, side, side / 2]))
    torch.testing.assert_close(
        (anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1]), torch.full((3,), 1024.0)
    )


@pytest.mark.parametrize(("side", "level"), [(20, 0), (111, 0), (112, 1), (224, 2), (447, 2), (448, 3), (1000, 3)])
def test_regions_come_from_the_level_of_their_size(side, level):
    """Eq. 1 of Lin et al., 2017; a map of one number a level."""
    pool = build("resnet_fpn").roi_heads.box_roi_pool
    maps = {str(n): torch.full((1, 2, 1024 // stride, 1024 // stride), n) for n, stride in enumerate((4, 8, 16, 32))}
    pooled = pool({name: m.float() for name, m in maps.items()}, [torch.tensor([[0.0, 0, side, side]])], [])
    torch.testing.assert_close(pooled, torch.full((1, 2, 7, 7), float(level)))


def test_regions_are_aligned_to_pixel_centres():
    """Of a map whose value is its pixel centre's x, the mean of each bin is the bin's centre."""
    pool = build("resnet_c4").roi_heads.box_roi_pool
    centres = (torch.arange(32.0) + 0.5).expand(1, 1, 32, 32) * 16
    pooled = pool({"0": centres}, [torch.tensor([[48.0, 32, 272, 256]])], [])
    expected = 48 + 16 * (torch.arange(14.0) + 0.5)
    torch.testing.assert_close(pooled[0, 0], expected.expand(14, 14))


# ---- precision ------------------------------------------------------------------------------------------------------

BOX = [517.3, 301.7, 803.9, 622.1]


def iou(one: torch.Tensor, other: torch.Tensor) -> float:
    return box_iou(one.double(), other.double()).max().item()


@pytest.mark.parametrize("name", ["resnet_c4", "resnet_fpn"])
def test_a_perfect_box_stays_perfect_under_bfloat16(name):
    """A region that is the object, and predictions of no change: bfloat16 would move its sides by up to 2 px."""
    detector = build(name, masks=False).eval()
    heads = detector.roi_heads
    with torch.no_grad():
        for layer in (heads.box_predictor.cls_score, heads.box_predictor.bbox_pred):
            layer.weight.zero_()
        heads.box_predictor.cls_score.bias.copy_(torch.tensor([0.0, 5.0, 0.0]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = detector.backbone(torch.randn(1, 3, 640, 832))
            features = {"0": features} if name == "resnet_c4" else features
            (found,), _ = heads(features, [torch.tensor([BOX])], [(640, 832)])
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    assert iou(found["boxes"], torch.tensor([BOX])) > 0.9999


@pytest.mark.parametrize("name", ["resnet_c4", "resnet_fpn"])
def test_proposals_are_float32_under_bfloat16(name):
    """Of no change, the proposals are the anchors, cut to the image."""
    detector = build(name).eval()
    with torch.no_grad():
        for weight in detector.rpn.head.bbox_pred.parameters():
            weight.zero_()
        images = ImageList(torch.randn(1, 3, 640, 832), [(640, 832)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = detector.backbone(images.tensors)
            features = {"0": features} if name == "resnet_c4" else features
            (proposals,), _ = detector.rpn(images, features)
        (anchors,) = detector.rpn.anchor_generator(images, [f.float() for f in features.values()])
    assert proposals.dtype == torch.float32
    distance = torch.cdist(proposals, clip_boxes_to_image(anchors, (640, 832)), p=float("inf")).min(dim=1).values
    assert distance.max() < 1e-3


def test_bfloat16_weights_train_and_detect():
    """trainer.precision bf16-true; boxes stay float32."""
    detector = build("resnet_fpn").bfloat16()
    images, targets = scene()
    losses = detector([image.bfloat16() for image in images], targets)
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        found = detector.eval()([image.bfloat16() for image in images])
    assert found[0]["boxes"].dtype == torch.float32


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
