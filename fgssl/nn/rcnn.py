"""Parts of Faster and Mask R-CNN: torchvision's modules with the losses, sampling and initialisation of Detectron2.

Boxes, anchors and scores are float32 in every precision: bfloat16 has 8 significant bits and would round a coordinate
near 800 px to a multiple of 4 px.

Shapes: N images, R regions, C classes without the background, A anchors.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import roi_align

from fgssl.losses.precision import at_least_float32

Maps = Mapping[str, Tensor]


class Anchors(AnchorGenerator):
    """Anchors in float32 (float64 for float64 maps), not rounded to whole pixels."""

    def generate_anchors(
        self,
        scales: list[int],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),
    ) -> Tensor:
        """[A, 4] anchors around the origin; aspect ratios are height / width."""
        root_A = torch.tensor(aspect_ratios, dtype=dtype, device=device).sqrt()[:, None]
        side_A = torch.tensor(scales, dtype=dtype, device=device)
        widths, heights = (side_A / root_A).flatten(), (side_A * root_A).flatten()
        return torch.stack([-widths, -heights, widths, heights], dim=1) / 2

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        return super().forward(image_list, [at_least_float32(features[:1, :1]) for features in feature_maps])


class ProposalHead(RPNHead):
    """Objectness and box deltas of each anchor in float32; weights from a normal distribution of deviation 0.01."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [at_least_float32(level) for level in logits], [at_least_float32(level) for level in deltas]


class Proposals(RegionProposalNetwork):
    """Region proposals; the loss of the box deltas is L1."""

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Losses of objectness and box deltas, means over the sampled anchors of the batch."""
        objects, background = (torch.where(torch.cat(chosen))[0] for chosen in self.fg_bg_sampler(labels))
        sampled = torch.cat([objects, background])
        loss_score = F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], torch.cat(labels)[sampled])
        loss_box = F.l1_loss(pred_bbox_deltas[objects], torch.cat(regression_targets)[objects], reduction="sum")
        return loss_score, loss_box / max(1, len(sampled))


class RegionAlign(nn.Module):
    """RoIAlign with aligned pixel centres and one sample per pixel; a region is taken from the level of its size.

    Levels are those of Feature Pyramid Networks (Lin et al., CVPR 2017), Eq. 1: a region of 224 x 224 px is taken from
    the level of stride 16.

    Args:
        strides: Name of each map and its stride, px, ascending.
        size: Side of a pooled region.
    """

    def __init__(self, strides: Mapping[str, int], size: int):
        super().__init__()
        self.strides, self.size = dict(strides), size

    def forward(self, maps: Maps, boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Pool regions.

        Args:
            maps: [N, channels, H, W] by name.
            boxes: Regions of each image, [n, 4] (x0, y0, x1, y1), px.
            image_shapes: Not used; torchvision passes it.

        Returns:
            [R, channels, size, size] in the order of the boxes and in the type of the maps.
        """
        image_R = torch.cat([box.new_full((len(box), 1), number) for number, box in enumerate(boxes)])
        regions_R5 = torch.cat([image_R, torch.cat(boxes)], dim=1)
        if len(self.strides) == 1:
            return self._pool(maps, next(iter(self.strides)), regions_R5)
        level_R = self._levels(torch.cat(boxes))
        first = maps[next(iter(self.strides))]
        pooled = first.new_zeros(len(regions_R5), first.shape[1], self.size, self.size)
        for number, name in enumerate(self.strides):
            chosen = torch.where(level_R == number)[0]
            pooled[chosen] = self._pool(maps, name, regions_R5[chosen]).to(pooled.dtype)
        return pooled

    def _pool(self, maps: Maps, name: str, regions_R5: Tensor) -> Tensor:
        features, scale = at_least_float32(maps[name]), 1 / self.strides[name]
        regions_R5 = regions_R5.to(features.dtype)
        return roi_align(features, regions_R5, self.size, scale, sampling_ratio=0, aligned=True).to(maps[name].dtype)

    def _levels(self, boxes_R4: Tensor) -> Tensor:
        """[R] number of each region's level."""
        side_R = ((boxes_R4[:, 2] - boxes_R4[:, 0]) * (boxes_R4[:, 3] - boxes_R4[:, 1])).sqrt()
        lowest = round(math.log2(min(self.strides.values())))
        level_R = torch.floor(4 + torch.log2(side_R / 224 + 1e-8)) - lowest
        return level_R.clamp(0, len(self.strides) - 1).long()


