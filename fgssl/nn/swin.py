"""Swin blocks for feature maps of any size."""

from typing import Any, Self

import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor, nn


class PadFirst:
    """Pad the feature map to whole windows before it is rolled, as the original Swin and EsViT do.

    timm rolls first. Where the map is no multiple of the window (96 px with window 7: 24, 12 and 6 places), its shifted
    windows then hold other places than their attention mask was made for. Where it is a multiple, nothing changes.

    As in the original, padded places are zeros after the normalisation and are attended to like any other place; the
    mask keeps apart only what the roll has brought together from opposite edges of the padded map.
    """

    window_size: tuple[int, int]

    @classmethod
    def of(cls, block: nn.Module) -> Self:
        """The block with the same parameters, buffers and settings."""
        padded = cls.__new__(cls)
        padded.__dict__.update(block.__dict__)
        return padded

    def _attn(self, x_BHWC: Tensor) -> Tensor:
        _, height, width, _ = x_BHWC.shape
        window_height, window_width = self.window_size
        padded = F.pad(x_BHWC, (0, 0, 0, -width % window_width, 0, -height % window_height))
        return super()._attn(padded)[:, :height, :width]  # type: ignore[misc]


class SwinBlock(PadFirst, SwinTransformerBlock):
    """A block of Swin."""


class SwinV2Block(PadFirst, SwinTransformerV2Block):
    """A block of Swin V2."""


BLOCKS: dict[type, type[PadFirst]] = {SwinTransformerBlock: SwinBlock, SwinTransformerV2Block: SwinV2Block}


def pad_before_rolling(network: Any) -> None:
    """Replace timm's Swin blocks in place; a network without any stays as it is. Names of parameters stay."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) in BLOCKS:
                setattr(module, name, BLOCKS[type(child)].of(child))
