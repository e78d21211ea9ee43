"""Projection heads."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgssl.nn.batch_norm import GlobalBatchNorm1d


def mlp(features: int, hidden: int, dim: int) -> nn.Sequential:
    """Linear-ReLU-Linear, the projector of SimCLR and MoCo-v2: [B, features] to [B, dim]."""
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))


def batch_norm_mlp(widths: Sequence[int], last: Literal["linear", "bias", "norm", "scale"] = "linear") -> nn.Sequential:
    """Linear-BatchNorm-ReLU for each hidden width, then a last linear layer: [B, widths[0]] to [B, widths[-1]].

    Projector and predictor of SimCLR, BYOL, SimSiam, Barlow Twins, VICReg and SwAV. The statistics of BatchNorm are
    those of the batches of all processes. Linear layers before a BatchNorm have no bias.

    Args:
        widths: width of the input, of each hidden layer, and of the output.
        last: what the last linear layer has. ``linear``: no bias (BYOL, Barlow Twins, VICReg). ``bias``: a bias (SwAV,
            SimSiam's predictor). ``norm``: BatchNorm without scale and shift (SimSiam's projector). ``scale``:
            BatchNorm with a scale, its shift kept at 0 (SimCLR).
    """
    layers: list[nn.Module] = []
    for width, following in pairwise(widths[:-1]):
        layers += [nn.Linear(width, following, bias=False), GlobalBatchNorm1d(following), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=last == "bias"))
    if last in ("norm", "scale"):
        layers.append(GlobalBatchNorm1d(widths[-1], affine=last == "scale"))
    if last == "scale":
        layers[-1].bias.requires_grad_(False)  # type: ignore[union-attr]
    return nn.Sequential(*layers)


class DINOHead(nn.Module):
    """Projection head of DINO (Caron et al., ICCV 2021): three linear layers, unit length, K weight-normalised outputs.

    [..., features] to [..., K] logits. Each prototype is a direction v / |v| times a length g, which starts at 1.

    Args:
        features: width of the input.
        prototypes: K.
        hidden: width of the two hidden layers.
        bottleneck: width before the last layer.
        norm_last_layer: keep the lengths g at 1, so that the logits are cosines; false: train them (the released
            commands of EsViT and CMD).
    """

    def __init__(
        self, features: int, prototypes: int, hidden: int = 2048, bottleneck: int = 256, norm_last_layer: bool = True
    ):
        super().__init__()
        layers = [nn.Linear(features, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, bottleneck)]
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])
        last = nn.Linear(bottleneck, prototypes, bias=False)
        self.prototypes_KC = nn.Parameter(last.weight.detach())  # v, as nn.Linear starts it
        # [K, 1] as in torch's weight_norm: with two dimensions it is subject to weight decay
        self.lengths_K1 = None if norm_last_layer else nn.Parameter(torch.ones(prototypes, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.project(x), self.weight())

    def project(self, x: Tensor) -> Tensor:
        """[..., features] to [..., bottleneck] of unit length: all but the last layer."""
        x = self.mlp(x)
        # At a patch without features, the gradient is that of the result over eps: with torch's eps, no scale keeps it
        # finite in float16. DINOv2's code takes 1e-6 there.
        return F.normalize(x, dim=-1, eps=1e-6 if x.dtype == torch.float16 else 1e-12)

    def weight(self) -> Tensor:
        """[K, bottleneck] weights of the last layer, g v / |v|."""
        unit_KC = F.normalize(self.prototypes_KC, dim=1)
        return unit_KC if self.lengths_K1 is None else self.lengths_K1 * unit_KC

    def last_layer(self) -> list[nn.Parameter]:
        """Parameters of the last layer."""
        return [self.prototypes_KC] if self.lengths_K1 is None else [self.prototypes_KC, self.lengths_K1]
