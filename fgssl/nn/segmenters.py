"""Heads of semantic segmentation on top of any of our backbones, images in and a score of each class and place out.

- ``linear``: a 1x1 convolution on the last map, which asks what the features hold as they are;
- ``fpn``: Semantic FPN (Kirillov et al., CVPR 2019; FLSL, Table 10): a feature pyramid over four stages of a network,
  or four depths of a ViT; each level is convolved and doubled until all are of stride 4, and summed.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from fgssl.nn.detectors import STRIDES, four_levels, is_vit, levels_of, patch_side
from fgssl.nn.feature_map import as_map

Head = Literal["linear", "fpn"]
# What networks do with the last map, by the head that does not use it. Several processes would wait for its gradients.
POOLING = ("fc_norm.", "attn_pool.", "norm_head.", "head.")
UNUSED: dict[Head, tuple[str, ...]] = {"linear": POOLING, "fpn": (*POOLING, "norm.", "conv_head.", "bn2.")}


def build_head(network: Any, head: Head, classes: int, width: int) -> "LinearHead | SemanticFPN":
    """The head of a timm network without classifier; what the network does with its last map is frozen.

    Raises:
        UserError: the head does not go with the network.
    """
    for name, parameter in network.named_parameters():
        if name.startswith(UNUSED[head]):
            parameter.requires_grad_(False)
    return LinearHead(network, classes) if head == "linear" else SemanticFPN(network, classes, width)


def class_scores(network: Any, head: "LinearHead | SemanticFPN", images: Tensor) -> Tensor:
    """[B, 3, H, W] to [B, C, H, W], interpolated from the head's stride; images of any size are padded to fit."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, -width % head.divisor, 0, -height % head.divisor))
    scores = F.interpolate(head(network, padded), padded.shape[-2:], mode="bilinear", align_corners=False)
    return scores[..., :height, :width]


class LinearHead(nn.Module):
    """A 1x1 convolution on the last map.

    Args:
        network: the backbone, which the head is called with and does not hold.
        classes: C.
    """

    def __init__(self, network: Any, classes: int):
        super().__init__()
        self.divisor = network.feature_info[-1]["reduction"]
        self.classify = nn.Conv2d(network.num_features, classes, 1)

    def forward(self, network: Any, images: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, C, H', W']; H and W are multiples of ``divisor``."""
        return self.classify(as_map(network, network.forward_features(images), images))


class SemanticFPN(nn.Module):
    """Kirillov et al., Figure 3: 256 channels in the pyramid, half of them after it, GroupNorm of 32 groups.

    Args:
        network: the backbone, which the head is called with and does not hold: four stages, or a ViT.
        classes: C.
        width: channels of the pyramid's levels.

    Raises:
        UserError: no pyramid fits the network.
    """

    def __init__(self, network: Any, classes: int, width: int):
        super().__init__()
        self.divisor = max(32, patch_side(network)) if is_vit(network) else 32
        self.indices, scale, channels = four_levels(network, nn.BatchNorm2d)
        self.scale = nn.ModuleList(scale)
        self.join = FeaturePyramidNetwork(channels, width)
        self.branches = nn.ModuleList(_branch(width, width // 2, round(math.log2(stride / 4))) for stride in STRIDES)
        self.classify = nn.Conv2d(width // 2, classes, 1)

    def forward(self, network: Any, images: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, C, H / 4, W / 4]; H and W are multiples of ``divisor``."""
        levels = self.join(levels_of(network, images, self.indices, self.scale)).values()
        branches = [branch(level) for branch, level in zip(self.branches, levels, strict=True)]
        return self.classify(torch.stack(branches).sum(0))


def _branch(into: int, out: int, doublings: int) -> nn.Sequential:
    """A level of stride 4 * 2**doublings to stride 4, a convolution before each doubling and at least one.

    Groups are of two channels or more: one channel of a map of one place has nothing to be normalised by.
    """
    layers: list[nn.Module] = []
    for number in range(max(1, doublings)):
        layers += [nn.Conv2d(out if number else into, out, 3, padding=1, bias=False)]
        layers += [nn.GroupNorm(math.gcd(32, out // 2), out), nn.ReLU()]
        layers += [nn.Upsample(scale_factor=2, mode="bilinear")] if doublings else []
    return nn.Sequential(*layers)
