"""BYOL: the online network predicts what its moving average says of the other view."""

import torch
from torch import Tensor, nn

from fgssl.data.batch import Batch
from fgssl.errors import at_least, between
from fgssl.losses.prediction import channel_deviation, normalised_regression
from fgssl.methods.base import Method, StepResult
from fgssl.nn.backbones import Backbone, Encoder
from fgssl.nn.heads import batch_norm_mlp
from fgssl.nn.teacher import Pair, teacher_of
from fgssl.optim import cosine


class BYOL(Method):
    """Bootstrap your own latent (Grill et al., NeurIPS 2020).

    The online network is backbone, projector and predictor q; the target network is the exponential moving average
    (EMA) of backbone and projector. The online network's prediction of one view regresses the target's projection z' of
    the other view, both of unit length, in both directions:

        L = |q(z1) - z2'|^2 + |q(z2) - z1'|^2    (Eq. 2)

    Evaluation uses the online backbone. ``batch.views = [view 1, view 2]``. Logged each step: ``train/z_std``, the
    deviation of a channel of z / |z|: about 1 / sqrt(D), or 0 in a collapse.

    Shapes: B batch, D projection.

    Args:
        backbone: Network of both encoders. The paper uses ResNet50.
        dim: Projection dimension D.
        hidden: Hidden width of the projector and of the predictor.
        momentum: EMA momentum tau of the target network at the first step.
        momentum_end: EMA momentum at the end of the run, after half a cosine. LCR's released code stays at 0.996.
        optim: Optimiser and schedule.
    """

    default_views = {"class_path": "PairViews", "init_args": {"recipe": "byol"}}
    views_needed = (2, 2)

    def __init__(
        self,
        backbone: Backbone = Backbone("resnet50"),
        dim: int = 256,
        hidden: int = 4096,
        momentum: float = 0.996,
        momentum_end: float = 1.0,
        **base,
    ):
        super().__init__(**base)
        at_least(2, dim=dim, hidden=hidden)
        between(0, 1, momentum=momentum, momentum_end=momentum_end)
        self.momentum, self.momentum_end = momentum, momentum_end
        network = backbone.build()
        self.online = Encoder(network, batch_norm_mlp([network.num_features, hidden, dim]))
        self.predictor: nn.Module = batch_norm_mlp([dim, hidden, dim])
        self.target = teacher_of(self.online)

    def embed(self, images: Tensor) -> Tensor:
        return self.online.features(images)

    def teachers(self) -> list[Pair]:
        return [Pair(self.online, self.target)]

    def teacher_momentum(self, step: int, total: int) -> float:
        return cosine(step - 1, total, self.momentum, self.momentum_end)

    def step(self, batch: Batch) -> StepResult:
        z1_BD, z2_BD = (self.online.head(self.online.features(view)) for view in batch.views)
        target1_BD, target2_BD = self.targets(batch.views)
        q1_BD, q2_BD = self.predictor(z1_BD), self.predictor(z2_BD)
        loss = normalised_regression(q1_BD, target2_BD) + normalised_regression(q2_BD, target1_BD)
        return StepResult(loss, {"z_std": channel_deviation(z1_BD)})

    @torch.no_grad()
    def targets(self, views: list[Tensor]) -> list[Tensor]:
        """z' [B, D] of each view, by the target network."""
        return [self.target.head(self.target.features(view)) for view in views]
