"""Fine-tuning of a trained backbone with a linear classifier."""

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
    """Linear classifier on a backbone of a checkpoint or of timm, all weights trained (MLS, Table 5).

    Takes one view per image: ``batch.views = [view]``. The loss is the cross-entropy of the fine label; for data with
    several labels per image (VOC2007), the binary cross-entropy of the classes.

    Shapes: B batch, F feature, C classes.

    Args:
        backbone: backbone architecture; with ``init_from`` the architecture of the checkpoint.
        init_from: checkpoint or run folder of any method whose backbone is loaded; null: weights as ``backbone`` says.
        init_network: network of the checkpoint; null: the teacher if it is updated after each step, else the student.
        frozen: train the classifier only; weights and BatchNorm statistics of the backbone stay fixed.
        num_fine: number of classes C; from the data set on the command line.
        optim: optimiser and learning rate schedule.
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
            raise UserError(f"model {type(self).__name__} needs labels, but the data set has none (num_fine is 0).")
        self.frozen = frozen
        self.backbone = self.start_of(backbone).build()
        if frozen:  # else all but what backbone.freeze keeps
            self.backbone.requires_grad_(False)
        self.classifier = nn.Linear(self.backbone.num_features, num_fine)
        self.several = False  # whether these images have several labels
        self.register_buffer("targets", None, persistent=False)  # [N, C] labels of the data set, set in ``setup``
        self.train()  # Lightning does not change the mode of modules

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

    # ---- hooks of Lightning -------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list:
        return [*super().configure_callbacks(), Classification()]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        trainer: Any = self.trainer
        parts = trainer.datamodule.parts
        if parts.index.targets is not None:
            self.targets, self.several = torch.from_numpy(parts.index.targets), True
            return
        if stage != "fit":
            return
        name, seen = type(self).__name__, set(parts.index.fine[parts.train])
        if min(seen) < 0:
            raise UserError(f"model {name} needs a label for each training image, but {parts.index.name} lacks some.")
        if not seen >= set(parts.index.fine[parts.test]) - {-1}:
            raise UserError(
                f"model {name}: some test classes have no training image, so a classifier cannot predict them. Choose "
                f"a data.protocol.split with the same classes in both parts (now {parts.protocol.split})."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["classes"]["several"] = self.several

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.several = checkpoint.get("classes", {}).get("several", self.several)
