"""Faster R-CNN and Mask R-CNN on top of any of our backbones: torchvision's detectors with three kinds of neck.

- ``c4``: one map of stride 16, the network's last stage applied to each region (MoCo's and MLS's R50-C4);
- ``fpn``: a feature pyramid (Lin et al., 2017) over the last four stages of a network of stages (MLS's R50-FPN), or
  over four depths of a ViT, scaled to strides 4 to 32 (FLSL, Table 1);
- ``simple``: the last map of a ViT alone, scaled to strides 4 to 32 (ViTDet, Li et al., 2022; FLSL, Table 2).

Boxes, anchors, sampling and losses are torchvision's. They differ from Detectron2's, with which the papers' numbers
were made, in: smooth L1 with beta 1/9 instead of L1; regions aligned without the shift by half a pixel, in the pyramids
with 2 samples a bin instead of as many as it has pixels; images resized without smoothing, on the device; no batches of
like aspect ratio. ViTDet's attention within windows is not there: all attention is global.
"""

import itertools
import math
from collections import OrderedDict
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_loss
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from fgssl.errors import UserError

Neck = Literal["c4", "fpn", "simple"]
STRIDES = (4, 8, 16, 32)  # of the levels of a pyramid; a fifth is taken from the last
# Depths of a ViT that become the levels, in twelfths: blocks 2, 5, 8, 11 of 12 (Semantic FPN), or 3, 5, 7, 11 (Mask
# R-CNN; mask_rcnn_vit_small_12_p16_1x_coco.py:23 of FLSL's code).
EVEN, UNEVEN = (3, 6, 9, 12), (4, 6, 8, 12)
Parts = tuple[nn.Module, dict[str, Any]]  # what makes the maps, and torchvision's other parts by their names


def build_detector(
    network: Any,
    neck: Neck,
    classes: int,
    *,
    masks: bool = False,
    sizes: list[int],
    long_side: int = 1333,
    width: int = 256,
    norm: bool = True,
) -> FasterRCNN:
    """A detector on a timm network without classifier, which becomes part of it.

    Args:
        network: a ResNet for ``c4``; a network of stages or a ViT of any image size for ``fpn``; such a ViT for
            ``simple``.
        neck: what is between the network and the heads.
        classes: C, without the background.
        masks: Mask R-CNN instead of Faster R-CNN.
        sizes: shorter side of an image, px: in training one of them at random, in evaluation the last.
        long_side: the longer side is never larger, px.
        width: channels of a pyramid's levels and of the heads' convolutions.
        norm: BatchNorm in what is new in ``c4`` and ``fpn``, as MoCo has it; of a ViT's ``fpn`` between deconvolutions
            alone. It has to be trained on enough images.

    Returns:
        torchvision's module: in training, images and targets to losses; in evaluation, images to detections. The images
        are normalised already.

    Raises:
        UserError: the neck does not go with the network.
    """
    build = {"c4": _c4, "fpn": _fpn, "simple": _simple}[neck]
    body, parts = build(network, classes, masks, width, norm)
    settings: dict[str, Any] = {
        "min_size": sizes,
        "max_size": long_side,
        "image_mean": [0.0] * 3,
        "image_std": [1.0] * 3,
    }
    settings |= {"size_divisible": max(32, patch_side(network)) if is_vit(network) else 32}
    detector = (MaskRCNN if masks else FasterRCNN)(body, **settings, **parts)
    if neck == "c4":
        detector.roi_heads.__class__ = Res5Heads  # the same parts, put together in another way
    return detector


# ---- R50-C4 ---------------------------------------------------------------------------------------------------------


