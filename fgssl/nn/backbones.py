"""The networks: one timm factory."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from fgssl.errors import UserError, did_you_mean
from fgssl.nn.moco import load_moco


@dataclass(frozen=True)
class Backbone:
    """A timm network without its classifier.

    Args:
        name: timm model name; a pretrained tag may follow (``resnet18.tv_in1k``).
        pretrained: start from the weights that timm distributes under that name.
        small_input: for images of 64 px and below: a 3x3 stride-1 first convolution and no max-pool (ResNets).
        options: further arguments of the timm model, such as ``{layers: [1, 1, 1, 1]}``.
        pooling: ``avg+max`` sums average and maximum over the positions (Proxy-Anchor, the "+D" of OBD-SD's tables);
            null leaves the model's own pooling, mostly the average.
        weights: file in MoCo v2's format (``module.encoder_q.*``) to start from; null: ``pretrained`` decides.
    """

    name: str = "resnet18"
    pretrained: bool = False
    small_input: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    pooling: Literal["avg+max"] | None = None
    weights: str | None = None

    def build(self) -> Any:
        """Build the network: images [B, 3, H, W] in, pooled features [B, ``num_features``] out."""
        import timm  # takes seconds to import, and the command line has none to give

        import fgssl.nn.bn_inception  # noqa: F401  # makes the name known to timm
        from fgssl.nn.swin import pad_before_rolling  # imports timm

        if not timm.is_model(self.name):
            base = self.name.split(".")[0]
            hint = did_you_mean(self.name if base in timm.list_models() else base, timm.list_models(pretrained=False))
            raise UserError(f"model.backbone.name: timm knows no model '{self.name}'.{hint}")
        try:
            pretrained = self.pretrained and not self.weights
            network = timm.create_model(self.name, pretrained=pretrained, num_classes=0, **self.options)
        except Exception as fault:  # each host and each network fails in its own way
            if not self.pretrained:
                raise UserError(f"model.backbone.options: timm cannot build '{self.name}': {fault}") from fault
            raise UserError(
                f"model.backbone: the pretrained weights of '{self.name}' could not be had ({fault}). On a machine "
                "without a network, put them into timm's cache beforehand, or set --model.backbone.pretrained false."
            ) from fault
        pad_before_rolling(network)
        if self.small_input:
            _shrink_stem(network, self.name)
        if self.pooling:
            if not isinstance(getattr(network, "global_pool", None), nn.Module):
                raise UserError(f"model.backbone.pooling: '{self.name}' has no pooling layer to replace; set it null")
            network.global_pool = AvgMaxPool()
        if self.weights:
            load_moco(network, self.weights)
        return network


def of_any_size(backbone: Backbone) -> Any:
    """The network; a ViT or Swin in the form that takes images of any size."""
    network = backbone.build()
    told: dict[str, Any] = {}
    if getattr(network, "dynamic_img_size", None) is False:  # ViTs
        told = {"dynamic_img_size": True}
    elif getattr(getattr(network, "patch_embed", None), "strict_img_size", False) and "swin" in backbone.name:
        told = {"strict_img_size": False}
    return replace(backbone, options={**backbone.options, **told}).build() if told else network


def _shrink_stem(network: nn.Module, name: str) -> None:
    """Replace a ResNet's stem for small images (MaskCon, Sec. 4).

    The new convolution keeps PyTorch's default initialisation, U(-1/sqrt(27), 1/sqrt(27)), as in MaskCon's released
    code; a pretrained network keeps its other weights.
    """
    conv1 = getattr(network, "conv1", None)
    if not isinstance(conv1, nn.Conv2d) or not hasattr(network, "maxpool"):
        raise UserError(f"model.backbone.small_input: '{name}' has no single-convolution stem to replace; set it false")
    network.conv1 = nn.Conv2d(conv1.in_channels, conv1.out_channels, 3, stride=1, padding=1, bias=False)
    network.maxpool = nn.Identity()


class AvgMaxPool(nn.Module):
    """[B, F, H, W] to [B, F]: the average over all positions plus their maximum."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3)) + x.amax(dim=(2, 3))


class Encoder(nn.Module):
    """Backbone f and projection head h: ``features`` is what evaluation uses, ``forward`` what the loss sees.

    Args:
        backbone: f.
        head: h.
        freeze_statistics: keep the running statistics of the backbone's BatchNorm as they are, also in training; their
            scale and shift train.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, freeze_statistics: bool = False):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.freeze_statistics = freeze_statistics
        self.train()  # Lightning leaves modules in the mode that it finds them in

    def train(self, mode: bool = True) -> "Encoder":
        super().train(mode)
        if self.freeze_statistics:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] images to [B, F] pooled features."""
        return self.backbone(images)

    def project(self, features: Tensor) -> Tensor:
        """[B, F] features to [B, D] projections of unit length."""
        return F.normalize(self.head(features), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] images to [B, D] projections of unit length."""
        return self.project(self.features(images))
