"""LEWEL: BYOL for whole images and for parts that the projector itself points at."""

from typing import Any

import torch
from torch import Tensor, nn

from fgssl.data.batch import Batch
from fgssl.errors import UserError, above, at_least, between
from fgssl.losses.lewel import aligned_features, alignment_maps, map_peak
from fgssl.losses.prediction import channel_deviation, normalised_regression
from fgssl.methods.base import StepResult
from fgssl.methods.byol import BYOL
from fgssl.nn.backbones import Backbone, Encoder
from fgssl.nn.feature_map import last_features
from fgssl.nn.heads import batch_norm_mlp
from fgssl.nn.teacher import teacher_of


class LEWEL(BYOL):
    """Learning where to learn, on BYOL (Huang et al., CVPR 2022): LEWEL_B.

    The projector maps the pooled features to BYOL's projection, and each position of the last feature map to as many
    channels. Each of these channels, a softmax over the positions, is an alignment map: the weights of an average of
    the features of its head. A part is the features of all heads, each averaged with one of its own maps. Parts have a
    second projector and predictor and BYOL's loss; part p of one view predicts part p of the other:

        L = (1 - lambda) L_BYOL + lambda mean over parts of L_BYOL

    Evaluation uses the online backbone. ``batch.views = [view 1, view 2]``.

    Logged each step: ``train/pooled`` and ``train/aligned`` (both losses), ``train/z_std`` as in ``BYOL``, and
    ``train/map_peak``, the largest weight of an alignment map in units of the uniform one: at 1 the maps are flat.

    Shapes: B batch, N positions, F feature, D projection, P = D / heads parts.

    Args:
        backbone: Network of both encoders, whose pooled features are as wide as its map. The paper uses ResNet-50.
        lam: Weight lambda of the parts' loss, from 0 to 1; that of the pooled loss is 1 - lambda.
        heads: Number of groups of neighbouring channels, each with alignment maps of its own; divides ``dim`` and the
            width of the features.
        tau: Temperature of the softmax of the alignment maps.
        dim: Projection dimension D of both projectors, and number of alignment maps.
        hidden: Hidden width of both projectors and of both predictors.
        optim: Optimiser and schedule.
    """

    online: "AligningEncoder"
    target: "AligningEncoder"

    def __init__(
        self,
        backbone: Backbone = Backbone("resnet50"),
        lam: float = 0.5,
        heads: int = 4,
        tau: float = 1.0,
        dim: int = 256,
        hidden: int = 4096,
        **base,
    ):
        super().__init__(backbone=backbone, dim=dim, hidden=hidden, **base)
        at_least(1, heads=heads)
        between(0, 1, lam=lam)
        above(0, tau=tau)
        network = self.online.backbone
        features = width_of(network)
        if features % heads or dim % heads:
            raise UserError(f"model.heads is {heads}; it must divide model.dim, {dim}, and the {features} features.")
        self.lam = lam
        part_head = batch_norm_mlp([features, hidden, dim])
        self.online = AligningEncoder(network, self.online.head, part_head, heads, tau)
        self.target = teacher_of(self.online)
        self.part_predictor = batch_norm_mlp([dim, hidden, dim])

    def step(self, batch: Batch) -> StepResult:
        (z1_BD, a1_BPD, maps_BND), (z2_BD, a2_BPD, _) = (self.online.outputs(view) for view in batch.views)
        with torch.no_grad():
            (t1_BD, u1_BPD, _), (t2_BD, u2_BPD, _) = (self.target.outputs(view) for view in batch.views)
        pooled = normalised_regression(self.predictor(z1_BD), t2_BD)
        pooled = pooled + normalised_regression(self.predictor(z2_BD), t1_BD)
        aligned = self.regression_of_parts(a1_BPD, u2_BPD) + self.regression_of_parts(a2_BPD, u1_BPD)
        loss = (1 - self.lam) * pooled + self.lam * aligned
        logged = {"z_std": channel_deviation(z1_BD), "map_peak": map_peak(maps_BND)}
        return StepResult(loss, {"pooled": pooled, "aligned": aligned, **logged})

    def regression_of_parts(self, a_BPD: Tensor, target_BPD: Tensor) -> Tensor:
        """BYOL's Eq. 2 in one direction, mean over images and parts."""
        return normalised_regression(self.part_predictor(a_BPD.flatten(0, 1)), target_BPD.flatten(0, 1))


class AligningEncoder(Encoder):
    """Encoder whose projector also makes alignment maps, and a second projector of the parts that they point at.

    Args:
        backbone: images [B, 3, H, W] to features [B, F].
        head: features [rows, F] to projections [rows, D].
        part_head: the same, of the parts.
        heads: number of groups of channels; divides F and D.
        tau: temperature of the softmax of the alignment maps.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, part_head: nn.Module, heads: int, tau: float):
        super().__init__(backbone, head)
        self.part_head, self.heads, self.tau = part_head, heads, tau

    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projections [B, D] and those of the parts [B, P, D], not of unit length, and the alignment maps [B, N, D]."""
        g_BF, map_BFHW = last_features(self.backbone, images)
        f_BNF = map_BFHW.flatten(2).mT
        # One batch of pooled features and positions: BatchNorm has the statistics of both, as in the released code.
        z_BMD = per_row(self.head, torch.cat([g_BF[:, None], f_BNF], dim=1))
        maps_BND = alignment_maps(z_BMD[:, 1:], tau=self.tau)
        a_BPD = per_row(self.part_head, aligned_features(f_BNF, maps_BND, heads=self.heads))
        return z_BMD[:, 0], a_BPD, maps_BND


def per_row(head: nn.Module, x_BMF: Tensor) -> Tensor:
    """A head of [rows, F] applied to the last dimension of [B, M, F]."""
    return head(x_BMF.flatten(0, 1)).unflatten(0, x_BMF.shape[:2])


def width_of(network: Any) -> int:
    """Width of the pooled features.

    Raises:
        UserError: that of the map before pooling is another, and one projector cannot take both.
    """
    if network.num_features != network.map_channels:
        raise UserError(
            f"model.backbone: this network pools a map of {network.map_channels} channels to {network.num_features} "
            "features, and LEWEL's projector takes both. Take a network without a layer between them, such as a ResNet."
        )
    return network.num_features
