"""Faster R-CNN and Mask R-CNN on top of any of our backbones, with three kinds of neck.

- ``c4``: one map of stride 16, the network's last stage applied to each region (R50-C4 of MoCo and MLS);
- ``fpn``: a feature pyramid (Lin et al., 2017) over the last four stages of a network of stages (R50-FPN of MLS), or
  over four depths of a ViT, scaled to strides 4 to 32 (FLSL, Table 1);
- ``simple``: the last map of a ViT, scaled to strides 4 to 32 (ViTDet, Li et al., 2022; FLSL, Table 2). ViTDet's ViT is
  ``vitdet_base_patch16`` (``nn/vitdet.py``); any other ViT attends to all tokens in each block.

The papers' numbers were made with Detectron2. Its numbers of proposals, losses, RoIAlign and initialisation are taken
(``nn/rcnn.py``). Four things differ: masks are cut to a box without the shift by half a pixel; images are resized
without smoothing, on the device; batches do not group images of similar aspect ratio; BatchNorm's statistics are not
computed anew before the test.
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from fgssl.errors import UserError
from fgssl.nn.rcnn import (
    Anchors,
    BoxPredictor,
    Heads,
    MaskPredictor,
    ProposalHead,
    Proposals,
    RegionAlign,
    Res5Heads,
    xavier,
)

Neck = Literal["c4", "fpn", "simple"]
STRIDES = (4, 8, 16, 32)  # of the levels of a pyramid; a fifth is taken from the last
# Depths of a ViT that become the levels, in twelfths: blocks 2, 5, 8, 11 of 12 (Semantic FPN), or 3, 5, 7, 11 (Mask
# R-CNN; mask_rcnn_vit_small_12_p16_1x_coco.py:23 of FLSL's code).
EVEN, UNEVEN = (3, 6, 9, 12), (4, 6, 8, 12)
SIZES = (32, 64, 128, 256, 512)  # of the anchors, px
RATIOS = (0.5, 1.0, 2.0)  # of the anchors, height / width
Parts = tuple[nn.Module, Proposals, Heads]  # what makes the maps, what proposes regions, what looks at them


def build_detector(
    network: Any,
    neck: Neck,
    classes: int,
    *,
    masks: bool = False,
    sizes: list[int],
    long_side: int = 1333,
    width: int = 256,
    pad_to: int | None = None,
    norm: bool = True,
) -> GeneralizedRCNN:
    """A detector on a timm network without classifier, which becomes part of it.

    Args:
        network: A ResNet for ``c4``; a network of stages or a ViT of any image size for ``fpn``; such a ViT for
            ``simple``.
        neck: Layers between the network and the heads.
        classes: Number of classes C without the background.
        masks: Mask R-CNN instead of Faster R-CNN.
        sizes: Shorter side of an image, px: in training one of them at random, in evaluation the last.
        long_side: Longest side of an image, px.
        width: Channels of a pyramid's levels and of the heads' convolutions.
        pad_to: Side of the square that a batch of images is padded to, px; None: the next multiple of 32 px.
        norm: BatchNorm in the new layers of ``c4`` and ``fpn``, as MoCo has it; in the ``fpn`` of a ViT between its
            deconvolutions alone. It needs enough images a step.

    Returns:
        torchvision's module: in training, images and targets to losses; in evaluation, images to detections. It takes
        normalised images.

    Raises:
        UserError: The neck does not fit the network, or ``pad_to`` the network or ``long_side``.
    """
    build = {"c4": _c4, "fpn": _fpn, "simple": _simple}[neck]
    body, proposals, heads = build(network, classes, masks, width, norm)
    divisor = max(32, patch_side(network)) if is_vit(network) else 32
    if pad_to is not None and (pad_to < long_side or pad_to % divisor):
        raise UserError(
            f"model.pad_to is {pad_to}; it must be a multiple of {divisor} px, and long_side, {long_side} px, or more."
        )
    # Padding to a multiple of the square's side is padding to the square: no image is longer.
    transform = GeneralizedRCNNTransform(
        tuple(sizes), long_side, [0.0] * 3, [1.0] * 3, size_divisible=pad_to or divisor
    )
    return GeneralizedRCNN(body, proposals, heads, transform)


def proposals_of(anchors: Anchors, head: ProposalHead, before_nms: tuple[int, int], kept: tuple[int, int]) -> Proposals:
    """Region proposals with Detectron2's numbers.

    Args:
        anchors: Anchors of each level.
        head: Network that scores them.
        before_nms: Proposals of a level before non-maximum suppression, in training and in evaluation.
        kept: Proposals of an image after it, in training and in evaluation.
    """
    pre, post = ({"training": pair[0], "testing": pair[1]} for pair in (before_nms, kept))
    return Proposals(anchors, head, 0.7, 0.3, 256, 0.5, pre, post, nms_thresh=0.7)


def heads_of(kind: type[Heads], boxes: tuple[nn.Module, ...], masks: tuple[nn.Module, ...] = ()) -> Heads:
    """Heads with Detectron2's numbers: 512 regions of an image, a quarter with an object of IoU 0.5; 100 detections.

    Args:
        kind: Class of the heads.
        boxes: Pooling, network and predictor of the boxes.
        masks: The same of the masks; empty for Faster R-CNN.
    """
    return kind(*boxes, 0.5, 0.5, 512, 0.25, None, 0.05, 0.5, 100, *masks)


# ---- R50-C4 ---------------------------------------------------------------------------------------------------------


class C4(nn.Module):
    """All stages of a ResNet except the last: [B, 3, H, W] to [B, 1024, H / 16, W / 16]."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network
        self.out_channels = network.feature_info[-2]["num_chs"]

    def forward(self, images: Tensor) -> Tensor:
        (c4,) = self.network.forward_intermediates(images, indices=[-2], stop_early=True, intermediates_only=True)
        return c4


