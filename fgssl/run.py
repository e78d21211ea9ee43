"""The folder of a run: where it is, what is logged there, and what was run.

``runs/<experiment>/<run>/`` holds ``config.yaml``, ``metrics.csv``, ``results.json`` and ``checkpoints/``.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fgssl import __version__

PACKAGES = ("torch", "torchvision", "lightning", "timm", "torchmetrics", "faiss-gpu", "faiss-cpu", "numpy")


@dataclass(frozen=True)
class Run:
    """Where a run's files go: ``<root>/<experiment>/<name>/``.

    Args:
        root: folder of all runs.
        experiment: default: the name of the last ``--config`` file.
        name: default: date, time and seed; a fit that resumes goes on in its checkpoint's folder.
        resume: go on from the last checkpoint of the run of this name if there is one, and start it if there is none:
            one command line for a job that a cluster may stop and start again.
        paper: the table of a paper that the experiment reproduces, such as ``maskcon, Table 2``; ``fgssl compare``
            sets its number beside ours.
    """

    root: str = "runs"
    experiment: str | None = None
    name: str | None = None
    resume: bool = False
    paper: str | None = None


def folder_of_checkpoint(ckpt_path: str | None) -> Path | None:
    """The run folder that a checkpoint lies in, or None."""
    if not ckpt_path:
        return None
    folder = Path(ckpt_path).resolve().parent.parent
    return folder if (folder / "config.yaml").is_file() else None


def default_name(seed: int, subcommand: str) -> str:
    """``2026-01-31_120000_seed0``, with the subcommand appended unless it is fit; one name for all local ranks."""
    if "LOCAL_RANK" in os.environ and "FGSSL_RUN_NAME" in os.environ:
        return os.environ["FGSSL_RUN_NAME"]  # Lightning started this rank as a copy of the first one's command
    name = f"{datetime.now():%Y-%m-%d_%H%M%S}_seed{seed}" + ("" if subcommand == "fit" else f"_{subcommand}")
    os.environ["FGSSL_RUN_NAME"] = name
    return name


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that a reader never sees half of it."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def provenance() -> dict[str, Any]:
    """What is needed to run it again: command, versions, hardware, git revision."""
    import torch

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {"fgssl": __version__, **versions},
        "hardware": {"cpus": os.cpu_count(), "gpus": gpus},
        "git": git_revision(),
    }


def git_revision() -> dict[str, Any] | None:
    """Revision of the source tree and whether it had local changes; None outside a git checkout."""

    def git(*arguments: str) -> str:
        where = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
