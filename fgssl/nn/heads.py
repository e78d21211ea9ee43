"""Projection heads."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mlp(features: int, hidden: int, dim: int) -> nn.Sequential:
    """Linear-ReLU-Linear, the projector of SimCLR and MoCo-v2: [B, features] to [B, dim]."""
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))


class DINOHead(nn.Module):
    """Linear-GELU-Linear-GELU-Linear, unit length, then the cosine with K prototypes (DINO: Caron et al., ICCV 2021).

    [..., features] to [..., K] logits in [-1, 1]. The last layer is weight-normalised with a fixed norm of 1.

    Args:
        features: width of the input.
        prototypes: K.
        hidden, bottleneck: widths inside.
    """

    def __init__(self, features: int, prototypes: int, hidden: int = 2048, bottleneck: int = 256):
        super().__init__()
        layers = [nn.Linear(features, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, bottleneck)]
        self.mlp = nn.Sequential(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])
        self.prototypes_KC = nn.Parameter(torch.empty(prototypes, bottleneck))
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        nn.init.trunc_normal_(self.prototypes_KC, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.project(x), self.directions())

    def project(self, x: Tensor) -> Tensor:
        """[..., features] to [..., bottleneck] of unit length: all but the last layer."""
        return F.normalize(self.mlp(x), dim=-1)

    def directions(self) -> Tensor:
        """[K, bottleneck] prototypes of unit length."""
        return F.normalize(self.prototypes_KC, dim=1)
