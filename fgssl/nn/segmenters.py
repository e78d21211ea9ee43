"""Heads of semantic segmentation on any of our backbones: images in, a score of each class and pixel out.

- ``linear``: a 1x1 convolution on the last map: linear probing of the patch features;
- ``fpn``: Semantic FPN (Kirillov et al., CVPR 2019) as FLSL's Table 10 has it: a feature pyramid over four stages of a
  network, or four depths of a ViT; each level is convolved and upsampled to stride 4, and the levels are summed.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork

from fgssl.nn.detectors import STRIDES, four_levels, freeze_unused, is_vit, levels_of, patch_side
from fgssl.nn.feature_map import as_map

Head = Literal["linear", "fpn"]
DROPOUT = 0.1  # of whole channels before the classifier (semfpn_vit-s16_512x512_40k_ade20k.py:41 of FLSL's code)


def build_head(network: Any, head: Head, classes: int, width: int) -> "LinearHead | SemanticFPN":
    """The head for a timm network without classifier; the parameters of the network that it does not use are frozen.

    Raises:
        UserError: the head does not fit the network.
    """
    return LinearHead(network, classes) if head == "linear" else SemanticFPN(network, classes, width)


def class_scores(network: Any, head: "LinearHead | SemanticFPN", images: Tensor) -> Tensor:
    """[B, 3, H, W] to [B, C, H, W], interpolated from the head's stride; images are padded to whole strides."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, -width % head.divisor, 0, -height % head.divisor))
    scores = F.interpolate(head(network, padded), padded.shape[-2:], mode="bilinear", align_corners=False)
    return scores[..., :height, :width]


class LinearHead(nn.Module):
    """A 1x1 convolution on the last map.

    Args:
        network: the backbone; it is passed to ``forward`` and is not part of the head. Its weights after the last map
            are frozen.
        classes: number of classes C.
    """

    def __init__(self, network: Any, classes: int):
        super().__init__()
        self.divisor = network.feature_info[-1]["reduction"]
        freeze_unused(network, lambda images: [network.forward_features(images)], side=4 * self.divisor)
        self.classify = nn.Conv2d(network.num_features, classes, 1)

    def forward(self, network: Any, images: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, C, H', W']; H and W are multiples of ``divisor``."""
        return self.classify(as_map(network, network.forward_features(images), images))


class SemanticFPN(nn.Module):
    """Semantic FPN (Kirillov et al., Figure 3), with BatchNorm and dropout as in FLSL's code.

    Args:
        network: the backbone, with four stages or a ViT; it is passed to ``forward`` and is not part of the head.
        classes: number of classes C.
        width: channels of the pyramid's levels; the branches after it have half of them.

    Raises:
        UserError: the network has neither four stages nor is it a ViT.
    """

    def __init__(self, network: Any, classes: int, width: int):
        super().__init__()
        self.divisor = max(32, patch_side(network)) if is_vit(network) else 32
        self.indices, scale, channels = four_levels(network, nn.BatchNorm2d)
        self.scale = nn.ModuleList(scale)
        self.join = FeaturePyramidNetwork(channels, width)
        self.branches = nn.ModuleList(_branch(width, width // 2, round(math.log2(stride / 4))) for stride in STRIDES)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classify = nn.Conv2d(width // 2, classes, 1)

    def forward(self, network: Any, images: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, C, H / 4, W / 4]; H and W are multiples of ``divisor``."""
        levels = self.join(levels_of(network, images, self.indices, self.scale)).values()
        branches = [branch(level) for branch, level in zip(self.branches, levels, strict=True)]
        return self.classify(self.dropout(torch.stack(branches).sum(0)))


def _branch(into: int, out: int, doublings: int) -> nn.Sequential:
    """Stride 4 * 2**doublings to stride 4: convolution, BatchNorm, ReLU before each upsampling, and at least once."""
    layers: list[nn.Module] = []
    for number in range(max(1, doublings)):
        layers += [nn.Conv2d(out if number else into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        layers += [nn.Upsample(scale_factor=2, mode="bilinear")] if doublings else []
    return nn.Sequential(*layers)
