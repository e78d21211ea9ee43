"""Semantic segmentation: fine-tuning of a trained backbone with a head that classifies each pixel."""

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
from fgssl.nn.segmenters import Head, build_head, class_scores
from fgssl.tasks.downstream import Downstream, Whose


class Segment(Downstream):
    """Semantic FPN or a linear head on top of a method's checkpoint or any timm network (FLSL, Table 10).

    ``batch`` is a ``SegmentationBatch``. The loss is the cross-entropy, mean over the pixels that have a class. Shapes:
    B batch, C classes.

    Args:
        backbone: the network; with ``init_from`` the one that the checkpoint was trained with.
        init_from: checkpoint or run folder of any method to start from; null: start from ``backbone`` as it is built.
        init_network: network of the checkpoint: ``student`` or ``teacher``; null: the teacher where it has one that
            follows the student step by step, else the student.
        head: ``fpn`` (Semantic FPN) or ``linear`` (a 1x1 convolution on the last map).
        frozen: train the head alone; the backbone and its BatchNorm statistics do not change.
        width: channels of the pyramid's levels.
        num_fine: number of classes C; set from the data set on the command line.
        optim: optimiser and learning rate schedule.
    """

    data_module = SegmentationData
    default_views = None
    embeds = False  # classes of pixels, and no features of images

    def __init__(
        self,
        backbone: Backbone = Backbone("resnet50"),
        init_from: str | None = None,
        init_network: Whose | None = "student",
        head: Head = "fpn",
        frozen: bool = False,
        width: int = 256,
        num_fine: int = 0,
        **base,
    ):
        super().__init__(init_from, init_network, **base)
        at_least(4, **{"model.width": width})
        self.frozen = frozen
        self.backbone = of_any_size(self.start_of(backbone))
        self.head = build_head(self.backbone, head, num_fine, width)
        if frozen:
            self.backbone.requires_grad_(False)
        self.train()  # Lightning leaves modules in the mode that it finds them in

    def step(self, batch: SegmentationBatch) -> StepResult:  # type: ignore[override]
        scores_BCHW = class_scores(self.backbone, self.head, torch.stack(batch.images))
        labels_BHW = torch.stack(batch.masks).long()
        total = F.cross_entropy(scores_BCHW, labels_BHW, ignore_index=IGNORED, reduction="sum")
        return StepResult(total / (labels_BHW != IGNORED).sum().clamp(min=1))  # a batch may have no label at all

    def validation_step(self, batch: SegmentationBatch, batch_idx: int) -> dict[str, Any]:  # type: ignore[override]
        sizes = [mask.shape for mask in batch.masks]
        return {"predicted": [self.classes_of(image, size) for image, size in zip(batch.images, sizes, strict=True)]}

    test_step = validation_step  # type: ignore[assignment]
    predict_step = validation_step  # type: ignore[assignment]

    def classes_of(self, image: Tensor, size: torch.Size) -> Tensor:
        """Classes of the pixels of an image [3, H, W], int64 of ``size`` (height, width)."""
        scores_1CHW = class_scores(self.backbone, self.head, image[None])
        return F.interpolate(scores_1CHW, size, mode="bilinear", align_corners=False)[0].argmax(0)

    def train(self, mode: bool = True) -> "Segment":
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    # ---- what Lightning asks ------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list:
        return [*super().configure_callbacks(), Segmentation()]
