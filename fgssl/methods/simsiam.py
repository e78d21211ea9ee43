"""SimSiam: each view predicts the other one, which has no gradient."""

from torch import Tensor, nn

from fgssl.data.batch import Batch
from fgssl.errors import at_least
from fgssl.losses.prediction import channel_deviation, negative_cosine
from fgssl.methods.base import Method, StepResult
from fgssl.nn.backbones import Backbone, Encoder
from fgssl.nn.heads import batch_norm_mlp


class SimSiam(Method):
    """Exploring simple Siamese representation learning (Chen & He, CVPR 2021).

    Both views go through the encoder f, which is backbone and projector. A predictor h maps the projection of each view
    to that of the other one, through which no gradient runs. There are neither negatives nor a teacher.

        p = h(f(x)), z = f(x),  L = D(p1, stopgrad(z2)) / 2 + D(p2, stopgrad(z1)) / 2    (Eq. 4)

    D is the negative cosine (Eq. 1). The predictor's learning rate stays at its peak with ``optim.constant: predictor``
    (Table 1). ``batch.views = [view 1, view 2]``. Logged each step:
    ``train/z_std``, the deviation of a channel of z / |z|: about 1 / sqrt(D), or 0 in a collapse (Fig. 2).

    Shapes: B batch, D projection.

    Args:
        backbone: Network of the encoder. The paper uses ResNet50.
        dim: Projection dimension D.
        hidden: Hidden width of the predictor. That of the projector is the width of the features.
        optim: Optimiser and schedule.
    """

    default_views = {"class_path": "PairViews", "init_args": {"recipe": "moco"}}
    views_needed = (2, 2)

    def __init__(
        self,
        backbone: Backbone = Backbone("resnet50"),
        dim: int = 2048,
        hidden: int = 512,
        **base,
    ):
        super().__init__(**base)
        at_least(2, dim=dim, hidden=hidden)
        network = backbone.build()
        features = network.num_features
        self.encoder = Encoder(network, batch_norm_mlp([features, features, features, dim], last="norm"))
        self.predictor: nn.Module = batch_norm_mlp([dim, hidden, dim], last="bias")

    def embed(self, images: Tensor) -> Tensor:
        return self.encoder.features(images)

    def step(self, batch: Batch) -> StepResult:
        z1_BD, z2_BD = (self.encoder.head(self.encoder.features(view)) for view in batch.views)
        p1_BD, p2_BD = self.predictor(z1_BD), self.predictor(z2_BD)
        loss = negative_cosine(p1_BD, z2_BD.detach()) / 2 + negative_cosine(p2_BD, z1_BD.detach()) / 2
        return StepResult(loss, {"z_std": channel_deviation(z1_BD)})
