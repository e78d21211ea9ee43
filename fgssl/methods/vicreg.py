"""VICReg: equal projections of two views, whose channels keep their variance and do not correlate."""

from torch import Tensor

from fgssl.data.batch import Batch
from fgssl.distributed import gather_with_gradient
from fgssl.errors import UserError, at_least
from fgssl.losses.redundancy import covariance, invariance, variance
from fgssl.methods.base import Method, StepResult
from fgssl.nn.backbones import Backbone, Encoder
from fgssl.nn.heads import batch_norm_mlp


class VICReg(Method):
    """Variance-invariance-covariance regularization (Bardes, Ponce & LeCun, ICLR 2022).

    s is the mean squared difference of the projections of the two views, v a hinge on the standard deviation of each
    channel and c the covariance of different channels, over the batch of all processes:

        loss = lambda s(Z, Z') + mu (v(Z) + v(Z')) / 2 + nu (c(Z) + c(Z'))    (Eq. 6)

    The mean over the channels in s and the half before v are those of the released code, whose weights are the
    defaults; Eq. 5 and 6 have sums. ``batch.views = [view 1, view 2]``. ``train/invariance``, ``train/variance`` and
    ``train/covariance`` are the three terms before their weights.

    Shapes: B batch of all processes, D projection.

    Args:
        backbone: Network. The paper uses ResNet50.
        lam: Weight lambda of the invariance term s.
        mu: Weight mu of the variance term v.
        nu: Weight nu of the covariance term c.
        dim: Projection dimension D.
        hidden: Width of the two hidden layers of the projector, which the paper calls expander.
        optim: Optimiser and schedule.
    """

    default_views = {"class_path": "PairViews", "init_args": {"recipe": "byol"}}
    views_needed = (2, 2)

    def __init__(
        self,
        backbone: Backbone = Backbone("resnet50"),
        lam: float = 25.0,
        mu: float = 25.0,
        nu: float = 1.0,
        dim: int = 8192,
        hidden: int = 8192,
        **base,
    ):
        super().__init__(**base)
        at_least(0, lam=lam, mu=mu, nu=nu)
        at_least(1, dim=dim, hidden=hidden)
        if lam == mu == nu == 0:
            raise UserError("model.lam, model.mu and model.nu are all 0: nothing would be learnt.")
        self.lam, self.mu, self.nu = lam, mu, nu
        network = backbone.build()
        self.encoder = Encoder(network, batch_norm_mlp([network.num_features, hidden, hidden, dim]))

    def embed(self, images: Tensor) -> Tensor:
        return self.encoder.features(images)

    def step(self, batch: Batch) -> StepResult:
        z1_BD, z2_BD = (gather_with_gradient(self.encoder.head(self.embed(view))) for view in batch.views)
        s = invariance(z1_BD, z2_BD)
        v = (variance(z1_BD) + variance(z2_BD)) / 2
        c = covariance(z1_BD) + covariance(z2_BD)
        loss = self.lam * s + self.mu * v + self.nu * c
        return StepResult(loss, {"invariance": s, "variance": v, "covariance": c})
