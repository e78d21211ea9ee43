"""MAE's decoder: from the tokens of visible patches to the pixels of hidden ones."""

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from fgssl.nn.sincos import sincos_positions


class PixelDecoder(nn.Module):
    """Transformer that predicts the values of hidden patches (He et al., CVPR 2022, section 3).

    A hidden patch enters as a learnt token plus its fixed position. Attention does not depend on the order of its
    tokens, so that visible and hidden ones are not put back into the order of the image, and the last layer sees the
    hidden ones alone.

    Shapes: B batch, V visible patches, M hidden patches, T = V + class and register tokens, P values of a patch.

    Args:
        features: width of the encoder's tokens.
        grid: rows and columns of patches.
        values: P.
        dim: width of the blocks, a multiple of 4 and of ``heads``.
        depth: number of blocks.
        heads: attention heads of a block.
    """

    positions_NC: Tensor

    def __init__(self, features: int, grid: tuple[int, int], values: int, dim: int, depth: int, heads: int):
        super().__init__()
        self.embed = nn.Linear(features, dim)
        self.mask_token_C = nn.Parameter(torch.empty(dim))
        self.register_buffer("positions_NC", sincos_positions(*grid, dim).float(), persistent=False)
        self.blocks = nn.Sequential(*(Block(dim, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.predict = nn.Linear(dim, values)
        nn.init.normal_(self.mask_token_C, std=0.02)

    def forward(self, tokens: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """Values [B, M, P] of the hidden patches.

        Args:
            tokens: [B, T, features], class and register tokens first, then the visible patches.
            visible: [B, V] int64 numbers of the visible patches, in the order of their tokens.
            masked: [B, M] int64 numbers of the hidden patches.
        """
        x_BTC = self.embed(tokens)
        prefix_BC, seen_BVC = x_BTC.split([x_BTC.shape[1] - visible.shape[1], visible.shape[1]], dim=1)
        seen_BVC = seen_BVC + self.positions_NC[visible]
        hidden_BMC = self.mask_token_C + self.positions_NC[masked]
        x_BNC = self.blocks(torch.cat([prefix_BC, seen_BVC, hidden_BMC.to(seen_BVC.dtype)], dim=1))
        return self.predict(self.norm(x_BNC[:, -masked.shape[1] :]))