class Res5(nn.Sequential):
    """The last stage of a ResNet for regions, [R, 1024, 14, 14] to [R, 2048, 7, 7], and MoCo's extra BatchNorm."""

    def __init__(self, network: Any, norm: bool):
        super().__init__(network.layer4, *([nn.BatchNorm2d(network.num_features)] if norm else []))


def _c4(network: Any, classes: int, masks: bool, width: int, norm: bool) -> Parts:
    if not (hasattr(network, "layer4") and hasattr(network, "conv1")):
        raise UserError(f"model.neck c4 is for ResNets, and the backbone is a {type(network).__name__}: take fpn.")
    body, res5 = C4(network), Res5(network, norm)
    freeze_unused(network, lambda images: [network.layer4(body(images))])
    anchors = Anchors((SIZES,), (RATIOS,))
    head = ProposalHead(body.out_channels, len(SIZES) * len(RATIOS))
    pool = RegionAlign({"0": 16}, size=14)  # torchvision calls a single map "0"
    boxes = (
        pool,
        nn.Sequential(res5, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        BoxPredictor(network.num_features, classes + 1),
    )
    shapes = (pool, res5, MaskPredictor(network.num_features, width, classes + 1)) if masks else ()
    return body, proposals_of(anchors, head, (12000, 6000), (2000, 1000)), heads_of(Res5Heads, boxes, shapes)


# ---- pyramids -------------------------------------------------------------------------------------------------------


class Pyramid(nn.Module):
    """Feature pyramid: [B, 3, H, W] to five maps [B, width, H', W'] of strides 4 to 64.

    Args:
        network: Backbone.
        indices: Number of the intermediate map of each level.
        scale: Module that brings the map of each level to the level's stride.
        join: Module from the scaled maps to the pyramid.
        width: Channels of the pyramid.
    """

    def __init__(self, network: Any, indices: list[int], scale: list[nn.Module], join: nn.Module, width: int):
        super().__init__()
        self.network, self.indices = network, indices
        self.scale, self.join = nn.ModuleList(scale), join
        self.out_channels = width

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return self.join(levels_of(self.network, images, self.indices, self.scale))


def intermediate_maps(network: Any, images: Tensor, indices: list[int]) -> list[Tensor]:
    """Intermediate maps of the network, each number of ``indices`` once, in ascending order."""
    return network.forward_intermediates(images, indices=sorted(set(indices)), intermediates_only=True)


def levels_of(network: Any, images: Tensor, indices: list[int], scale: nn.ModuleList) -> OrderedDict[str, Tensor]:
    """Intermediate maps of the network by level: map ``indices[n]`` scaled by ``scale[n]`` is level ``n``."""
    maps = intermediate_maps(network, images, indices)
    by_index = dict(zip(sorted(set(indices)), maps, strict=True))
    levels = [module(by_index[index]) for module, index in zip(scale, indices, strict=True)]
    return OrderedDict((str(level), features) for level, features in enumerate(levels))


class Top(nn.Module):
    """Add a fifth level, every second position of the fourth, to maps that need no other change."""

    def forward(self, levels: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
        maps, names = LastLevelMaxPool()(list(levels.values()), list(levels.values()), list(levels))
        return OrderedDict(zip(names, maps, strict=True))


def four_levels(
    network: Any, norm: type[nn.Module], depths: tuple[int, ...] = EVEN
) -> tuple[list[int], list[nn.Module], list[int]]:
    """Maps of a network for the levels of strides 4 to 32; weights that they do not depend on are frozen.

    Args:
        network: Network of four stages, or a ViT.
        norm: Normalisation between two deconvolutions of a ViT's map.
        depths: Blocks of a ViT whose outputs become the levels, in twelfths of its depth.

    Returns:
        Number of the map, module that scales it, and channels, of each level.

    Raises:
        UserError: The network is neither.
    """
    if is_vit(network):
        depth, dim = len(network.blocks), network.embed_dim
        indices = [depth * twelfths // 12 - 1 for twelfths in depths]
        scale = [rescale(dim, patch_side(network) / stride, norm) for stride in STRIDES]
        freeze_unused(network, lambda images: intermediate_maps(network, images, indices))
        return indices, scale, [dim] * 4
    if hasattr(network, "forward_intermediates") and has_stages(network):
        last = len(network.feature_info)
        indices, channels = list(range(last - 4, last)), [stage["num_chs"] for stage in network.feature_info[-4:]]
        freeze_unused(network, lambda images: intermediate_maps(network, images, indices))
        return indices, [nn.Identity() for _ in STRIDES], channels
    raise UserError(f"a pyramid (fpn) needs four stages or a ViT, and the backbone is a {type(network).__name__}.")


def _fpn(network: Any, classes: int, masks: bool, width: int, norm: bool) -> Parts:
    indices, scale, channels = four_levels(network, nn.BatchNorm2d if norm else nn.Identity, UNEVEN)
    norm_layer = nn.BatchNorm2d if norm and not is_vit(network) else None  # FLSL's code has none in a ViT's pyramid
    join = FeaturePyramidNetwork(channels, width, LastLevelMaxPool(), norm_layer=norm_layer)
    body = Pyramid(network, indices, scale, join, width)
    return body, *_pyramid_heads(TwoMLPHead(width * 7 * 7, 4 * width), classes, masks, width)


def _simple(network: Any, classes: int, masks: bool, width: int, norm: bool) -> Parts:
    """Pyramid and heads of ViTDet: LayerNorm everywhere, two convolutions before proposals, four before boxes."""
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
    indices = [len(network.blocks) - 1] * 4
    freeze_unused(network, lambda images: intermediate_maps(network, images, indices))
    body = Pyramid(network, indices, scale, Top(), width)
    box_head = FastRCNNConvFCHead((width, 7, 7), [width] * 4, [4 * width], norm_layer=LayerNorm2d)
    return body, *_pyramid_heads(box_head, classes, masks, width, proposal_convolutions=2, norm_layer=LayerNorm2d)


def _pyramid_heads(
    box_head: nn.Module,
    classes: int,
    masks: bool,
    width: int,
    proposal_convolutions: int = 1,
    norm_layer: type[nn.Module] | None = None,
) -> tuple[Proposals, Heads]:
    anchors = Anchors(tuple((size,) for size in SIZES), (RATIOS,) * len(SIZES))
    head = ProposalHead(width, len(RATIOS), conv_depth=proposal_convolutions)
    strides = {str(level): stride for level, stride in enumerate(STRIDES)}
    xavier(box_head.modules())
    boxes = (RegionAlign(strides, size=7), box_head, BoxPredictor(4 * width, classes + 1))
    shapes: tuple[nn.Module, ...] = ()
    if masks:
        convolutions = MaskRCNNHeads(width, [width] * 4, 1, norm_layer=norm_layer)  # MSRA
        shapes = (RegionAlign(strides, size=14), convolutions, MaskPredictor(width, width, classes + 1))
    return proposals_of(anchors, head, (2000, 1000), (1000, 1000)), heads_of(Heads, boxes, shapes)


def freeze_unused(network: Any, maps: Callable[[Tensor], Any], side: int = 64) -> None:
    """Freeze the weights that maps of a network do not depend on, such as a last normalisation; in place.

    Training on several processes needs a gradient of every trainable weight in every step.

    Args:
        network: Backbone.
        maps: Function from images [1, 3, ``side``, ``side``] to the list of maps that are used.
        side: Side of the images, px.
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    if not weights:
        return
    training = network.training
    network.eval()  # BatchNorm's statistics stay
    with torch.enable_grad():
        used = [one.sum() for one in maps(weights[0].new_zeros(1, 3, side, side)) if one.requires_grad]
        gradients = torch.autograd.grad(used, weights, allow_unused=True)
    network.train(training)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.requires_grad_(gradient is not None)


def rescale(dim: int, factor: float, norm: type[nn.Module], shrink: int = 1) -> nn.Module:
    """Module from [B, dim, H, W] to a map ``factor`` times as large, by deconvolutions of stride 2 or max-pooling.

    Args:
        dim: Channels.
        factor: Power of 2: 4, 2, 1, 1/2, ...
        norm: Normalisation between two deconvolutions.
        shrink: Divisor of the channels in each deconvolution.
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
        UserError: It is no power of 2.
    """
    side = network.patch_embed.patch_size
    side = side if isinstance(side, int) else side[0]
    if side & (side - 1):
        raise UserError(f"model.backbone: patches of {side} px give no pyramid, whose strides are powers of 2.")
    return side
