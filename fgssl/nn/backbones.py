"""Backbones from timm, and the encoder of a backbone and a projection head."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F

from fgssl.errors import UserError, at_least, did_you_mean
from fgssl.nn.batch_norm import batch_norms, keep_statistics
from fgssl.nn.weights import Channels, Whose, load_weights, normalisation_of

_from_checkpoint: ContextVar[bool] = ContextVar("_from_checkpoint", default=False)


@contextmanager
def from_checkpoint() -> Iterator[None]:
    """Within this context ``Backbone.build`` reads no starting weights: a checkpoint replaces them all afterwards."""
    token = _from_checkpoint.set(True)
    try:
        yield
    finally:
        _from_checkpoint.reset(token)


@dataclass(frozen=True)
class Backbone:
    """A timm network without its classifier.

    Args:
        name: timm model name, with an optional pretrained tag (``resnet18.tv_in1k``), ``bn_inception``, or
            ``vitdet_base_patch16``, which takes the weights of any plain ViT-B/16.
        pretrained: start from timm's weights of that name.
        small_input: replace a ResNet's stem for images of 64 px and below: a 3x3 convolution of stride 1, no max-pool.
        options: arguments of the timm model, such as ``{layers: [1, 1, 1, 1]}``.
        pooling: ``avg+max`` adds average and maximum pooling (Proxy-Anchor, "+D" in OBD-SD's tables); null keeps the
            pooling of the model, which is the average for most.
        weights: file to start from, in place of ``pretrained``: a state dict of timm or torchvision (.pth,
            .safetensors), a checkpoint of MoCo, SimSiam, DINO, iBOT, EsViT or FLSL, or a run folder of ours. null:
            ``pretrained`` decides.
        weights_of: network of a file that holds a student and its teacher: ``student`` or ``teacher``; null: the one
            that its project or method evaluates (MoCo, MaskCon, MLS: the student; DINO, EsViT, CMD, FLSL: the teacher).
        freeze: number of first stages that stay as they start, without a gradient and with fixed statistics of
            BatchNorm. 0: none; 1: the stem; 2: also the first stage of a CNN or Swin, or the first block of a ViT.
        freeze_statistics: keep the running statistics of BatchNorm in all stages as they start, and normalise with them
            in training too; its scale and shift are trained. For short training from ``pretrained`` or ``weights``,
            whose statistics a few hundred steps on small crops would only disturb.
    """

    name: str = "resnet18"
    pretrained: bool = False
    small_input: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    pooling: Literal["avg+max"] | None = None
    weights: str | None = None
    weights_of: Whose | None = None
    freeze: int = 0
    freeze_statistics: bool = False

    def __post_init__(self):
        at_least(0, freeze=self.freeze)

    def build(self) -> Any:
        """Build the network: images [B, 3, H, W] in, pooled features [B, ``num_features``] out.

        The map before pooling has ``map_channels``.
        """
        timm = timm_with_ours()
        from fgssl.nn.swin import pad_before_rolling  # imports timm

        if not timm.is_model(self.name):
            base = self.name.split(".")[0]
            hint = did_you_mean(self.name if base in timm.list_models() else base, timm.list_models(pretrained=False))
            raise UserError(f"model.backbone.name: timm knows no model '{self.name}'.{hint}")
        weights = None if _from_checkpoint.get() else self.weights
        pretrained = self.pretrained and not (self.weights or _from_checkpoint.get())
        try:
            network = timm.create_model(self.name, pretrained=pretrained, num_classes=0, **self.options)
        except Exception as fault:  # each host and each network fails in its own way
            raise self._explain(fault, pretrained) from fault
        pad_before_rolling(network)
        # timm's num_features is the width of the map; MobileNetV3 and others widen the features after pooling.
        network.map_channels = network.num_features
        network.num_features = getattr(network, "head_hidden_size", network.num_features)
        if self.small_input:
            _shrink_stem(network, self.name)
        if self.pooling:
            if not isinstance(getattr(network, "global_pool", None), nn.Module):
                raise UserError(f"model.backbone.pooling: '{self.name}' has no pooling layer to replace; set it null")
            network.global_pool = AvgMaxPool()
        if weights:
            anew = ("conv1.weight",) if self.small_input else ()
            rank_zero_info(load_weights(network, weights, self.weights_of, anew))
        if self.freeze:
            _freeze(network, self.freeze, self.name)
        if self.freeze_statistics:
            if not batch_norms(network):
                raise UserError(
                    f"model.backbone.freeze_statistics: '{self.name}' has no BatchNorm to train; set it to false."
                )
            keep_statistics(network)
        return network

    def _explain(self, fault: Exception, pretrained: bool) -> UserError:
        """Message for what timm raised: wrong options, weights that do not exist or do not fit, or no network."""
        said = " ".join(str(fault).split())[:300]
        if not pretrained or isinstance(fault, TypeError):
            return UserError(f"model.backbone.options: timm cannot build '{self.name}': {said}")
        if isinstance(fault, OSError):  # connections, and files that are in no cache
            return UserError(
                f"model.backbone: the pretrained weights of '{self.name}' could not be had ({said}). On a machine "
                "without a network, put them into timm's cache beforehand, or name a file of them: "
                "--model.backbone.weights FILE; for a public network --weights FILE, or timm/NAME=FILE in --beside. "
                "--model.backbone.pretrained false starts from random weights."
            )
        return UserError(
            f"model.backbone: '{self.name}' cannot be built with pretrained weights and options {self.options}: {said}"
        )

    def normalisation(self) -> tuple[Channels, Channels] | None:
        """Mean and standard deviation of the images that the starting weights were trained on; None if unknown.

        ``weights`` by timm's names are taken to be normalised as timm's weights of ``name``, tag included:
        ``vit_small_patch16_224`` means 0.5, ``vit_small_patch16_224.dino`` ImageNet's.
        """
        timm = timm_with_ours()
        known = normalisation_of(self.weights) if self.weights else None
        if known or not (self.weights or self.pretrained) or not timm.is_model(self.name):
            return known
        trained = timm.get_pretrained_cfg(self.name)
        return (trained.mean, trained.std) if trained else None


def timm_with_ours() -> Any:
    """timm, which then knows ``bn_inception`` and ``vitdet_base_patch16``; imported here because that takes seconds."""
    import timm

    import fgssl.nn.bn_inception
    import fgssl.nn.vitdet  # noqa: F401

    return timm


def check_size(network: Any, size: int) -> None:
    """Refuse images of a size that a ViT or Swin of timm does not take.

    Args:
        network: timm network.
        size: side of the images, px.

    Raises:
        UserError: names the option that builds the network for this size.
    """
    embed = getattr(network, "patch_embed", None)
    built_for, patch = getattr(embed, "img_size", None), getattr(embed, "patch_size", None)
    if getattr(embed, "strict_img_size", False) and built_for and tuple(built_for) != (size, size):
        raise UserError(
            f"model.backbone: this network takes images of {built_for[0]} px, but the data module gives {size} px. Set "
            f"--model.backbone.options '{{img_size: {size}}}', or '{{dynamic_img_size: true}}' for a ViT and views of "
            "several sizes."
        )
    if patch and not getattr(embed, "dynamic_img_pad", True) and size % patch[0]:
        raise UserError(f"model.backbone: the side of the images, {size} px, is no multiple of a patch, {patch[0]} px.")


def option_of_any_size(network: Any, name: str) -> dict[str, bool]:
    """timm's option with which a ViT or Swin accepts images of any size; empty for a network that does already.

    Args:
        network: timm network.
        name: its name.
    """
    if getattr(network, "dynamic_img_size", None) is False:  # ViTs
        return {"dynamic_img_size": True}
    if getattr(getattr(network, "patch_embed", None), "strict_img_size", False) and "swin" in name:
        return {"strict_img_size": False}
    return {}


def of_any_size(backbone: Backbone) -> Any:
    """Build a network that accepts images of any size."""
    untrained = replace(backbone, pretrained=False, weights=None)
    network = untrained.build()
    told = option_of_any_size(network, backbone.name)
    if not told and backbone == untrained:
        return network
    return replace(backbone, options={**backbone.options, **told}).build()


def _freeze(network: nn.Module, count: int, name: str) -> None:
    """Stop the training of a network's first stages, in timm's coarse order of its parameters."""
    from timm.layers import freeze_batch_norm_2d  # imports torchvision
    from timm.models import group_parameters

    if not hasattr(network, "group_matcher"):
        raise UserError(f"model.backbone.freeze: the stages of '{name}' are not known; set it to 0.")
    matcher: Any = network.group_matcher
    stages = group_parameters(network, matcher(coarse=True))
    if count > len(stages):
        raise UserError(f"model.backbone.freeze is {count}; '{name}' has {len(stages)} stages, the stem included.")
    frozen = {parameter for stage in sorted(stages)[:count] for parameter in stages[stage]}
    for parameter in frozen:
        network.get_parameter(parameter).requires_grad_(False)
    for module_name, module in list(network.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and f"{module_name}.weight" in frozen:
            network.set_submodule(module_name, freeze_batch_norm_2d(module))


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
    """Sum of average and maximum pooling, [B, F, H, W] to [B, F]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3)) + x.amax(dim=(2, 3))