class C4(nn.Module):
    """The stages of a ResNet but the last: [B, 3, H, W] to [B, 1024, H / 16, W / 16]."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network
        self.out_channels = network.feature_info[-2]["num_chs"]

    def forward(self, images: Tensor) -> Tensor:
        (c4,) = self.network.forward_intermediates(images, indices=[-2], stop_early=True, intermediates_only=True)
        return c4


class Res5(nn.Sequential):
    """The last stage on each region, [R, 1024, 14, 14] to [R, 2048, 7, 7], then the BatchNorm that MoCo adds to it."""

    def __init__(self, network: Any, norm: bool):
        super().__init__(network.layer4, *([nn.BatchNorm2d(network.num_features)] if norm else []))


class Res5Heads(RoIHeads):
    """torchvision's heads, but in training the masks take the features that the boxes have computed, as Detectron2's.

    So the last stage sees each region once, and its BatchNorm all regions and not those with an object alone.
    """

    def forward(self, features, proposals, image_shapes, targets=None):
        if not (self.training and self.has_mask()):
            return super().forward(features, proposals, image_shapes, targets)
        proposals, matched, labels, regression = self.select_training_samples(proposals, targets)
        res5, *pool = self.box_head
        regions_RFhw = res5(self.box_roi_pool(features, proposals, image_shapes))
        logits_RC, deltas_R4C = self.box_predictor(nn.Sequential(*pool)(regions_RFhw))
        loss_class, loss_box = fastrcnn_loss(logits_RC, deltas_R4C, labels, regression)

        shown = [label > 0 for label in labels]
        mask_logits = self.mask_predictor(regions_RFhw[torch.cat(shown)])
        loss_mask = maskrcnn_loss(
            mask_logits,
            [boxes[s] for boxes, s in zip(proposals, shown, strict=True)],
            [target["masks"] for target in targets],
            [target["labels"] for target in targets],
            [match[s] for match, s in zip(matched, shown, strict=True)],
        )
        return [], {"loss_classifier": loss_class, "loss_box_reg": loss_box, "loss_mask": loss_mask}


def _c4(network: Any, classes: int, masks: bool, width: int, norm: bool) -> Parts:
    if not (hasattr(network, "layer4") and hasattr(network, "conv1")):
        raise UserError(f"model.neck c4 is for ResNets, and the backbone is a {type(network).__name__}: take fpn.")
    body, res5 = C4(network), Res5(network, norm)
    sizes, ratios = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)
    pool = {"featmap_names": ["0"], "output_size": 14, "sampling_ratio": 0}
    parts: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator((sizes,), (ratios,)),
        "rpn_pre_nms_top_n_train": 12000,  # Detectron2's, for the one level
        "rpn_pre_nms_top_n_test": 6000,
        "box_roi_pool": MultiScaleRoIAlign(**pool),
        "box_head": nn.Sequential(res5, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "box_predictor": FastRCNNPredictor(network.num_features, classes + 1),
    }
    if masks:
        parts |= {
            "mask_roi_pool": MultiScaleRoIAlign(**pool),
            "mask_head": res5,
            "mask_predictor": MaskRCNNPredictor(network.num_features, width, classes + 1),
        }
    return body, parts


# ---- pyramids -------------------------------------------------------------------------------------------------------


class Pyramid(nn.Module):
    """Maps of the network, each scaled to its level's stride, and joined: [B, 3, H, W] to five [B, width, H', W'].

    Args:
        network: the backbone.
        indices: which of its intermediate maps, one a level.
        scale: one module a level.
        join: maps by level to the pyramid.
        width: its channels.
    """

    def __init__(self, network: Any, indices: list[int], scale: list[nn.Module], join: nn.Module, width: int):
        super().__init__()
        self.network, self.indices = network, indices
        self.scale, self.join = nn.ModuleList(scale), join
        self.out_channels = width

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return self.join(levels_of(self.network, images, self.indices, self.scale))


def levels_of(network: Any, images: Tensor, indices: list[int], scale: nn.ModuleList) -> OrderedDict[str, Tensor]:
    """Intermediate maps of the network, ``indices[n]`` scaled by ``scale[n]``, by the level's number."""
    maps = network.forward_intermediates(images, indices=sorted(set(indices)), intermediates_only=True)
    by_index = dict(zip(sorted(set(indices)), maps, strict=True))
    levels = [module(by_index[index]) for module, index in zip(scale, indices, strict=True)]
    return OrderedDict((str(level), features) for level, features in enumerate(levels))


