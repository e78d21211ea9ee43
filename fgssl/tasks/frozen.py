"""Evaluation of a published network without training."""

from torch import Tensor

from fgssl.data.batch import Batch
from fgssl.errors import UserError
from fgssl.methods.base import Method, StepResult
from fgssl.nn.backbones import Backbone
from fgssl.optim import Optim


class Frozen(Method):
    """A timm network that is evaluated but not trained: ``fgssl embed --model timm/<name>``.

    Args:
        backbone: network whose pooled features are the embedding.
        optim: not used, since nothing is trained.
        max_skips: not used.
    """

    default_views = {"class_path": "SingleView"}

    def __init__(self, backbone: Backbone = Backbone(pretrained=True), optim: Optim = Optim(), max_skips: int = 0):
        super().__init__(optim, max_skips)
        self.backbone = backbone.build()

    def embed(self, images: Tensor) -> Tensor:
        return self.backbone(images)

    def step(self, batch: Batch) -> StepResult:
        raise UserError("model Frozen cannot be trained. Use fgssl test or fgssl embed.")
