"""DenseCL: MoCo-v2 for whole images and for the positions of their feature maps."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgssl.data.batch import Batch
from fgssl.errors import at_least, between
from fgssl.losses.contrastive import info_nce
from fgssl.losses.densecl import correspondence, dense_info_nce
from fgssl.methods.base import Keys, StepResult
from fgssl.methods.momentum_contrast import MomentumContrast
from fgssl.nn.backbones import Backbone, Encoder
from fgssl.nn.feature_map import last_features
from fgssl.nn.heads import mlp
from fgssl.nn.memory import Memory


class DenseCL(MomentumContrast):
    """Dense contrastive learning (Wang, Zhang, Shen, Kong & Li, CVPR 2021).

    MoCo-v2 on pooled features, and MoCo-v2 on the positions of the last feature map: the positive of a position of view
    1 is the position of view 2 whose backbone features are the most similar, its negatives are mean dense projections
    of other images. ``batch.views = [view 1, view 2]``.

    Logged each step: ``train/nce`` (pooled), ``train/dense`` (positions) and ``train/matched``, the fraction of
    positions of view 2 that are the match of some position of view 1.

    Shapes: B batch, N positions, F feature, D projection, K memory.

    Args:
        backbone: Network of both encoders. The paper uses ResNet-50.
        lam: Weight lambda of the dense loss, from 0 to 1; that of the pooled loss is 1 - lambda.
        dim: Projection dimension D of both heads.
        hidden: Hidden width of both heads.
        memory: Length K of both memories.
        optim: Optimiser and schedule.
    """

    def __init__(
        self,
        backbone: Backbone = Backbone("resnet50"),
        lam: float = 0.5,
        dim: int = 128,
        hidden: int = 2048,
        memory: int = 65536,
        **base,
    ):
        super().__init__(**base)
        at_least(1, dim=dim, hidden=hidden, memory=memory)
        between(0, 1, lam=lam)
        self.lam, self.dim = lam, dim
        network = backbone.build()
        heads = mlp(network.num_features, hidden, dim), mlp(network.map_channels, hidden, dim)
        self.query = DenseEncoder(network, *heads)
        self.make_key()
        self.memory = Memory(memory, 2 * dim)  # columns [k, mean t]

    def prefill(self, batch: Batch) -> dict[str, Keys]:
        *_, keys_B2D = self.keys(batch.views[1])
        return self.entries(keys_B2D, batch)

    def step(self, batch: Batch) -> StepResult:
        view1, view2 = batch.views
        q_BD, r_BND, f1_BNF = self.query.outputs(view1)
        k_BD, t_BND, f2_BNF, keys_B2D = self.keys(view2)
        queue_KD, dense_queue_KD = self.memory.keys.split(self.dim, dim=1)
        nce = info_nce(F.normalize(q_BD, dim=1), k_BD, queue_KD, tau=self.tau)
        c_BN = correspondence(f1_BNF, f2_BNF)
        dense = dense_info_nce(F.normalize(r_BND, dim=2), t_BND, c_BN, dense_queue_KD, tau=self.tau)
        loss = (1 - self.lam) * nce + self.lam * dense
        parts = {"nce": nce, "dense": dense, "matched": matched(c_BN)}
        return StepResult(loss, parts, self.entries(keys_B2D, batch))

    def keys(self, images: Tensor) -> tuple[Tensor, ...]:
        """k [B, D], t [B, N, D], backbone features [B, N, F], and [B, 2D] for the memory, by the EMA encoder."""

        def encode(images: Tensor) -> tuple[Tensor, ...]:
            k_BD, t_BND, f_BNF = self.key.outputs(images)
            k_BD, mean_BD = F.normalize(k_BD, dim=1), F.normalize(t_BND.mean(dim=1), dim=1)
            return k_BD, F.normalize(t_BND, dim=2), f_BNF, torch.cat([k_BD, mean_BD], dim=1)

        return self.encoded(encode, images)


class DenseEncoder(Encoder):
    """Encoder with a second head, for the positions of the last feature map.

    Args:
        backbone: images [B, 3, H, W] to features [B, F].
        head: features [B, F] to projections [B, D].
        dense: features [B, N, F] of the positions to projections [B, N, D].
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, dense: nn.Module):
        super().__init__(backbone, head)
        self.dense = dense

    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projections [B, D] and dense projections [B, N, D], not of unit length, and the map's features [B, N, F]."""
        g_BF, map_BFHW = last_features(self.backbone, images)
        f_BNF = map_BFHW.flatten(2).mT
        return self.head(g_BF), self.dense(f_BNF), f_BNF


@torch.no_grad()
def matched(c_BN: Tensor) -> Tensor:
    """Fraction of the positions 0 to N - 1 that occur in a row of [B, N], mean over rows."""
    return torch.zeros_like(c_BN, dtype=torch.float32).scatter_(1, c_BN, 1.0).mean()
