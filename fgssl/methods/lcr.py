"""LCR: learning common rationale, an attention branch fitted to the GradCAM of a self-supervised loss."""

from typing import Any

import torch
from torch import Tensor

from fgssl.data.batch import Batch
from fgssl.distributed import process_count
from fgssl.errors import UserError, above, at_least
from fgssl.losses.contrastive import info_nce
from fgssl.losses.lcr import Over, attention_fit, cam_peak, gradcam
from fgssl.losses.prediction import channel_deviation, negative_cosine
from fgssl.methods.base import Keys, Method, StepResult
from fgssl.methods.byol import BYOL
from fgssl.methods.momentum_contrast import MomentumContrast
from fgssl.nn.attention import MaxAttention, attention_pool
from fgssl.nn.backbones import Backbone, Encoder
from fgssl.nn.feature_map import as_map, pooled
from fgssl.nn.heads import mlp
from fgssl.nn.memory import Memory


class Rationale(Method):
    """Base class of methods with LCR's attention branch (Shu, van den Hengel & Liu, CVPR 2023).

    The branch is fitted to the GradCAM of a self-supervised loss, the positions of the last feature map that the loss
    depends on. It has too little capacity to fit what is particular to one image. The embedding is the feature map
    pooled with the attention as weights. A method calls ``make_attention`` with its trained network, and adds ``fit``
    to its loss.

    Args:
        nu: Weight of the fit, which is a sum over the images of a batch.
        maps: Number of maps of the attention branch.
        attention_tau: Temperature of the softmaxes of attention and GradCAM: 1 in the released code on MoCo, 0.4 in
            that on BYOL.
        attention_over: Positions that a softmax runs over. ``rows``: each row of the map (released code on MoCo);
            ``map``: the whole map (released code on BYOL).
    """

    def __init__(
        self,
        nu: float = 0.01,
        maps: int = 32,
        attention_tau: float = 1.0,
        attention_over: Over = "rows",
        **base,
    ):
        super().__init__(**base)
        at_least(0, nu=nu)
        at_least(1, maps=maps)
        above(0, attention_tau=attention_tau)
        self.nu, self.maps, self.attention_tau, self.attention_over = nu, maps, attention_tau, attention_over

    def make_attention(self, network: Any) -> None:
        """Make the attention branch on the last feature map of a network of timm's.

        Raises:
            UserError: the pooled features are a class token: the map would have no gradient to make a GradCAM of.
        """
        if getattr(network, "global_pool", None) == "token":
            raise UserError(
                "model.backbone: this network pools its class token, and LCR attends to the map. Set "
                "model.backbone.options {class_token: false, global_pool: avg}, or take a CNN or a Swin."
            )
        self.attention = MaxAttention(network.map_channels, self.maps)

    def embed(self, images: Tensor) -> Tensor:
        """Feature map [B, F, H, W] pooled with the attention as weights, [B, F]."""
        network = self.backbone_of("student")
        map_BFHW = as_map(network, network.forward_features(images), images)
        return attention_pool(map_BFHW, self.attention(map_BFHW))

    def fit(self, raw: Tensor, loss: Tensor, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Divergence of the attention from the GradCAM of ``loss``, times ``nu``.

        Args:
            raw: output of the backbone's ``forward_features`` for ``images``, which ``loss`` is computed from.
            loss: mean over the images of this process.
            images: [B, 3, H, W].

        Returns:
            The weighted divergence, of which the mean over processes is the sum over all images, and terms to log.
        """
        # Of the sum over images: the gradient of a mean could be too small for float16.
        (gradient,) = torch.autograd.grad(loss * len(images), raw, retain_graph=True)
        network, images_of_all = self.backbone_of("student"), len(images) * process_count()
        map_BFHW = as_map(network, raw, images)
        cam_BHW = gradcam(map_BFHW, as_map(network, gradient, images)) / images_of_all
        tau, over = self.attention_tau, self.attention_over
        fit = attention_fit(self.attention(map_BFHW), cam_BHW, tau=tau, over=over)
        terms = {"fit": fit.detach() / len(images), "cam_peak": cam_peak(cam_BHW, tau=tau, over=over)}
        return self.nu * fit * process_count(), terms


class LCR(Rationale, MomentumContrast):
    """Learning common rationale on MoCo-v2 (Shu, van den Hengel & Liu, CVPR 2023).

    MoCo-v2, and an attention branch on the last feature map of the query encoder: a 1 x 1 convolution of few maps and
    their maximum, fitted to the GradCAM of the InfoNCE loss. The embedding is the feature map pooled with the attention
    as weights. ``batch.views = [view 1, view 2]``; the branch sees view 1.

    Logged each step: ``train/nce``, ``train/fit`` (divergence of attention and GradCAM, in nats, per image) and
    ``train/cam_peak``, the largest probability of the GradCAM's distribution in units of the uniform one: at 1 the
    GradCAM is flat. In the released code, the GradCAM is of the loss's mean over the batch, and so nearly flat.

    Shapes: B batch, C projection, F feature, H x W feature map.

    Args:
        backbone: Network of both encoders, with pooled features that are computed from its map: a CNN, a Swin, or a
            ViT with average pooling. The paper uses ResNet-50 from ImageNet weights.
        dim: Projection dimension C.
        hidden: Hidden width of the projector.
        memory: Memory length K.
        optim: Optimiser and schedule.
    """

    def __init__(
        self,
        backbone: Backbone = Backbone("resnet50.tv_in1k", pretrained=True),
        dim: int = 256,
        hidden: int = 2048,
        memory: int = 65536,
        **base,
    ):
        super().__init__(**base)
        at_least(1, dim=dim, hidden=hidden, memory=memory)
        network = backbone.build()
        self.make_attention(network)
        self.query = Encoder(network, mlp(network.num_features, hidden, dim))
        self.make_key()
        self.memory = Memory(memory, dim)

    def prefill(self, batch: Batch) -> dict[str, Keys]:
        return self.entries(self.keys(batch.views[1]), batch)

    def step(self, batch: Batch) -> StepResult:
        view1, view2 = batch.views
        raw, g_BF = features_of(self.query.backbone, view1)
        q_BC, k_BC = self.query.project(g_BF), self.keys(view2)
        nce = info_nce(q_BC, k_BC, self.memory.keys, tau=self.tau)
        fit, terms = self.fit(raw, nce, view1)
        return StepResult(nce + fit, {"nce": nce, **terms}, self.entries(k_BC, batch))

    def keys(self, images: Tensor) -> Tensor:
        """k [B, C] of unit length, by the EMA encoder."""
        (k_BC,) = self.encoded(lambda x: (self.key(x),), images)
        return k_BC


class BYOLLCR(Rationale, BYOL):
    """Learning common rationale on BYOL (Shu, van den Hengel & Liu, CVPR 2023): "BYOL+LCR" in CMD's Table I.

    BYOL, and the attention branch of ``LCR`` on the last feature map of the online network for view 1. The loss of BYOL
    is the mean of both negative cosines, a quarter of BYOL's Eq. 2, as in LCR's released code: ``nu`` is relative to
    it. ``batch.views = [view 1, view 2]``.

    Logged each step: ``train/byol`` (mean of the negative cosines), ``train/z_std`` as in ``BYOL``, ``train/fit`` and
    ``train/cam_peak`` as in ``LCR``.

    Args:
        backbone: Network of both encoders, as in ``LCR``.
        attention_tau: Temperature of the softmaxes of attention and GradCAM.
        attention_over: Positions that a softmax runs over: ``map``, the whole map, or ``rows``, each row of it.
        optim: Optimiser and schedule.
    """

    def __init__(
        self,
        backbone: Backbone = Backbone("resnet50.tv_in1k", pretrained=True),
        attention_tau: float = 0.4,
        attention_over: Over = "map",
        **base,
    ):
        super().__init__(backbone=backbone, attention_tau=attention_tau, attention_over=attention_over, **base)
        self.make_attention(self.online.backbone)

    def step(self, batch: Batch) -> StepResult:
        view1, view2 = batch.views
        raw, g1_BF = features_of(self.online.backbone, view1)
        z1_BD, z2_BD = self.online.head(g1_BF), self.online.head(self.online.features(view2))
        target1_BD, target2_BD = self.targets(batch.views)
        q1_BD, q2_BD = self.predictor(z1_BD), self.predictor(z2_BD)
        byol = (negative_cosine(q1_BD, target2_BD) + negative_cosine(q2_BD, target1_BD)) / 2
        fit, terms = self.fit(raw, byol, view1)
        return StepResult(byol + fit, {"byol": byol, "z_std": channel_deviation(z1_BD), **terms})


def features_of(network: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Output of ``forward_features``, and the pooled features [B, F] that are computed from it."""
    raw = network.forward_features(images)
    return raw, pooled(network, raw)
