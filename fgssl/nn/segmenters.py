"""Heads of semantic segmentation on any of our backbones: images in, a score of each class and pixel out.

- ``linear``: a 1x1 convolution on the last map: linear probing of the patch features;
- ``fpn``: Semantic FPN (Kirillov et al., CVPR 2019) as FLSL's Table 10 has it: a feature pyramid over four stages of a
  network, or four depths of a ViT; each level is convolved and upsampled to stride 4, and the levels are summed;
- ``psp``: PSPNet (Zhao et al., CVPR 2017), and ``psa``: PSANet (Zhao et al., ECCV 2018), as MLS's Table 3 has them: the
  last map, of stride 8, joined with what its surroundings say. mmsegmentation's widths and auxiliary classifier are
  taken. A ResNet has stride 8 by ``options: {output_stride: 8}``.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork

from fgssl.errors import UserError
from fgssl.nn.detectors import (
    EVEN,
    STRIDES,
    four_levels,
    freeze_unused,
    intermediate_maps,
    is_vit,
    levels_of,
    patch_side,
)
from fgssl.nn.feature_map import as_map

Head = Literal["linear", "fpn", "psp", "psa"]
DROPOUT = 0.1  # of whole channels before the classifier (semfpn_vit-s16_512x512_40k_ade20k.py:41 of FLSL's code)
AUXILIARY = (
    0.4  # weight of the loss of the auxiliary classifier (mmsegmentation configs/_base_/models/pspnet_r50-d8.py)
)
BINS = (1, 2, 3, 6)  # cells a side of PSPNet's pooled maps
REACH = 48  # of PSANet's attention, in positions of the halved map: 97 x 97 positions around each


def build_head(network: Any, head: Head, classes: int, width: int, rescale: bool = True) -> "Scores":
    """The head for a timm network without classifier; the parameters of the network that it does not use are frozen.

    Args:
        network: the backbone; it is passed to ``forward`` and is not part of the head.
        head: kind of the head.
        classes: number of classes C.
        width: channels of the pyramid's levels (``fpn``) or of the reduced maps (``psp``, ``psa``).
        rescale: bring the four depths of a ViT to strides 4 to 32 (``fpn``).

    Raises:
        UserError: the head does not fit the network.
    """
    if head == "linear":
        return LinearHead(network, classes)
    if head == "fpn":
        return SemanticFPN(network, classes, width, rescale)
    return (PyramidPooling if head == "psp" else PointwiseAttention)(network, classes, width)


def class_scores(network: Any, head: "Scores", images: Tensor) -> Tensor:
    """[B, 3, H, W] to [B, C, H, W], interpolated from the head's stride; images are padded to whole strides."""
    return all_scores(network, head, images)[0]