class Top(nn.Module):
    """Adds the fifth level, every second position of the fourth, to maps that need no joining."""

    def forward(self, levels: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
        maps, names = LastLevelMaxPool()(list(levels.values()), list(levels.values()), list(levels))
        return OrderedDict(zip(names, maps, strict=True))


def four_levels(
    network: Any, norm: type[nn.Module], depths: tuple[int, ...] = EVEN
) -> tuple[list[int], list[nn.Module], list[int]]:
    """Which maps of the network become the levels of strides 4 to 32, what scales each, and their channels.

    Args:
        network: of four stages, or a ViT; what of a ViT makes no map is frozen.
        norm: between two deconvolutions of a ViT's map.
        depths: blocks of a ViT whose outputs become the levels, in twelfths of its depth.

    Raises:
        UserError: the network is neither.
    """
    if is_vit(network):
        depth, dim = len(network.blocks), network.embed_dim
        indices = [depth * twelfths // 12 - 1 for twelfths in depths]
        scale = [rescale(dim, patch_side(network) / stride, norm) for stride in STRIDES]
        _freeze_unused(network)
        return indices, scale, [dim] * 4
    if hasattr(network, "forward_intermediates") and has_stages(network):
        last = len(network.feature_info)
        channels = [stage["num_chs"] for stage in network.feature_info[-4:]]
        return list(range(last - 4, last)), [nn.Identity() for _ in STRIDES], channels
    raise UserError(f"a pyramid (fpn) needs four stages or a ViT, and the backbone is a {type(network).__name__}.")


def _fpn(network: Any, classes: int, masks: bool, width: int, norm: bool) -> Parts:
    indices, scale, channels = four_levels(network, nn.BatchNorm2d if norm else nn.Identity, UNEVEN)
    norm_layer = nn.BatchNorm2d if norm and not is_vit(network) else None  # FLSL's code has none in a ViT's pyramid
    join = FeaturePyramidNetwork(channels, width, LastLevelMaxPool(), norm_layer=norm_layer)
    parts: dict[str, Any] = {
        "box_head": TwoMLPHead(width * 7 * 7, 4 * width),
        "box_predictor": FastRCNNPredictor(4 * width, classes + 1),
    }
    if masks:
        parts["mask_head"] = MaskRCNNHeads(width, [width] * 4, 1)
        parts["mask_predictor"] = MaskRCNNPredictor(width, width, classes + 1)
    return Pyramid(network, indices, scale, join, width), parts


def _simple(network: Any, classes: int, masks: bool, width: int, norm: bool) -> Parts:
    """ViTDet's pyramid and heads: LayerNorm in all of them, two convolutions before proposals, four before boxes."""
    if not is_vit(network):
        raise UserError(
            f"model.neck simple is for ViTs, and the backbone is a {type(network).__name__}: take fpn or c4."
        )
    dim, patch = network.embed_dim, patch_side(network)
    scale: list[nn.Module] = []
    for stride in STRIDES:
        resized = rescale(dim, patch / stride, LayerNorm2d, shrink=2)
        into = dim // max(1, patch // stride)  # halved by each step
        lateral = [nn.Conv2d(into, width, 1, bias=False), LayerNorm2d(width)]
        smooth = [nn.Conv2d(width, width, 3, padding=1, bias=False), LayerNorm2d(width)]
        scale.append(nn.Sequential(resized, *lateral, *smooth))
    _freeze_unused(network)
    parts: dict[str, Any] = {
        "rpn_head": RPNHead(width, 3, conv_depth=2),
        "box_head": FastRCNNConvFCHead((width, 7, 7), [width] * 4, [4 * width], norm_layer=LayerNorm2d),
        "box_predictor": FastRCNNPredictor(4 * width, classes + 1),
    }
    if masks:
        parts["mask_head"] = MaskRCNNHeads(width, [width] * 4, 1, norm_layer=LayerNorm2d)
        parts["mask_predictor"] = MaskRCNNPredictor(width, width, classes + 1)
    return Pyramid(network, [len(network.blocks) - 1] * 4, scale, Top(), width), parts


def rescale(dim: int, factor: float, norm: type[nn.Module], shrink: int = 1) -> nn.Module:
    """[B, dim, H, W] to a map ``factor`` times as large: deconvolutions by 2, or maxima.

    Args:
        dim: channels.
        factor: 4, 2, 1, 1/2, ...
        norm: between two deconvolutions.
        shrink: each of them divides the channels by this.
    """
    steps = round(math.log2(factor))
    if steps <= 0:
        return nn.MaxPool2d(2**-steps) if steps else nn.Identity()
    layers: list[nn.Module] = []
    for _ in range(steps):
        layers += [*([norm(dim), nn.GELU()] if layers else []), nn.ConvTranspose2d(dim, dim // shrink, 2, stride=2)]
        dim //= shrink
    return nn.Sequential(*layers)


def has_stages(network: Any) -> bool:
    """Whether the last four maps of the network halve from one to the next."""
    strides = [stage["reduction"] for stage in network.feature_info[-4:]]
    return len(strides) == 4 and all(2 * fine == coarse for fine, coarse in itertools.pairwise(strides))


# ---- ViTs -----------------------------------------------------------------------------------------------------------


def is_vit(network: Any) -> bool:
    return hasattr(network, "patch_embed") and hasattr(network, "blocks") and hasattr(network, "embed_dim")


def patch_side(network: Any) -> int:
    """Side of a ViT's patches, px.

    Raises:
        UserError: it is no power of 2, and so no stride of a pyramid's level.
    """
    side = network.patch_embed.patch_size
    side = side if isinstance(side, int) else side[0]
    if side & (side - 1):
        raise UserError(f"model.backbone: patches of {side} px give no pyramid; its strides are powers of 2.")
    return side


def _freeze_unused(network: Any) -> None:
    """What follows the blocks is not used. Several processes wait for the gradient of every weight that trains."""
    used = ("patch_embed.", "pos_embed", "cls_token", "reg_token", "norm_pre.", "blocks.")
    for name, parameter in network.named_parameters():
        if not name.startswith(used):
            parameter.requires_grad_(False)
