"""Features of a linear probe: pooled outputs of the last blocks of a frozen network.

A block is one residual block: a transformer block of a ViT or Swin, a basic block or bottleneck of a ResNet, a
ConvNeXt block. Blocks are counted across stages: the last four of Swin-T are the last two of its third stage and the
two of its fourth.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fgssl.data.batch import Batch
from fgssl.data.datamodule import Images, Loader
from fgssl.errors import UserError
from fgssl.evaluation.embedding import Embeddings
from fgssl.nn.feature_map import pooled


def block_features(network: Any, images: Tensor, blocks: int) -> Tensor:
    """Pooled outputs of the last blocks, concatenated in the order of the blocks (EsViT's protocol).

    Outputs of the last stage pass through the final normalisation and pooling of the network (the class token of a ViT
    that has one). Outputs of earlier stages, which have another shape, are averaged over their positions.

    Args:
        network: timm network without classifier (``Backbone.build``).
        images: [B, 3, H, W].
        blocks: number of last blocks; 1: the pooled feature of the network.

    Returns:
        [B, F]. For four blocks F is 384 + 384 + 768 + 768 = 2304 (Swin-T), 1024 + 3 x 2048 = 7168 (ResNet-50).

    Raises:
        UserError: the network has fewer blocks.
    """
    if blocks == 1:
        return network(images)
    outputs, last = _run(network, images, blocks)
    return torch.cat([_pooled(network, output, outputs[-1]) for output in outputs[:-1]] + [last], dim=1)


@torch.no_grad()
def feature_width(network: Any, blocks: int) -> int:
    """Number of features F of ``block_features``, from a forward pass of one small image.

    Raises:
        UserError: the network has fewer blocks, or its pooled feature does not come from its last block alone.
    """
    if blocks == 1:
        return network.num_features
    was_training = network.training
    network.eval()
    weight = next(network.parameters())
    height, width = _image_size(network)
    image = torch.linspace(-2, 2, 3 * height * width).view(1, 3, height, width).to(weight)
    outputs, last = _run(network, image, blocks)
    network.train(was_training)
    pooled = [_pooled(network, output, outputs[-1]) for output in outputs]
    if pooled[-1].shape != last.shape or not torch.allclose(pooled[-1], last, rtol=1e-3, atol=1e-4):
        raise UserError(
            f"model.blocks is {blocks}, but the pooled feature of {type(network).__name__} does not come from its last "
            "block alone. Use --blocks 1, the pooled feature."
        )
    return sum(feature.shape[1] for feature in pooled)


def blocks_of(network: Any) -> list[nn.Module]:
    """Blocks of a network, first to last; empty if they are not stored as in most networks of timm."""
    if hasattr(network, "layer4"):
        return [block for stage in range(1, 5) for block in getattr(network, f"layer{stage}")]
    for name in ("layers", "stages", "blocks"):
        if isinstance(getattr(network, name, None), nn.Sequential | nn.ModuleList):
            return list(_flat(getattr(network, name)))
    return []


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    """Blocks of a stage or of nested stages."""
    if isinstance(module, nn.Sequential | nn.ModuleList):
        for child in module:
            yield from _flat(child)
    elif isinstance(blocks := getattr(module, "blocks", None), nn.Sequential | nn.ModuleList):
        yield from _flat(blocks)
    else:
        yield module


def _run(network: Any, images: Tensor, blocks: int) -> tuple[list[Tensor], Tensor]:
    """Outputs of the last blocks and the pooled feature, from one forward pass."""
    found = blocks_of(network)
    if len(found) < blocks:
        raise UserError(
            f"model.blocks is {blocks}, but {type(network).__name__} has {len(found)} accessible blocks. Use fewer, or "
            "--blocks 1, the pooled feature."
        )
    outputs: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, output: outputs.append(output)) for block in found[-blocks:]]
    try:
        return outputs, network(images)
    finally:
        for hook in hooks:
            hook.remove()


def _pooled(network: Any, output: Tensor, last: Tensor) -> Tensor:
    """Pooled output [B, C] of a block whose output is [B, N, C], [B, H, W, C] (Swin) or [B, C, H, W]."""
    if output.shape != last.shape:
        channels_last = output.ndim == 3 or getattr(network, "output_fmt", "NCHW") == "NHWC"
        return output.flatten(1, -2).mean(dim=1) if channels_last else output.flatten(2).mean(dim=2)
    if isinstance(getattr(network, "norm", None), nn.Module):
        output = network.norm(output)
    return pooled(network, output)


def _image_size(network: Any) -> tuple[int, int]:
    """Input height and width of the network in px; 64 x 64 if it accepts any size."""
    size = getattr(getattr(network, "patch_embed", None), "img_size", None)
    if size is None:
        known = getattr(network, "default_cfg", {})
        size = known["input_size"][1:] if known.get("fixed_input_size") else (64, 64)
    return size


class Features(Dataset):
    """Data set of batches of precomputed features instead of images.

    Args:
        images: data set of the loader, for its rows and labels.
        rows: features of the rows. A row that could not be read is replaced by the next one.
    """

    def __init__(self, images: Images, rows: Embeddings):
        self.index, self.rows = images.index, images.rows
        self.known, self.features = rows.index.cpu().numpy(), rows.embedding.cpu()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, pairs: np.ndarray) -> Batch:
        """Batch of [B, 2] pairs (position, draw); its view has shape [B, F]."""
        positions, draws = pairs.T
        place = np.searchsorted(self.known, self.rows[positions]) % len(self.known)
        rows = self.known[place]
        coarse = np.full(len(rows), -1) if self.index.coarse is None else self.index.coarse[rows]
        labels = (torch.from_numpy(column) for column in (self.index.fine[rows], coarse, rows, draws.copy()))
        return Batch([self.features[torch.from_numpy(place)]], *labels)


def with_features(loader: Loader, rows: Embeddings) -> Loader:
    """Loader of features instead of images, with the same order and start position."""
    return Loader(Features(loader.dataset, rows), loader.sampler)  # type: ignore[arg-type]  # it reads none
