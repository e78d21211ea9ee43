"""Spatial attention of LCR (Shu et al., CVPR 2023)."""

import torch
from torch import Tensor, nn

from fgssl.nn.batch_norm import GlobalBatchNorm1d


class MaxAttention(nn.Module):
    """Attention weights of a feature map: the maximum of M maps of a 1 x 1 convolution.

    [B, F, H, W] to [B, H, W] weights from 0 to 1, of which the largest of each image is 1. The statistics of its
    BatchNorm are those of the batches of all processes.

    Args:
        features: width F of the feature map.
        maps: M.
    """

    def __init__(self, features: int, maps: int = 32):
        super().__init__()
        # A 1 x 1 convolution is a linear layer of the positions, the rows of a [B * H * W, F] matrix.
        self.maps = nn.Sequential(nn.Linear(features, maps, bias=False), GlobalBatchNorm1d(maps), nn.ReLU(inplace=True))

    def forward(self, map_BFHW: Tensor) -> Tensor:
        positions = map_BFHW.movedim(1, -1)  # [B, H, W, F]
        attention_BHW = self.maps(positions.flatten(0, 2)).amax(dim=1).view(positions.shape[:3])
        return attention_BHW / (attention_BHW.amax(dim=(1, 2), keepdim=True) + 1e-7)


def attention_pool(map_BFHW: Tensor, attention_BHW: Tensor) -> Tensor:
    """Mean over positions of a feature map times its attention weights, [B, F]."""
    return torch.einsum("bfhw,bhw->bf", map_BFHW, attention_BHW) / attention_BHW[0].numel()
