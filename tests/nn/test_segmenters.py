"""The heads of segmentation: scores of every pixel from any network, and all that trains has a gradient."""

import pytest
import torch
from torch.nn import functional as F

from fgssl.errors import UserError
from fgssl.nn.backbones import Backbone, of_any_size
from fgssl.nn.segmenters import all_scores, build_head, class_scores, of_pairs
from tests.nn.test_detectors import RESNET, VIT

TIMM_VIT = Backbone("vit_tiny_patch16_224", options={"embed_dim": 16, "depth": 4, "num_heads": 2, "img_size": 64})
PATCH_14 = Backbone("vit_tiny_patch16_224", options=TIMM_VIT.options | {"patch_size": 14, "img_size": 56})
CONVNEXT = Backbone("convnext_atto", options={"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]})
SWIN = Backbone(
    "swin_tiny_patch4_window7_224", options={"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
)
DILATED = Backbone(RESNET.name, options=RESNET.options | {"output_stride": 8})
EFFICIENT, MOBILE = Backbone("efficientnet_lite0"), Backbone("mobilenetv3_small_050")
BUILDS = [
    (RESNET, "linear"), (RESNET, "fpn"), (VIT, "linear"), (VIT, "fpn"), (TIMM_VIT, "linear"), (TIMM_VIT, "fpn"),
    (CONVNEXT, "linear"), (CONVNEXT, "fpn"), (SWIN, "linear"), (SWIN, "fpn"), (PATCH_14, "linear"),
    (DILATED, "psp"), (DILATED, "psa"), (EFFICIENT, "linear"), (EFFICIENT, "fpn"), (MOBILE, "linear"), (MOBILE, "fpn"),
]  # fmt: skip


@pytest.mark.parametrize(("backbone", "head"), BUILDS)
def test_every_pixel_has_scores_and_every_weight_that_trains_a_gradient(backbone, head):
    torch.manual_seed(0)
    network = of_any_size(backbone)
    built = build_head(network, head, classes=3, width=16)
    images = torch.randn(2, 3, 50, 70)
    scores = all_scores(network, built, images)
    assert [one.shape for one in scores] == [(2, 3, 50, 70)] * (2 if head in ("psp", "psa") else 1)
    sum(one.square().sum() for one in scores).backward()
    weights = [*network.named_parameters(), *built.named_parameters()]
    assert [name for name, weight in weights if weight.requires_grad and weight.grad is None] == []
    if head == "fpn":
        assert built(network, torch.randn(1, 3, 64, 96))[0].shape == (1, 3, 16, 24)
    built.eval()
    assert len(all_scores(network, built, images)) == 1


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


def test_semantic_fpn_without_rescaling_keeps_the_stride_of_the_patches():
    """As FLSL's code, whose four levels all have stride 16; branches upsampled further come back to it."""
    torch.manual_seed(0)
    backbone = Backbone(VIT.name, options=VIT.options | {"depth": 12, "patch_size": 16, "img_size": 64})
    network = of_any_size(backbone).eval()
    head = build_head(network, "fpn", classes=3, width=16, rescale=False).eval()
    images = torch.randn(1, 3, 64, 96)
    (scores,) = head(network, images)
    assert scores.shape == (1, 3, 4, 6)
    levels = network.forward_intermediates(images, indices=[2, 5, 8, 11], intermediates_only=True)
    joined = head.join({str(number): level for number, level in enumerate(levels)})
    total = head.branches[0](joined["0"])
    for number in (1, 2, 3):
        branch = head.branches[number](joined[str(number)])
        total = total + F.interpolate(branch, (4, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(scores, head.classify(total))


def test_pspnet_pools_cells_and_joins_them_with_the_map():
    """The sizes of mmsegmentation's head, and its calculation step by step in evaluation."""
    torch.manual_seed(0)
    network = of_any_size(DILATED).eval()
    head = build_head(network, "psp", classes=3, width=8).eval()
    images = torch.randn(2, 3, 48, 96)
    third, last = network.forward_intermediates(images, indices=[-2, -1], intermediates_only=True)
    assert last.shape[2:] == third.shape[2:] == (6, 12)
    maps = [last]
    for cells, pool in zip((1, 2, 3, 6), head.pools, strict=True):
        pooled = pool[1](F.adaptive_avg_pool2d(last, cells))
        maps.append(F.interpolate(pooled, (6, 12), mode="bilinear", align_corners=False))
    expected = head.classify(head.join(torch.cat(maps, dim=1)))
    torch.testing.assert_close(head(network, images)[0], expected)
    assert head.join[0].weight.shape == (8, last.shape[1] + 4 * 8, 3, 3)
    assert [type(layer).__name__ for layer in head.auxiliary] == [
        "Conv2d",
        "BatchNorm2d",
        "ReLU",
        "Dropout2d",
        "Conv2d",
    ]
    assert head.auxiliary[0].weight.shape == (third.shape[1] // 4, third.shape[1], 3, 3)


@pytest.mark.parametrize("reach", [1, 4])
def test_attention_by_relative_place_equals_a_loop_over_pairs(reach):
    """4 x 3 positions; a reach of 4 covers all of them."""
    side, height, width = 2 * reach + 1, 4, 3
    logits = torch.randn(2, side**2, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.zeros(2, height * width, height * width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            for other_y in range(height):
                for other_x in range(width):
                    dy, dx = other_y - y, other_x - x
                    if abs(dy) <= reach and abs(dx) <= reach:
                        entry = (dy + reach) * side + dx + reach
                        expected[:, other_y * width + other_x, y * width + x] = logits[:, entry, y, x]
    assert of_pairs(logits, reach).equal(expected)


def test_psanet_collects_with_its_own_attention_and_distributes_with_that_of_the_others():
    """A feature spreads from one position: collected where another looks at it, distributed where it looks."""
    torch.manual_seed(0)
    network = of_any_size(DILATED).eval()
    head = build_head(network, "psa", classes=3, width=8).eval()
    features = torch.randn(1, head.channels, 8, 12)
    halved = [F.avg_pool2d(reduce(features), 2) for reduce in head.reduce]  # bilinear at half the size: means of four
    found = []
    for number, (reduced, attend) in enumerate(zip(halved, head.attend, strict=True)):
        pairs = of_pairs(attend(reduced), 48)[0]
        values = reduced[0].flatten(1)
        out = torch.zeros_like(values)
        for here in range(values.shape[1]):  # collect: own logits of all others; distribute: their logits of this place
            weights = (pairs[:, here] if number == 0 else pairs[here, :]).softmax(0)
            out[:, here] = (values * weights).sum(1)
        found.append(out.view_as(reduced[0]))
    expected = head.widen(torch.cat(found)[None])
    torch.testing.assert_close(head.context(features)[0], expected)
    assert head.attend[0][1].weight.shape == (97 * 97, 8, 1, 1)


@pytest.mark.parametrize("head", ["psp", "psa"])
def test_context_heads_refuse_networks_without_two_stages_of_one_stride(head):
    with pytest.raises(UserError, match=r"last two stages have one stride: --model.backbone.options.output_stride 8"):
        build_head(of_any_size(RESNET), head, classes=3, width=16)
    with pytest.raises(UserError, match="need stages, and the backbone is a VisionTransformer"):
        build_head(of_any_size(VIT), head, classes=3, width=16)


def test_semantic_fpn_refuses_a_network_without_stages():
    with pytest.raises(UserError, match="needs four stages or a ViT"):
        build_head(of_any_size(Backbone("mixer_s32_224")), "fpn", classes=3, width=16)
