"""SimCLR: the two views of an image among all views of the batch."""

import torch
from torch import Tensor

from fgssl.data.batch import Batch
from fgssl.distributed import gather_with_gradient
from fgssl.errors import above, at_least
from fgssl.losses.contrastive import nt_xent
from fgssl.methods.base import Method, StepResult
from fgssl.nn.backbones import Backbone, Encoder
from fgssl.nn.heads import batch_norm_mlp


class SimCLR(Method):
    """A simple framework for contrastive learning of visual representations (Chen et al., ICML 2020).

    A view z_i has one positive, the other view of its image, and 2(B - 1) negatives, both views of the other images of
    the batch of all processes:

        l(i, j) = -log exp(z_i . z_j / tau) / sum_(k != i) exp(z_i . z_k / tau)    (Eq. 1)

    The loss is the mean over both directions of all pairs. ``batch.views = [view 1, view 2]``.

    Shapes: B batch of all processes, D projection.

    Args:
        backbone: Network f. The paper uses ResNet50.
        dim: Projection dimension D.
        hidden: Hidden width of the projector g; null: the width of the features, as in the paper.
        tau: Temperature.
        optim: Optimiser and schedule.
    """

    default_views = {"class_path": "PairViews", "init_args": {"recipe": "simclr"}}
    views_needed = (2, 2)

    def __init__(
        self,
        backbone: Backbone = Backbone("resnet50"),
        dim: int = 128,
        hidden: int | None = None,
        tau: float = 0.1,
        **base,
    ):
        super().__init__(**base)
        at_least(1, dim=dim)
        if hidden is not None:
            at_least(1, hidden=hidden)
        above(0, tau=tau)
        self.tau = tau
        network = backbone.build()
        features = network.num_features
        self.encoder = Encoder(network, batch_norm_mlp([features, hidden or features, dim], last="scale"))

    def embed(self, images: Tensor) -> Tensor:
        return self.encoder.features(images)

    def step(self, batch: Batch) -> StepResult:
        views = self.encoder(torch.cat(batch.views)).chunk(2)  # one batch for BatchNorm, as in the released code
        z1_BD, z2_BD = (gather_with_gradient(view) for view in views)
        return StepResult(nt_xent(z1_BD, z2_BD, tau=self.tau))
