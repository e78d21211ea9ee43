"""Barlow Twins: channels that agree between two views of an image and do not correlate with each other."""

from torch import Tensor

from fgssl.data.batch import Batch
from fgssl.distributed import gather_with_gradient
from fgssl.errors import at_least
from fgssl.losses.redundancy import barlow_twins
from fgssl.methods.base import Method, StepResult
from fgssl.nn.backbones import Backbone, Encoder
from fgssl.nn.heads import batch_norm_mlp


class BarlowTwins(Method):
    """Self-supervised learning via redundancy reduction (Zbontar et al., ICML 2021).

    C is the cross-correlation matrix of the projections of view 1 and view 2, over the batch of all processes (Eq. 2):

        loss = sum_i (1 - C_ii)^2 + lambda sum_i sum_(j != i) C_ij^2    (Eq. 1)

    ``batch.views = [view 1, view 2]``. ``train/invariance`` and ``train/redundancy`` are the two sums.

    Shapes: B batch of all processes, D projection.

    Args:
        backbone: Network. The paper uses ResNet50.
        lam: Weight lambda of the redundancy term; 0.0051 in the released code.
        dim: Projection dimension D.
        hidden: Width of the two hidden layers of the projector.
        optim: Optimiser and schedule.
    """

    default_views = {"class_path": "PairViews", "init_args": {"recipe": "byol"}}
    views_needed = (2, 2)

    def __init__(
        self,
        backbone: Backbone = Backbone("resnet50"),
        lam: float = 0.0051,
        dim: int = 8192,
        hidden: int = 8192,
        **base,
    ):
        super().__init__(**base)
        at_least(0, lam=lam)
        at_least(1, dim=dim, hidden=hidden)
        self.lam = lam
        network = backbone.build()
        self.encoder = Encoder(network, batch_norm_mlp([network.num_features, hidden, hidden, dim]))

    def embed(self, images: Tensor) -> Tensor:
        return self.encoder.features(images)

    def step(self, batch: Batch) -> StepResult:
        z1_BD, z2_BD = (gather_with_gradient(self.encoder.head(self.embed(view))) for view in batch.views)
        invariance, redundancy = barlow_twins(z1_BD, z2_BD)
        return StepResult(invariance + self.lam * redundancy, {"invariance": invariance, "redundancy": redundancy})
