"""Object detection and instance segmentation: fine-tuning of a trained backbone in a detector."""

from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from fgssl.callbacks.detection import Detection
from fgssl.data.detection import DetectionBatch, DetectionData
from fgssl.errors import UserError, at_least
from fgssl.evaluation.detection import compact
from fgssl.methods.base import StepResult
from fgssl.nn.backbones import Backbone, of_any_size
from fgssl.nn.batch_norm import batch_norms, keep_statistics
from fgssl.nn.detectors import Neck, build_detector
from fgssl.tasks.downstream import Downstream, Whose


class Detect(Downstream):
    """Faster R-CNN or Mask R-CNN on a backbone of a checkpoint or of timm, all weights trained (MLS, FLSL).

    Takes a ``DetectionBatch``: whole images of different sizes and their objects. Shapes: C classes.

    Args:
        backbone: backbone architecture; with ``init_from`` the architecture of the checkpoint.
        init_from: checkpoint or run folder of any method whose backbone is loaded; null: weights as ``backbone`` says.
        init_network: network of the checkpoint; null: the teacher if it is updated after each step, else the student.
        neck: layers between backbone and heads. ``c4``: last stage of a ResNet on each region; ``fpn``: feature pyramid
            of a network with four stages or a ViT; ``simple``: pyramid of the last feature map of a ViT (ViTDet).
        masks: Mask R-CNN, for data with object outlines; false: Faster R-CNN.
        freeze_bn: keep statistics, scale and shift of the backbone's BatchNorm fixed and add no BatchNorm (default of
            torchvision and Detectron2, for small batches); false: train BatchNorm, as MoCo and MLS do over all
            processes with ``trainer.sync_batchnorm: true``.
        sizes: shorter side of an image in px: a random one of them in training, the last one in evaluation.
        long_side: largest longer side of an image in px.
        pad_to: side in px of the square that images are padded to (ViTDet: 1024); null: the next multiple of 32 px.
        width: channels of the levels of the feature pyramid and of the convolutions of the heads.
        num_fine: number of classes C; from the data set on the command line.
        optim: optimiser and learning rate schedule.
    """

    data_module = DetectionData
    default_views = None
    embeds = False

    def __init__(
        self,
        backbone: Backbone = Backbone("resnet50"),
        init_from: str | None = None,
        init_network: Whose | None = "student",
        neck: Neck = "fpn",
        masks: bool = False,
        freeze_bn: bool = False,
        sizes: list[int] = [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],  # noqa: B006
        long_side: int = 1333,
        pad_to: int | None = None,
        width: int = 256,
        num_fine: int = 0,
        **base,
    ):
        super().__init__(init_from, init_network, **base)
        if not sizes:
            raise UserError("model.sizes is empty: give at least one length in px of the shorter side of an image.")
        at_least(32, sizes=min(sizes), long_side=long_side)
        at_least(1, width=width)
        self.masks, self.freeze_bn = masks, freeze_bn
        network = of_any_size(self.start_of(backbone))
        options: dict[str, Any] = {"masks": masks, "sizes": sizes, "long_side": long_side, "pad_to": pad_to}
        self.detector = build_detector(network, neck, num_fine, **options, width=width, norm=not freeze_bn)
        if freeze_bn:
            keep_statistics(self)
            for module in batch_norms(self):
                module.requires_grad_(False)
        self.train()  # Lightning does not change the mode of modules

    def step(self, batch: DetectionBatch) -> StepResult:  # type: ignore[override]
        targets = batch.targets
        if not self.masks:  # torchvision's detectors would resize the masks
            targets = [{name: target[name] for name in ("boxes", "labels")} for target in targets]
        losses: dict[str, Tensor] = self.detector(batch.images, targets)
        return StepResult(sum(losses.values()), {name: loss.detach() for name, loss in losses.items()})  # type: ignore[arg-type]

    def validation_step(self, batch: DetectionBatch, batch_idx: int) -> dict[str, Any]:  # type: ignore[override]
        # One image at a time: images of a batch are padded to a common size, and the padding enters the features.
        return {"index": batch.index, "detections": [compact(*self.detector([image])) for image in batch.images]}

    test_step = validation_step  # type: ignore[assignment]
    predict_step = validation_step  # type: ignore[assignment]

    # ---- hooks of Lightning -------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list:
        return [*super().configure_callbacks(), Detection()]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        trainer: Any = self.trainer
        if not self.masks:
            return
        objects = trainer.datamodule.parts.index.objects
        if objects.outlines is None:
            raise UserError(
                f"model.masks is true, but {trainer.datamodule.dataset.name} has boxes only. Set it to false."
            )
        if len(objects.undrawable):  # in the test part it would be met after training
            raise UserError(objects.outline(objects.undrawable[0]))

    def on_fit_start(self) -> None:
        self._check_batch_norm()
        super().on_fit_start()

    def _check_batch_norm(self) -> None:
        alone = self.trainer.world_size > 1 and not all(isinstance(m, nn.SyncBatchNorm) for m in batch_norms(self))
        if alone and not self.freeze_bn:
            rank_zero_warn(
                "BatchNorm computes its statistics from the few images of one process. Synchronise it as MoCo does "
                "(--trainer.sync_batchnorm true, GPUs only) or freeze it (--model.freeze_bn true)."
            )
