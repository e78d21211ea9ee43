"""Projection heads."""

from torch import nn


def mlp(features: int, hidden: int, dim: int) -> nn.Sequential:
    """Linear-ReLU-Linear, the projector of SimCLR and MoCo-v2: [B, features] to [B, dim]."""
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, dim))
