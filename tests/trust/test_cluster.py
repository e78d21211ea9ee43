"""The SLURM recipe, with stand-ins for srun and scontrol: stopped once, queued again, finished."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.methods.runs import NETWORK, RUNS, environment, losses, results

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
KILL = "{class_path: tests.trust.callbacks.KillAt, init_args: {batch: 11, number: 15}}"


def command(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def submit(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    """What SLURM does with the script: run it with the job's variables set."""
    job = {"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "1"}
    variables = environment(PATH=f"{folder / 'bin'}:{os.environ['PATH']}", **job)
    line = ["bash", str(ROOT / "experiments" / "cluster" / "fgssl.sbatch"), *flags]
    return subprocess.run(line, capture_output=True, text=True, env=variables, cwd=folder, timeout=1200)


def test_a_job_that_is_stopped_queues_again_and_goes_on(tmp_path):
    (tmp_path / "bin").mkdir()
    # without SLURM's variables, which would make Lightning ask for SLURM itself
    command(tmp_path / "bin" / "srun", 'env -u SLURM_JOB_ID -u SLURM_NTASKS_PER_NODE -u SLURM_JOB_NUM_NODES "$@"')
    command(tmp_path / "bin" / "scontrol", f'echo "$@" >> {tmp_path / "queued"}')
    command(tmp_path / "bin" / "fgssl", f'exec {sys.executable} -m fgssl "$@"')
    experiment, *own = RUNS["maskcon"]
    small = (
        str(ROOT / "experiments" / f"{experiment}.yaml"), *own, "--model.backbone.options", NETWORK,
        "--data.protocol.label_fraction", "0.1", "--data.batch_size", "16", "--retrieval.grid", "0",
        "--trainer.accelerator", "cpu", "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1",
    )  # fmt: skip
    done = submit(tmp_path, *small, "--trainer.callbacks", KILL)
    assert done.returncode == 143, done.stderr[-3000:]
    assert (tmp_path / "queued").read_text() == "requeue 77\n"
    assert "Images per optimiser step: 16 x 1 processes x 1 accumulated = 16. Learning rate" in done.stderr

    done = submit(tmp_path, *small)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs" / experiment / "slurm-77"
    assert results(run)["status"] == "finished"
    assert [step for step, _ in losses(run)] == [str(step) for step in range(16)]
    assert (tmp_path / "queued").read_text() == "requeue 77\n"
