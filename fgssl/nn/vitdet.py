"""ViTDet's backbone: a ViT whose blocks attend within windows, all but four of them, with relative positions.

Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", ECCV 2022; FLSL, Table 2. The network is
timm's of Segment Anything without its neck. Importing this module makes ``vitdet_base_patch16`` known to timm.
"""

import math
from functools import partial
from typing import Any

from timm.layers import resample_abs_pos_embed_nhwc
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

from fgssl.errors import UserError

State = dict[str, Tensor]

default_cfgs = generate_default_cfgs(
    {
        "vitdet_base_patch16": {
            "input_size": (3, 1024, 1024),
            "mean": (0.485, 0.456, 0.406),  # of ImageNet, as the plain ViTs in ``LAYOUTS`` of fgssl/nn/weights.py
            "std": (0.229, 0.224, 0.225),
            "interpolation": "bicubic",
            "first_conv": "patch_embed.proj",
            "classifier": "head.fc",
            "num_classes": 0,
        }
    }
)


@register_model
def vitdet_base_patch16(pretrained: bool = False, **options: Any) -> VisionTransformerSAM:
    """ViT-B/16 for images of 1024 px: windows of 14 x 14 tokens, blocks 2, 5, 8 and 11 (from 0) attend to all tokens.

    Args:
        pretrained: not available; the weights of any plain ViT are converted when they are loaded.
        options: arguments of timm's ``VisionTransformerSAM``.

    Raises:
        UserError: ``pretrained`` is asked for.
    """
    if pretrained:
        raise UserError(
            "vitdet_base_patch16 has no weights of its own: give those of a plain ViT, with --model.init_from RUN or "
            "--model.backbone.weights FILE"
        )
    shape: dict[str, Any] = {"img_size": 1024, "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
    shape |= {"window_size": 14, "global_attn_indexes": (2, 5, 8, 11), "use_rel_pos": True, "neck_chans": None}
    shape |= {"norm_layer": partial(nn.LayerNorm, eps=1e-6)}  # of plain ViTs; timm's has 1e-5 here
    return build_model_with_cfg(VisionTransformerSAM, "vitdet_base_patch16", pretrained=False, **(shape | options))


def from_plain_vit(state: State, network: VisionTransformerSAM) -> State:
    """Weights of a plain ViT by the names and in the shapes of a windowed one.

    The position embeddings of the patches [1, N, C] become a grid [1, H, W, C], interpolated to that of the network;
    the last normalisation becomes the network's. Weights without a counterpart, such as the class token, stay.

    Args:
        state: weights by timm's names; those of a windowed ViT are returned unchanged.
        network: the windowed ViT.
    """
    if state.get("pos_embed") is None or state["pos_embed"].ndim != 3:
        return state
    converted = {f"neck.{name[5:]}" if name.startswith("norm.") else name: weight for name, weight in state.items()}
    positions_1NC = state["pos_embed"]
    side = math.isqrt(positions_1NC.shape[1])
    patches_1NC = positions_1NC[:, positions_1NC.shape[1] - side**2 :]  # those of class tokens come first
    grid_1HWC = patches_1NC.unflatten(1, (side, side))
    if network.pos_embed is not None:
        grid_1HWC = resample_abs_pos_embed_nhwc(grid_1HWC, list(network.pos_embed.shape[1:3]))
    return converted | {"pos_embed": grid_1HWC}