def all_scores(network: Any, head: "Scores", images: Tensor) -> list[Tensor]:
    """Scores of the head as ``class_scores`` and, in training, those of its auxiliary classifier if it has one."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, -width % head.divisor, 0, -height % head.divisor))
    scores = [
        F.interpolate(one, padded.shape[-2:], mode="bilinear", align_corners=False) for one in head(network, padded)
    ]
    return [one[..., :height, :width] for one in scores]


class Scores(nn.Module):
    """Base of the heads: images [B, 3, H, W] to a list of scores [B, C, H', W'], those of the classifier first.

    Attributes:
        divisor: H and W must be multiples of it.
    """

    divisor: int

    def forward(self, network: Any, images: Tensor) -> list[Tensor]:
        raise NotImplementedError


class LinearHead(Scores):
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
        self.classify = nn.Conv2d(network.map_channels, classes, 1)

    def forward(self, network: Any, images: Tensor) -> list[Tensor]:
        return [self.classify(as_map(network, network.forward_features(images), images))]


# ---- Semantic FPN ----------------------------------------------------------------------------------------------------


class SemanticFPN(Scores):
    """Semantic FPN (Kirillov et al., Figure 3), with BatchNorm and dropout as in FLSL's code; scores at stride 4.

    Args:
        network: the backbone, with four stages or a ViT; it is passed to ``forward`` and is not part of the head.
        classes: number of classes C.
        width: channels of the pyramid's levels; the branches after it have half of them.
        rescale: bring the four depths of a ViT to strides 4 to 32. False: all keep the stride of the patches, which the
            scores have too, as in FLSL's code.

    Raises:
        UserError: the network has neither four stages nor is it a ViT.
    """

    def __init__(self, network: Any, classes: int, width: int, rescale: bool = True):
        super().__init__()
        self.divisor = max(32, patch_side(network)) if is_vit(network) else 32
        self.indices, scale, channels = four_levels(network, nn.BatchNorm2d, EVEN)
        if not rescale and is_vit(network):
            scale, self.divisor = [nn.Identity() for _ in STRIDES], patch_side(network)
        self.scale = nn.ModuleList(scale)
        self.join = FeaturePyramidNetwork(channels, width)
        self.branches = nn.ModuleList(_branch(width, width // 2, round(math.log2(stride / 4))) for stride in STRIDES)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classify = nn.Conv2d(width // 2, classes, 1)

    def forward(self, network: Any, images: Tensor) -> list[Tensor]:
        levels = self.join(levels_of(network, images, self.indices, self.scale)).values()
        first, *others = [branch(level) for branch, level in zip(self.branches, levels, strict=True)]
        return [self.classify(self.dropout(torch.stack([first, *(upsample(one, first) for one in others)]).sum(0)))]


def _branch(into: int, out: int, doublings: int) -> nn.Sequential:
    """Stride 4 * 2**doublings to stride 4: convolution, BatchNorm, ReLU before each upsampling, and at least once."""
    layers: list[nn.Module] = []
    for number in range(max(1, doublings)):
        layers += [nn.Conv2d(out if number else into, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        layers += [nn.Upsample(scale_factor=2, mode="bilinear")] if doublings else []
    return nn.Sequential(*layers)


# ---- context around each position -----------------------------------------------------------------------------------


class ContextHead(Scores):
    """Base of PSPNet and PSANet: joins the last map with maps of context, classifies, and the third stage besides.

    Args:
        network: the backbone, with stages, the last two of one stride; it is passed to ``forward`` and is not part of
            the head.
        classes: number of classes C.
        width: channels of the joined map.
        context: channels of the maps of context.

    Raises:
        UserError: the network has no stages, or the last two are of different strides.
    """

    def __init__(self, network: Any, classes: int, width: int, context: int):
        super().__init__()
        if is_vit(network) or not hasattr(network, "forward_intermediates") or len(network.feature_info) < 4:
            raise UserError(f"model.head psp and psa need stages, and the backbone is a {type(network).__name__}.")
        third, last = network.feature_info[-2:]
        if third["reduction"] != last["reduction"]:
            raise UserError(
                "model.head psp and psa need a network whose last two stages have one stride: "
                "--model.backbone.options.output_stride 8"
            )
        self.divisor, self.channels = last["reduction"], last["num_chs"]
        freeze_unused(network, lambda images: intermediate_maps(network, images, [-2, -1]))
        self.join = unit(self.channels + context, width, 3)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classify = nn.Conv2d(width, classes, 1)
        self.auxiliary = FCNHead(third["num_chs"], classes)
        self.auxiliary[3] = nn.Dropout2d(DROPOUT)  # of whole channels, as in mmsegmentation

    def forward(self, network: Any, images: Tensor) -> list[Tensor]:
        third, last = intermediate_maps(network, images, [-2, -1])
        joined = self.join(torch.cat([last, *(upsample(one, last) for one in self.context(last))], dim=1))
        scores = [self.classify(self.dropout(joined))]
        return scores + ([self.auxiliary(third)] if self.training else [])

    def context(self, features: Tensor) -> list[Tensor]:
        """Maps of context [B, D, h, w] of any size, of a map [B, F, H, W]."""
        raise NotImplementedError


class PyramidPooling(ContextHead):
    """PSPNet (Zhao et al., CVPR 2017, Figure 3): averages over 1, 4, 9 and 36 cells of the map.

    Args:
        network: as of ``ContextHead``.
        classes: number of classes C.
        width: channels of each pooled map and of the joined map; 512 in PSPNet.
    """

    def __init__(self, network: Any, classes: int, width: int):
        super().__init__(network, classes, width, context=len(BINS) * width)
        self.pools = nn.ModuleList(nn.Sequential(nn.AdaptiveAvgPool2d(n), unit(self.channels, width, 1)) for n in BINS)

    def context(self, features: Tensor) -> list[Tensor]:
        return [pool(features) for pool in self.pools]


class PointwiseAttention(ContextHead):
    """PSANet (Zhao et al., ECCV 2018, Figure 2): each position collects from the others and distributes to them.

    The attention of a position over those around it comes from its feature alone, as logits of their relative places;
    softmax over all positions as in mmsegmentation. It works on a map of half the size. mmsegmentation also pads the
    map by one position before it is enlarged, which PSANet does not, and this does not.

    Args:
        network: as of ``ContextHead``.
        classes: number of classes C.
        width: channels of the reduced maps and of the joined map; 512 in PSANet.
        reach: largest distance of attention along an axis, in positions of the halved map.
    """

    def __init__(self, network: Any, classes: int, width: int, reach: int = REACH):
        super().__init__(network, classes, width, context=network.feature_info[-1]["num_chs"])
        self.reach, places = reach, (2 * reach + 1) ** 2
        self.reduce = nn.ModuleList(unit(self.channels, width, 1) for _ in range(2))
        self.attend = nn.ModuleList(
            nn.Sequential(unit(width, width, 1), nn.Conv2d(width, places, 1, bias=False)) for _ in range(2)
        )
        self.widen = unit(2 * width, self.channels, 1)

    def context(self, features: Tensor) -> list[Tensor]:
        size = [(side + 1) // 2 for side in features.shape[-2:]]
        found = []
        for number, (reduce, attend) in enumerate(zip(self.reduce, self.attend, strict=True)):
            reduced = F.interpolate(reduce(features), size, mode="bilinear", align_corners=False)
            logits_BQP = of_pairs(attend(reduced), self.reach)
            weights = (logits_BQP if number == 0 else logits_BQP.mT).softmax(dim=1)  # collect, then distribute
            found.append((reduced.flatten(2) @ weights).view_as(reduced))
        return [self.widen(torch.cat(found, dim=1))]


def of_pairs(logits: Tensor, reach: int) -> Tensor:
    """Logits of relative places as logits of pairs of positions.

    Args:
        logits: [B, (2 reach + 1)**2, H, W]; entry (reach + dy, reach + dx) of a position is that of the position dy
            rows below and dx columns to the right.
        reach: largest distance along an axis.

    Returns:
        [B, H W, H W], of the other position and the position itself; 0 for pairs that are further apart.
    """
    height, width = logits.shape[-2:]
    rows, columns = torch.arange(height, device=logits.device), torch.arange(width, device=logits.device)
    down, right = rows[:, None] - rows[None], columns[:, None] - columns[None]  # [other, own]
    side = 2 * reach + 1
    place = (down[:, None, :, None] + reach) * side + right[None, :, None, :] + reach
    near = (down.abs() <= reach)[:, None, :, None] & (right.abs() <= reach)[None, :, None, :]
    positions = height * width
    place, near = place.reshape(positions, positions), near.reshape(positions, positions)
    picked = logits.flatten(2).gather(1, place.where(near, 0).expand(len(logits), -1, -1))
    return picked * near


def unit(into: int, out: int, kernel: int) -> nn.Module:
    """Convolution, BatchNorm and ReLU."""
    return Conv2dNormActivation(into, out, kernel)


def upsample(features: Tensor, like: Tensor) -> Tensor:
    """A map at the size of another."""
    if features.shape[-2:] == like.shape[-2:]:
        return features
    return F.interpolate(features, like.shape[-2:], mode="bilinear", align_corners=False)
