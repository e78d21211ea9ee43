"""Checkpoints: atomic writing, safe reading, and checks that a checkpoint fits the model."""

import contextlib
import hashlib
import math
import os
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

from fgssl.errors import UserError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically: to a temporary file that is renamed when it is complete."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: the disk is full or read-only. An earlier checkpoint of this name is kept.
        """
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())  # the content must be on disk before the file is renamed
            partial.replace(path)
        except (OSError, RuntimeError) as fault:  # torch reports a failed write as RuntimeError
            with contextlib.suppress(OSError):  # not there, or its folder cannot be made
                partial.unlink()
            reason = str(fault).splitlines()[0]
            raise UserError(
                f"{path} could not be written ({reason}). Earlier checkpoints are unchanged. Free disk space or choose "
                "another --run.root, then resume."
            ) from fault


def read_checkpoint(path: str) -> dict[str, Any]:
    """Load the tensors (memory-mapped) and plain values of a checkpoint; no code is executed.

    Raises:
        UserError: the file is damaged, or contains other objects than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as fault:  # torch raises many types of exception for damaged files
        reason = str(fault).splitlines()[0][:200]
        others = [str(file) for file in sorted(Path(path).parent.glob("*.ckpt")) if file != Path(path)]
        instead = f" Other checkpoints in the folder: {', '.join(others)}." if others else ""
        raise UserError(
            f"{path} is not a checkpoint that can be loaded safely ({reason}). Is it complete?{instead}"
        ) from None


def fingerprint(state: dict[str, Any]) -> str:
    """SHA-256 of the tensors of a state dict in their order, without their names, which other versions may change."""
    digest = hashlib.sha256()
    for weight in state.values():
        if isinstance(weight, torch.Tensor):
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def checkpoint_file(path: str, option: str = "--ckpt_path") -> Path:
    """Path of a checkpoint.

    Args:
        path: checkpoint, or run folder, of which the last checkpoint is taken.
        option: name of the option that gave ``path``, for the error message.

    Raises:
        UserError: there is no such file.
    """
    found = Path(path)
    if found.is_dir():
        found = found / "checkpoints" / "last.ckpt"
    if not found.is_file():
        raise UserError(f"{option}: no checkpoint at {found}. Give a .ckpt file or a run folder.")
    return found


def read_backbone(path: str, network: Literal["student", "teacher"] = "student") -> dict[str, torch.Tensor]:
    """Weights of the student's or teacher's backbone in a checkpoint of any method, with timm's names.

    Raises:
        UserError: as ``read_checkpoint``; fgssl did not write the file; it has no such backbone.
    """
    checkpoint = read_checkpoint(path)
    method, prefixes = checkpoint.get("method"), checkpoint.get("backbones", {})
    if method is None:
        raise UserError(f"{path} was not written by fgssl: it names no method.")
    if network not in prefixes:
        known = ", ".join(prefixes) or "none"
        raise UserError(f"{path}, a checkpoint of {method}, has no {network} backbone (it has: {known}).")
    prefix = prefixes[network]
    state = checkpoint["state_dict"]
    return {name.removeprefix(prefix): w for name, w in state.items() if name.startswith(prefix)}


def followed_network(path: str) -> Literal["student", "teacher"]:
    """``teacher`` if a checkpoint has a teacher that is updated after each step, else ``student``."""
    return "teacher" if "teacher" in read_checkpoint(path).get("backbones", {}) else "student"


def load_backbone(
    network: nn.Module,
    run: str,
    whose: Literal["student", "teacher"] | None = "student",
    option: str = "--model.init_from",
) -> None:
    """Load the backbone of a checkpoint of any method into a timm network, in place.

    Args:
        network: timm network with the architecture of the checkpoint's backbone.
        run: run folder or checkpoint.
        whose: network of the checkpoint; None: as ``followed_network``.
        option: name of the option that gave ``run``, for error messages.

    Raises:
        UserError: as ``read_backbone`` and ``check_fits``.
    """
    path = str(checkpoint_file(run, option=option))
    weights = read_backbone(path, whose or followed_network(path))
    check_fits(weights, network, path)
    network.load_state_dict(weights)


def check_method(checkpoint: dict[str, Any], method: str, path: str) -> None:
    """Refuse a checkpoint of another method, or one that fgssl did not write."""
    theirs = checkpoint.get("method")
    if theirs is None:
        raise UserError(f"{path} was not written by fgssl: it names no method.")
    if theirs != method:
        raise UserError(f"{path} is a checkpoint of {theirs}, but model is {method}. Use the configuration of its run.")


def check_global_batch(checkpoint: dict[str, Any], datamodule: Any, accumulated: int) -> None:
    """Refuse to resume with another number of images per optimiser step, or, within an epoch, per batch.

    Args:
        checkpoint: checkpoint of a fit.
        datamodule: data module of the resumed fit.
        accumulated: its ``trainer.accumulate_grad_batches``.

    Raises:
        UserError: names the options to resume with.
    """
    kept = checkpoint.get("global_batch")
    if kept is None:
        return
    before, now = math.prod(kept.values()), datamodule.batch_size * accumulated
    position = checkpoint.get(type(datamodule).__qualname__, {})
    if before != now:
        reason = f"was trained with {before} images per optimiser step, but this run has {now}"
    elif position.get("batch") and kept["batch_size"] != datamodule.batch_size:
        reason = f"was written within an epoch, after {position['batch']} batches of {kept['batch_size']} images"
    else:
        return
    options = f"--data.batch_size {kept['batch_size']} --trainer.accumulate_grad_batches"
    raise UserError(
        f"the checkpoint {reason}. Resume with {options} {kept['accumulate_grad_batches']}, on any number of "
        "processes that divides the batch."
    )


def check_fits(weights: dict[str, Any], model: nn.Module, path: str) -> None:
    """Compare names and shapes of a checkpoint's weights with those of a model.

    Raises:
        UserError: they differ, because the model's arguments do.
    """
    faults = differences(weights, model.state_dict())
    if faults:
        shown = "; ".join(sorted(faults)[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
        raise UserError(f"{path} does not fit the model: {shown}. Set the model's arguments as they were in training.")


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """One phrase for each weight of a file (``theirs``) or a network (``ours``) whose name or shape differs."""
    faults = [
        f"{name} is {tuple(theirs[name].shape)} there and {tuple(weight.shape)} here"
        for name, weight in ours.items()
        if name in theirs and isinstance(weight, torch.Tensor) and weight.shape != theirs[name].shape
    ]
    faults += [f"{name} is missing in it" for name in ours if name not in theirs]
    return faults + [f"{name} is not in the network" for name in theirs if name not in ours]