class BoxPredictor(FastRCNNPredictor):
    """Class logits and box deltas of each region in float32; normal weights of deviation 0.01 and 0.001, biases 0."""

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__(in_channels, num_classes)
        for layer, deviation in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = super().forward(x)
        return at_least_float32(logits), at_least_float32(deltas)


class MaskPredictor(MaskRCNNPredictor):
    """Mask logits in float32; MSRA deconvolution, then normal weights of deviation 0.001; biases 0."""

    def __init__(self, in_channels: int, dim_reduced: int, num_classes: int):
        super().__init__(in_channels, dim_reduced, num_classes)  # MSRA
        nn.init.zeros_(self.conv5_mask.bias)
        nn.init.normal_(self.mask_fcn_logits.weight, std=0.001)
        nn.init.zeros_(self.mask_fcn_logits.bias)

    def forward(self, x: Tensor) -> Tensor:
        return at_least_float32(super().forward(x))


def xavier(layers: Iterable[nn.Module]) -> None:
    """Initialise linear layers in place: uniform of variance 1 / inputs, biases 0 (Caffe2's XavierFill)."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)


class Heads(RoIHeads):
    """Heads of boxes and masks; the loss of the box deltas is L1."""

    def forward(self, features, proposals, image_shapes, targets=None):
        if not self.training:
            return super().forward(features, proposals, image_shapes, targets)
        proposals, matched, labels, regression = self.select_training_samples(proposals, targets)
        regions, box_features = self.box_features(features, proposals, image_shapes)
        logits_RC, deltas_RD = self.box_predictor(box_features)
        losses = box_losses(logits_RC, deltas_RD, torch.cat(labels), torch.cat(regression))
        if self.has_mask():
            shown = [label > 0 for label in labels]
            kept = [boxes[one] for boxes, one in zip(proposals, shown, strict=True)]
            losses["loss_mask"] = maskrcnn_loss(
                self.mask_predictor(self.mask_features(features, kept, image_shapes, regions[torch.cat(shown)])),
                kept,
                [target["masks"] for target in targets],
                [target["labels"] for target in targets],
                [match[one] for match, one in zip(matched, shown, strict=True)],
            )
        return [], losses

    def box_features(self, features, proposals, image_shapes) -> tuple[Tensor, Tensor]:
        """[R, ...] pooled regions, and what the box predictor takes of them."""
        regions = self.box_roi_pool(features, proposals, image_shapes)
        return regions, self.box_head(regions)

    def mask_features(self, features, proposals, image_shapes, regions: Tensor) -> Tensor:
        """What the mask predictor takes of the regions with an object, whose ``box_features`` are ``regions``."""
        return self.mask_head(self.mask_roi_pool(features, proposals, image_shapes))


class Res5Heads(Heads):
    """Heads whose masks are trained on the features of the boxes: the last stage sees each region once.

    Its BatchNorm then sees all regions, not only those with an object.
    """

    def box_features(self, features, proposals, image_shapes) -> tuple[Tensor, Tensor]:
        res5, *pool = self.box_head
        regions = res5(self.box_roi_pool(features, proposals, image_shapes))
        return regions, nn.Sequential(*pool)(regions)

    def mask_features(self, features, proposals, image_shapes, regions: Tensor) -> Tensor:
        return regions


def box_losses(logits_RC: Tensor, deltas_RD: Tensor, labels_R: Tensor, targets_R4: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of all regions, and L1 of the box deltas of those with an object over the number of all regions.

    Args:
        logits_RC: [R, C + 1], column 0 is the background.
        deltas_RD: [R, 4 (C + 1)] box deltas of each class.
        labels_R: [R] class, 0 for the background.
        targets_R4: [R, 4] box deltas to reach.
    """
    objects = torch.where(labels_R > 0)[0]
    own_R4 = deltas_RD.view(len(labels_R), -1, 4)[objects, labels_R[objects]]
    loss_box = F.l1_loss(own_R4, targets_R4[objects], reduction="sum") / max(1, len(labels_R))
    return {"loss_classifier": F.cross_entropy(logits_RC, labels_R), "loss_box_reg": loss_box}
