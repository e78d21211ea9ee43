"""Projection heads."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mlp(features: int, hidden: int, dim: int) -> nn.Sequential:
    """Linear-ReLU-Linear, the projector of SimCLR and MoCo-v2: [B, features] to [B, dim]."""
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))


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
        return F.normalize(self.mlp(x), dim=-1)

    def weight(self) -> Tensor:
        """[K, bottleneck] weights of the last layer, g v / |v|."""
        unit_KC = F.normalize(self.prototypes_KC, dim=1)
        return unit_KC if self.lengths_K1 is None else self.lengths_K1 * unit_KC

    def last_layer(self) -> list[nn.Parameter]:
        """Parameters of the last layer."""
        return [self.prototypes_KC] if self.lengths_K1 is None else [self.prototypes_KC, self.lengths_K1]