class Encoder(nn.Module):
    """Backbone f and projection head h. Evaluation uses ``features``, the loss ``forward``.

    Args:
        backbone: f, images [B, 3, H, W] to features [B, F].
        head: h, features [B, F] to projections [B, D].
        freeze_statistics: keep the running statistics of the backbone's BatchNorm also in training mode; its scale and
            shift are trained.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, freeze_statistics: bool = False):
        super().__init__()
        self.backbone = backbone
        self.head = head
        if freeze_statistics:
            keep_statistics(backbone)
        self.train()  # Lightning leaves modules in the mode that it finds them in

    def features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] images to [B, F] pooled features."""
        return self.backbone(images)

    def project(self, features: Tensor) -> Tensor:
        """[B, F] features to [B, D] projections of unit length."""
        return F.normalize(self.head(features), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] images to [B, D] projections of unit length."""
        return self.project(self.features(images))


def timm_networks(module: nn.Module) -> list[Any]:
    """Submodules with timm's interface (``forward_features`` and ``num_features``), outermost first."""
    return [part for part in module.modules() if hasattr(part, "forward_features") and hasattr(part, "num_features")]


def first_backbone(module: nn.Module) -> nn.Module | None:
    """First submodule with timm's interface, or None."""
    return next(iter(timm_networks(module)), None)
