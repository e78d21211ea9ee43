"""Checkpoints: written whole or not at all, read safely, refused by name when they do not fit."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

from fgssl.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the checkpoint and renames at the end: a file of that name is always a complete checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: the disk is full or read-only. What was there before is untouched.
        """
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())  # or the name could reach the disk before the content
            partial.replace(path)
        except (OSError, RuntimeError) as fault:  # torch reports a failed write as RuntimeError
            partial.unlink(missing_ok=True)
            reason = str(fault).splitlines()[0]
            raise UserError(
                f"{path} could not be written ({reason}). Earlier checkpoints are untouched: make room, or choose "
                "another --run.root, and resume."
            ) from fault


def read_checkpoint(path: str) -> dict[str, Any]:
    """Load a checkpoint's plain values and tensors (memory-mapped), never code.

    Raises:
        UserError: the file is damaged, or holds more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as fault:  # torch raises a different type for each way in which a file can be broken
        reason = str(fault).splitlines()[0][:200]
        others = [str(file) for file in sorted(Path(path).parent.glob("*.ckpt")) if file != Path(path)]
        instead = f" Others beside it: {', '.join(others)}." if others else ""
        raise UserError(
            f"{path} is not a checkpoint that can be loaded safely ({reason}). Is it complete?{instead}"
        ) from None


def checkpoint_file(path: str, option: str = "--ckpt_path") -> Path:
    """A checkpoint, or the last one of a run folder."""
    found = Path(path)
    if found.is_dir():
        found = found / "checkpoints" / "last.ckpt"
    if not found.is_file():
        raise UserError(f"{option}: no checkpoint at {found}. Give a .ckpt file or a run folder.")
    return found


def read_backbone(path: str, network: Literal["student", "teacher"] = "student") -> dict[str, torch.Tensor]:
    """The student's or the teacher's backbone in a checkpoint of any method, by the names of the timm network.

    Raises:
        UserError: as ``read_checkpoint``; or the file is not of fgssl, or holds no such network.
    """
    checkpoint = read_checkpoint(path)
    method, prefixes = checkpoint.get("method"), checkpoint.get("backbones", {})
    if method is None:
        raise UserError(f"{path} was not written by fgssl: it names no method.")
    if network not in prefixes:
        known = ", ".join(prefixes) or "none"
        raise UserError(f"{path}, a checkpoint of {method}, holds no {network}'s backbone (it has: {known}).")
    prefix = prefixes[network]
    state = checkpoint["state_dict"]
    return {name.removeprefix(prefix): w for name, w in state.items() if name.startswith(prefix)}


def followed_network(path: str) -> Literal["student", "teacher"]:
    """``teacher`` where a checkpoint has one that follows the student step by step, else ``student``."""
    return "teacher" if "teacher" in read_checkpoint(path).get("backbones", {}) else "student"


def load_backbone(
    network: nn.Module,
    run: str,
    whose: Literal["student", "teacher"] | None = "student",
    option: str = "--model.init_from",
) -> None:
    """Give a timm network the weights in a checkpoint of any method, in place.

    Args:
        network: built as the one that was trained.
        run: run folder or checkpoint.
        whose: which network of it; None: ``followed_network``.
        option: what the user calls ``run``.

    Raises:
        UserError: as ``read_backbone`` and ``check_fits``.
    """
    path = str(checkpoint_file(run, option=option))
    weights = read_backbone(path, whose or followed_network(path))
    check_fits({"state_dict": weights}, network, path)
    network.load_state_dict(weights)


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
