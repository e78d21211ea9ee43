"""Fine-tuning of a trained backbone and a linear classifier on labels."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgssl.callbacks.classification import Classification
from fgssl.data.batch import Batch
from fgssl.errors import UserError
from fgssl.losses.classification import binary_cross_entropy
from fgssl.methods.base import StepResult
from fgssl.nn.backbones import Backbone
from fgssl.tasks.downstream import Downstream, Whose


class Finetune(Downstream):
    """Classifier on top of a method's checkpoint or any timm network, all weights trained (MLS, Table 5).

    One view per image: ``batch.views = [view]``. The loss is the cross-entropy of the fine label, or the binary
    cross-entropy of each class for data with several labels per image (VOC2007).

    Shapes: B batch, F feature, C classes.

    Args:
        backbone: Network; with ``init_from`` the one that the checkpoint was trained with.
        init_from: Checkpoint or run folder of any method to start from; null: start from ``backbone`` as it is built.
        init_network: Network of the checkpoint: ``student`` or ``teacher``; null: the teacher where it has one that
            follows the student step by step, else the student.
        frozen: Train the classifier only; the backbone keeps its weights and BatchNorm statistics.
        num_fine: Number of classes C; on the command line it comes from the data set.
        optim: Optimiser and schedule.
    """

    default_views = {"class_path": "SingleView"}
    views_needed = (1, 1)
    targets: Tensor | None

    def __init__(
        self,
        backbone: Backbone = Backbone("resnet50"),
        init_from: str | None = None,
        init_network: Whose | None = "student",
        frozen: bool = False,
        num_fine: int = 0,
        **base,
    ):
        super().__init__(init_from, init_network, **base)
        if not num_fine:
            raise UserError(f"model {type(self).__name__} needs labels, and the data set has none (num_fine is 0).")
        self.frozen = frozen
        self.backbone = self.start_of(backbone).build()
        self.backbone.requires_grad_(not frozen)
        self.classifier = nn.Linear(self.backbone.num_features, num_fine)
        self.register_buffer("targets", None, persistent=False)  # [N, C] labels of the rows, set in ``setup``
        self.train()  # Lightning leaves modules in the mode that it finds them in

    def embed(self, images: Tensor) -> Tensor:
        return self.backbone(images)

    def step(self, batch: Batch) -> StepResult:
        (images,) = batch.views
        logits_BC = self.classifier(self.embed(images))
        if self.targets is None:
            return StepResult(F.cross_entropy(logits_BC, batch.fine))
        return StepResult(binary_cross_entropy(logits_BC, self.targets[batch.index]))

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        h_BF = self.embed(batch.views[0])
        return {"embedding": h_BF, "logits": self.classifier(h_BF), "fine": batch.fine, "index": batch.index}

    test_step = validation_step
    predict_step = validation_step

    def train(self, mode: bool = True) -> "Finetune":
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    # ---- what Lightning asks ------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list:
        return [*super().configure_callbacks(), Classification()]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        trainer: Any = self.trainer
        parts = trainer.datamodule.parts
        if parts.index.targets is not None:
            self.targets = torch.from_numpy(parts.index.targets)
            return
        name, seen = type(self).__name__, set(parts.index.fine[parts.train])
        if min(seen) < 0:
            raise UserError(f"model {name} needs a label of each training image, and {parts.index.name} lacks some.")
        if stage == "fit" and not seen >= set(parts.index.fine[parts.test]):
            raise UserError(
                f"model {name}: the test part has classes without a training image, which a classifier cannot "
                f"predict. Choose a data.protocol.split with the same classes in both (now {parts.protocol.split})."
            )
