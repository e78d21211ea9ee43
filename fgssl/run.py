"""Run folders: their place and name, JSON files, and the provenance of a run.

``runs/<experiment>/<run>/`` holds ``config.yaml``, ``metrics.csv``, ``results.json`` and ``checkpoints/``.
"""

import contextlib
import fcntl
import importlib.metadata
import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from fgssl import __version__
from fgssl.errors import UserError

PACKAGES = ("torch", "torchvision", "lightning", "timm", "torchmetrics", "faiss-gpu", "faiss-cpu", "numpy")

GOING_ON = ("running", "trained")  # status of a run that has not ended
DONE = ("finished", "predicted")  # status of a run that did all that it was started for
PULSE, LOST = 60, 600  # s between two signs of life of a running process; s without one after which it counts as lost


@dataclass(frozen=True)
class Run:
    """Folder of the run: ``<root>/<experiment>/<name>/``.

    Args:
        root: folder of all runs.
        experiment: name of the folder above the run; null: name of the last ``--config`` file.
        name: name of the run folder; null: date, time and seed. A resumed fit writes to the folder of its checkpoint.
        resume: resume from the last checkpoint of the run ``name``, or start the run where it has none; ``fgssl embed``
            writes unfinished embeddings anew. For jobs that a cluster stops and restarts.
        paper: table of a paper that the experiment reproduces, such as ``maskcon, Table 2``. ``fgssl compare`` shows
            its numbers beside ours.
    """

    root: str = "runs"
    experiment: str | None = None
    name: str | None = None
    resume: bool = False
    paper: str | None = None


def folder_of_checkpoint(ckpt_path: str | None) -> Path | None:
    """The run folder of a checkpoint, or None for a checkpoint outside a run folder."""
    if not ckpt_path:
        return None
    folder = Path(ckpt_path).resolve().parent.parent
    return folder if (folder / "config.yaml").is_file() else None


def refuse_overwriting(folder: Path, command: str) -> None:
    """Refuse to start a command in the folder of a trained run or of a finished evaluation.

    A run that ended before its first checkpoint, and an evaluation that did not finish, may be started again there.

    Args:
        folder: run folder of the command.
        command: fit, validate, test or predict.

    Raises:
        UserError: the folder holds results.
    """
    if (folder / "checkpoints" / "last.ckpt").exists():
        if command == "fit":
            raise UserError(
                f"{folder} already holds a run. fgssl fit --ckpt_path {shlex.quote(str(folder))} resumes it; "
                "--run.name NAME starts another run with this configuration."
            )
        raise UserError(f"{folder} already holds a run. --run.name NAME writes to a folder of its own.")
    results = folder / "results.json"
    if results.is_file() and read_json(results).get("status") in (*DONE, "validated"):
        raise UserError(f"{folder} already holds the results of a run. --run.name NAME writes to a folder of its own.")


def folder_of(loggers: Sequence[Any]) -> Path:
    """Folder of a run for the files of its callbacks: that of the first logger, which writes ``metrics.csv``."""
    return Path(loggers[0].log_dir or ".")


def shown(path: Path) -> str:
    """A path as text, relative to the working directory where it is below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def default_name(seed: int, subcommand: str) -> str:
    """``2026-01-31_120000_seed0``; the subcommand is appended unless it is fit.

    The runs of a W&B agent have W&B's run id appended, those of a SLURM job its number: jobs on several machines may
    start runs in the same second.
    """
    name = f"{datetime.now():%Y-%m-%d_%H%M%S}_seed{seed}" + ("" if subcommand == "fit" else f"_{subcommand}")
    if "WANDB_SWEEP_ID" in os.environ:
        return f"{name}_{os.environ.get('WANDB_RUN_ID', os.getpid())}"
    return f"{name}_{os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else name


def unnamed_folder(parent: Path, name: str, makes: bool) -> tuple[Path, list[Path]]:
    """Make the folder of a run without a name. The same on all local ranks.

    Args:
        parent: folder of the experiment.
        name: as of ``default_name``. Where there is such a folder, ``_2``, ``_3``, ... is appended.
        makes: whether this process makes the folder; false for a rank other than the first.

    Returns:
        The folder, and all folders that were made, the innermost first.
    """
    if "LOCAL_RANK" in os.environ and "FGSSL_RUN_NAME" in os.environ:
        return parent / os.environ["FGSSL_RUN_NAME"], []  # set by local rank 0, which starts the others
    folder, made = make_unique(parent, name) if makes else (parent / name, [])
    os.environ["FGSSL_RUN_NAME"] = folder.name
    return folder, made


def make_unique(parent: Path, name: str) -> tuple[Path, list[Path]]:
    """Make ``name``, ``name_2``, ``name_3``, ...: the first that no other process has made. As ``unnamed_folder``."""
    made = [path for path in (parent, *parent.parents) if not path.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = parent / (name if number == 1 else f"{name}_{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder, [folder, *made]
    except OSError:
        pass
    return parent / name, []  # nothing can be written there, which is said when the run begins to write


def claim(folder: Path) -> IO[str]:
    """Lock a run folder until the returned file is closed, at the latest by the end of the process, however it ends.

    Two processes in one folder would mix their metrics and write over each other's checkpoints. The lock is POSIX's:
    unlike that of ``filelock`` it does not live on in the data-loader processes of a killed run.

    Raises:
        UserError: another process has locked it.
    """
    file = (folder / ".lock").open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise UserError(
            f"{folder} is in use by {file.read() or 'another process'}. Wait for its end, or choose another --run.name."
        ) from None
    except OSError:  # a file system without locks
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    return file


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as fault:
        raise UserError(f"{path} is not valid JSON ({fault}).") from fault


class SignsOfLife:
    """Touches a file every minute in a thread, until ``stop`` or the end of the process, however it ends."""

    def __init__(self, path: Path):
        self._path, self._ended = path, threading.Event()
        threading.Thread(target=self._touch, daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def _touch(self) -> None:
        while not self._ended.wait(PULSE):
            with contextlib.suppress(OSError):  # the folder may be moved, the disk may be away
                os.utime(self._path)


def status_of(results: Path, content: dict[str, Any]) -> str | None:
    """Status of a run.

    Args:
        results: path of ``results.json``.
        content: its content.

    Returns:
        Its ``status``; ``lost`` if that is ``running`` or ``trained`` but the process gave no sign of life for 10
        minutes: it was killed or aborted, or the machine stopped.
    """
    status = content.get("status")
    return "lost" if status in GOING_ON and time.time() - results.stat().st_mtime > LOST else status


def provenance() -> dict[str, Any]:
    """Command, the time in UTC, versions, hardware and git revision, for ``results.json``."""
    import torch

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    program = Path(sys.argv[0]).name
    return {
        "command": shlex.join(["fgssl" if program == "__main__.py" else program, *sys.argv[1:]]),
        "began": datetime.now(UTC).isoformat(timespec="milliseconds"),
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
