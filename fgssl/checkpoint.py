"""Checkpoints from outside: read safely, refused by name when they do not fit."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fgssl.errors import UserError


def read_checkpoint(path: str) -> dict[str, Any]:
    """Load a checkpoint's plain values and tensors (memory-mapped), never code.

    Raises:
        UserError: the file is damaged, or holds more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as fault:  # torch raises a different type for each way in which a file can be broken
        reason = str(fault).splitlines()[0][:200]
        raise UserError(f"{path} is not a checkpoint that can be loaded safely ({reason}). Is it complete?") from None


def check_method(checkpoint: dict[str, Any], method: str, path: str) -> None:
    """Refuse a checkpoint of another method, or a file that no method of ours wrote."""
    theirs = checkpoint.get("method")
    if theirs is None:
        raise UserError(f"{path} was not written by fgssl: it names no method.")
    if theirs != method:
        raise UserError(f"{path} is a checkpoint of {theirs}, and model is {method}. Use the experiment it came from.")


def explain_differences(checkpoint: dict[str, Any], model: dict[str, Any]) -> Iterator[str]:
    """One line for each model argument that the checkpoint had otherwise. The user's value is the one that is used."""
    theirs = _flatten(checkpoint.get("config", {}).get("model", {}).get("init_args") or {})
    ours = _flatten(model.get("init_args") or {})
    for name in sorted(theirs.keys() & ours.keys()):
        if theirs[name] != ours[name]:
            yield f"model.{name}: {theirs[name]} in the checkpoint, {ours[name]} now. Using {ours[name]}."


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def check_fits(checkpoint: dict[str, Any], model: nn.Module, path: str) -> None:
    """Compare names and shapes before any time is spent; a difference comes from a changed model argument."""
    theirs, ours = checkpoint["state_dict"], model.state_dict()
    faults = [f"{name} is missing in it" for name in ours.keys() - theirs.keys()]
    faults += [f"{name} is not in the model" for name in theirs.keys() - ours.keys()]
    for name in ours.keys() & theirs.keys():
        if isinstance(ours[name], torch.Tensor) and ours[name].shape != theirs[name].shape:
            faults.append(f"{name} is {tuple(theirs[name].shape)} there and {tuple(ours[name].shape)} here")
    if faults:
        shown = "; ".join(sorted(faults)[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
        raise UserError(f"{path} does not fit the model: {shown}. Set the model's arguments as they were.")
