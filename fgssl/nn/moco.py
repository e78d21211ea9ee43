"""The checkpoint format in which MoCo v2 is published: what others can give us, and what others can read of ours."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fgssl.errors import UserError

PREFIX = "module.encoder_q."  # the query encoder, as DistributedDataParallel names it
HEAD = "fc."  # its projector (v2) or classifier (v1), in the place of torchvision's classifier


def read_moco(path: str | Path) -> dict[str, Tensor]:
    """The backbone of the query encoder, by torchvision's names, which are timm's for ResNets; without its projector.

    Raises:
        UserError: there is no such file, it cannot be loaded without running code, or it is of another format.
    """
    if not Path(path).is_file():
        raise UserError(f"model.backbone.weights: no file {path}.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as fault:  # torch raises a different type for each way in which a file can be broken
        reason = str(fault).splitlines()[0][:200]
        raise UserError(f"model.backbone.weights: {path} cannot be loaded safely ({reason}).") from None
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else {}
    queries = {str(name).removeprefix(PREFIX): w for name, w in state.items() if str(name).startswith(PREFIX)}
    if not queries:
        shown = ", ".join(str(name) for name in list(state)[:3]) or "nothing"
        raise UserError(f"model.backbone.weights: {path} is not of MoCo's format: no {PREFIX}* in it, but {shown}.")
    return {name: weight for name, weight in queries.items() if not name.startswith(HEAD)}


def load_moco(network: nn.Module, path: str | Path) -> None:
    """Load a published backbone into a network, in place.

    Raises:
        UserError: as ``read_moco``; or the names and shapes are not those of the network.
    """
    theirs, ours = read_moco(path), network.state_dict()
    faults = [f"{name} is missing in it" for name in ours.keys() - theirs.keys()]
    faults += [f"{name} is not in the network" for name in theirs.keys() - ours.keys()]
    for name in ours.keys() & theirs.keys():
        if ours[name].shape != theirs[name].shape:
            faults.append(f"{name} is {tuple(theirs[name].shape)} there and {tuple(ours[name].shape)} here")
    if faults:
        shown = "; ".join(sorted(faults)[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
        raise UserError(f"model.backbone.weights: {path} is of another network than model.backbone.name: {shown}.")
    network.load_state_dict(theirs)


def write_moco(path: str | Path, backbone: nn.Module, head: nn.Module | None = None, arch: str = "resnet50") -> None:
    """Write a backbone, and the projector where there is one, as MoCo v2 writes its query encoder.

    Args:
        path: where.
        backbone: a timm ResNet without its classifier.
        head: Linear-ReLU-Linear, written as ``fc.0`` and ``fc.2``.
        arch: the network's name, which MoCo's own loader passes over.
    """
    state: dict[str, Any] = {PREFIX + name: weight for name, weight in backbone.state_dict().items()}
    if head is not None:
        state |= {PREFIX + HEAD + name: weight for name, weight in head.state_dict().items()}
    torch.save({"arch": arch, "state_dict": {name: weight.detach().cpu() for name, weight in state.items()}}, path)
