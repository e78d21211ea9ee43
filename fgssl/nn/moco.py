"""The checkpoint format of MoCo v2, to write; ``weights.py`` reads it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

PREFIX = "module.encoder_q."  # the query encoder in DistributedDataParallel
HEAD = "fc."  # its projector, in the place of torchvision's classifier


def write_moco(path: str | Path, backbone: nn.Module, head: nn.Module | None = None, arch: str = "resnet50") -> None:
    """Write a backbone and its projector as MoCo v2 writes its query encoder.

    Args:
        path: file to write.
        backbone: timm ResNet without its classifier.
        head: projector Linear-ReLU-Linear, written as ``fc.0`` and ``fc.2``; None writes none.
        arch: name of the network. MoCo's own loader does not use it.
    """
    state: dict[str, Any] = {PREFIX + name: weight for name, weight in backbone.state_dict().items()}
    if head is not None:
        state |= {PREFIX + HEAD + name: weight for name, weight in head.state_dict().items()}
    torch.save({"arch": arch, "state_dict": {name: weight.detach().cpu() for name, weight in state.items()}}, path)
