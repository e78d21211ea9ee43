"""A network as it is published: the baseline that needs no training."""

from torch import Tensor

from fgssl.data.batch import Batch
from fgssl.errors import UserError
from fgssl.methods.base import Method, StepResult
from fgssl.nn.backbones import Backbone


class Frozen(Method):
    """Any timm network, evaluated by the same protocol as the trained ones: ``fgssl embed --model timm/<name>``.

    Args:
        backbone: the network; its pooled features are the embedding.
        optim: not used.
    """

    default_views = {"class_path": "SingleView"}

    def __init__(self, backbone: Backbone = Backbone(pretrained=True), **base):
        super().__init__(**base)
        self.backbone = backbone.build()

    def embed(self, images: Tensor) -> Tensor:
        return self.backbone(images)

    def step(self, batch: Batch) -> StepResult:
        raise UserError(
            "model Frozen is a published network as it is and does not train: use fgssl test or fgssl embed."
        )
