"""LCR: learning common rationale, an attention branch fitted to the GradCAM of a self-supervised loss."""

from typing import Any

import torch
from torch import Tensor

from fgssl.data.batch import Batch
from fgssl.distributed import process_count
from fgssl.errors import UserError, at_least
from fgssl.losses.contrastive import info_nce
from fgssl.losses.lcr import Over, attention_fit, cam_peak, gradcam
from fgssl.methods.base import Keys, StepResult
from fgssl.methods.momentum_contrast import MomentumContrast
from fgssl.nn.attention import MaxAttention, attention_pool
from fgssl.nn.backbones import Backbone, Encoder
from fgssl.nn.feature_map import as_map
from fgssl.nn.heads import mlp
from fgssl.nn.memory import Memory


class LCR(MomentumContrast):
    """Learning common rationale on MoCo-v2 (Shu, van den Hengel & Liu, CVPR 2023).

    MoCo-v2, and an attention branch on the last feature map of the query encoder: a 1 x 1 convolution of few maps and
    their maximum. The branch is fitted to the GradCAM of the InfoNCE loss, the positions that the loss depends on; it
    has too little capacity to fit what is particular to one image. The embedding is the feature map pooled with the
    attention as weights. ``batch.views = [view 1, view 2]``.

    Logged each step: ``train/nce``, ``train/fit`` (divergence of attention and GradCAM, in nats, per image) and
    ``train/cam_peak``, the largest probability of the GradCAM's distribution in units of the uniform one: at 1 the
    GradCAM is flat. In the released code, the GradCAM is of the loss's mean over the batch, and so nearly flat.

    Shapes: B batch, C projection, F feature, H x W feature map.

    Args:
        backbone: Network of both encoders, with pooled features that are computed from its map: a CNN, a Swin, or a
            ViT with average pooling. The paper uses ResNet-50 from ImageNet weights.
        nu: Weight of the fit, which is a sum over the images of a batch.
        maps: Number of maps of the attention branch.
        attention_tau: Temperature of the softmaxes of attention and GradCAM: 1 in the released code on MoCo, 0.4 in
            that on BYOL.
        attention_over: Positions that a softmax runs over. ``rows``: each row of the map (released code on MoCo);
            ``map``: the whole map (released code on BYOL).
        dim: Projection dimension C.
        hidden: Hidden width of the projector.
        memory: Memory length K.
        optim: Optimiser and schedule.
    """

    def __init__(
        self,
        backbone: Backbone = Backbone("resnet50.tv_in1k", pretrained=True),
        nu: float = 0.01,
        maps: int = 32,
        attention_tau: float = 1.0,
        attention_over: Over = "rows",
        dim: int = 256,
        hidden: int = 2048,
        memory: int = 65536,
        **base,
    ):
        super().__init__(**base)
        at_least(0, nu=nu)
        at_least(1, maps=maps, dim=dim, hidden=hidden, memory=memory)
        if attention_tau <= 0:
            raise UserError(f"model.attention_tau is {attention_tau}; a temperature is above 0.")
        self.nu, self.attention_tau, self.attention_over = nu, attention_tau, attention_over
        network = backbone.build()
        check_pooled(network, backbone.name)
        self.query = Encoder(network, mlp(network.num_features, hidden, dim))
        self.make_key()
        self.attention = MaxAttention(network.map_channels, maps)
        self.memory = Memory(memory, dim)

    def embed(self, images: Tensor) -> Tensor:
        """Feature map [B, F, H, W] pooled with the attention as weights, [B, F]."""
        map_BFHW = as_map(self.query.backbone, self.query.backbone.forward_features(images), images)
        return attention_pool(map_BFHW, self.attention(map_BFHW))

    def prefill(self, batch: Batch) -> dict[str, Keys]:
        return self.entries(self.keys(batch.views[1]), batch)

    def step(self, batch: Batch) -> StepResult:
        view1, view2 = batch.views
        network = self.query.backbone
        raw = network.forward_features(view1)
        q_BC = self.query.project(network.forward_head(raw, pre_logits=True))
        k_BC = self.keys(view2)
        nce = info_nce(q_BC, k_BC, self.memory.keys, tau=self.tau)
        fit, peak = self.fit(raw, nce, view1)
        loss = nce + self.nu * fit
        parts = {"nce": nce, "fit": fit.detach() / images_of_all(view1), "cam_peak": peak}
        return StepResult(loss, parts, self.entries(k_BC, batch))

    def keys(self, images: Tensor) -> Tensor:
        """k [B, C] of unit length, by the EMA encoder."""
        (k_BC,) = self.encoded(lambda x: (self.key(x),), images)
        return k_BC

    def fit(self, raw: Tensor, loss: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Divergence of the attention from the GradCAM of ``loss``, summed over the images of all processes.

        Args:
            raw: output of the backbone's ``forward_features``, which ``loss`` is computed from.
            loss: mean over the images of this process.
            images: the images.

        Returns:
            The divergence, of which the mean over processes is the sum over all images; and the GradCAM's peak.
        """
        # Of the sum over images: the gradient of a mean could be too small for float16.
        (gradient,) = torch.autograd.grad(loss * len(images), raw, retain_graph=True)
        network = self.query.backbone
        map_BFHW = as_map(network, raw, images)
        cam_BHW = gradcam(map_BFHW, as_map(network, gradient, images)) / images_of_all(images)
        tau, over = self.attention_tau, self.attention_over
        fit = attention_fit(self.attention(map_BFHW), cam_BHW, tau=tau, over=over)
        return fit * process_count(), cam_peak(cam_BHW, tau=tau, over=over)


def images_of_all(images: Tensor) -> int:
    """Images of a batch, over all processes."""
    return len(images) * process_count()


def check_pooled(network: Any, name: str) -> None:
    """Refuse a network whose pooled features are a class token: the map would have no gradient to make a GradCAM of."""
    if getattr(network, "global_pool", None) == "token":
        raise UserError(
            f"model.backbone: '{name}' pools its class token, and LCR attends to the map. Set model.backbone.options "
            "{class_token: false, global_pool: avg}, or take a CNN or a Swin."
        )
