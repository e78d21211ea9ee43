"""Semantic segmentation: fine-tuning of a trained backbone with a per-pixel classifier."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fgssl.callbacks.segmentation import Segmentation
from fgssl.data.segmentation import SegmentationBatch, SegmentationData
from fgssl.errors import at_least
from fgssl.methods.base import StepResult
from fgssl.metrics.segmentation import IGNORED
from fgssl.nn.backbones import Backbone, of_any_size
from fgssl.nn.segmenters import AUXILIARY, Head, all_scores, build_head, class_scores
from fgssl.tasks.downstream import Downstream, Whose


def mean_over_labelled(scores_BCHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """Cross-entropy, mean over the labelled pixels; 0 where none is labelled."""
    total = F.cross_entropy(scores_BCHW, labels_BHW, ignore_index=IGNORED, reduction="sum")
    return total / (labels_BHW != IGNORED).sum().clamp(min=1)


class Segment(Downstream):
    """A head for semantic segmentation on a backbone of a checkpoint or of timm (FLSL, Table 10; MLS, Table 3).

    Takes a ``SegmentationBatch``. The loss is the cross-entropy, mean over labelled pixels; that of the auxiliary
    classifier of ``psp`` and ``psa``, on the third stage, is added with weight 0.4. Shapes: B batch, C classes.

    Args:
        backbone: backbone architecture; with ``init_from`` the architecture of the checkpoint.
        init_from: checkpoint or run folder of any method whose backbone is loaded; null: weights as ``backbone`` says.
        init_network: network of the checkpoint; null: the teacher if it is updated after each step, else the student.
        head: ``fpn`` (Semantic FPN), ``linear`` (1x1 convolution on the last feature map), ``psp`` (PSPNet) or ``psa``
            (PSANet). The last two are for networks whose last two stages have stride 8, such as a ResNet with
            ``backbone.options: {output_stride: 8}``.
        frozen: train the head only; weights and BatchNorm statistics of the backbone stay fixed.
        width: channels of the levels of the feature pyramid (``fpn``: 256), or of the reduced maps (``psp``, ``psa``:
            512).
        rescale: bring the four depths of a ViT to strides 4, 8, 16 and 32 before the feature pyramid; scores then have
            stride 4. False: all keep the stride of the patches, as in FLSL's released code.
        num_fine: number of classes C; from the data set on the command line.
        optim: optimiser and learning rate schedule.
    """

    data_module = SegmentationData
    default_views = None
    embeds = False

    def __init__(
        self,
        backbone: Backbone = Backbone("resnet50"),
        init_from: str | None = None,
        init_network: Whose | None = "student",
        head: Head = "fpn",
        frozen: bool = False,
        width: int = 256,
        rescale: bool = True,
        num_fine: int = 0,
        **base,
    ):
        super().__init__(init_from, init_network, **base)
        at_least(4, width=width)
        self.frozen = frozen
        self.backbone = of_any_size(self.start_of(backbone))
        self.head = build_head(self.backbone, head, num_fine, width, rescale)
        if frozen:
            self.backbone.requires_grad_(False)
        self.train()  # Lightning does not change the mode of modules

    def step(self, batch: SegmentationBatch) -> StepResult:  # type: ignore[override]
        scores, *auxiliary = all_scores(self.backbone, self.head, torch.stack(batch.images))
        labels_BHW = torch.stack(batch.masks).long()
        loss = mean_over_labelled(scores, labels_BHW)
        return StepResult(loss + sum(AUXILIARY * mean_over_labelled(one, labels_BHW) for one in auxiliary))

    def validation_step(self, batch: SegmentationBatch, batch_idx: int) -> dict[str, Any]:  # type: ignore[override]
        sizes = [mask.shape for mask in batch.masks]
        return {"predicted": [self.classes_of(image, size) for image, size in zip(batch.images, sizes, strict=True)]}

    test_step = validation_step  # type: ignore[assignment]
    predict_step = validation_step  # type: ignore[assignment]

    def classes_of(self, image: Tensor, size: torch.Size) -> Tensor:
        """Predicted classes, int64 of ``size`` (height, width), of an image [3, H, W]."""
        scores_1CHW = class_scores(self.backbone, self.head, image[None])
        return F.interpolate(scores_1CHW, size, mode="bilinear", align_corners=False)[0].argmax(0)

    def train(self, mode: bool = True) -> "Segment":
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    # ---- hooks of Lightning -------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list:
        return [*super().configure_callbacks(), Segmentation()]
