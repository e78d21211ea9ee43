"""The SLURM recipe, with stand-ins for srun and scontrol: stopped once, queued again, finished."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest
import yaml

from fgssl.cli.main import main
from tests.methods.runs import NETWORK, RUNS, SMALL, environment, finish, losses, results
from tests.shell_server import CLIENT, serving, write_program

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
KILL = "{class_path: tests.trust.callbacks.KillAt, init_args: {batch: 11, number: 15}}"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Path]:
    """The socket of a process that runs fgssl."""
    path = tmp_path_factory.mktemp("server") / "socket"
    with serving(path):
        yield path


SRUN = """
echo "$@" >> SRUN_LINES
while [[ $1 == --* ]]; do shift; done
# without SLURM's variables, which would make Lightning ask for SLURM itself
env -u SLURM_JOB_ID -u SLURM_NTASKS_PER_NODE -u SLURM_JOB_NUM_NODES "$@"
"""


def stand_ins(folder: Path, server: Path) -> None:
    """srun, scontrol and fgssl in ``bin``; the lines of the first two are kept in ``srun`` and ``queued``."""
    (folder / "bin").mkdir()
    write_program(folder / "bin" / "srun", "#!/bin/bash\n" + SRUN.replace("SRUN_LINES", str(folder / "srun")))
    write_program(folder / "bin" / "scontrol", f'#!/bin/bash\necho "$@" >> {folder / "queued"}\n')
    write_program(folder / "bin" / "fgssl", CLIENT.format(python=sys.executable, socket=str(server)))


def submit(folder: Path, *flags: str, script: str = "fgssl.sbatch", **job: str) -> subprocess.Popen:
    """What SLURM does with the script: run it with the job's variables set."""
    job = {"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "1"} | job
    variables = environment(PAGES="run", PATH=f"{folder / 'bin'}:{os.environ['PATH']}", **job)
    line = ["bash", str(ROOT / "experiments" / "cluster" / script), *flags]
    return subprocess.Popen(line, text=True, env=variables, cwd=folder, stdout=PIPE, stderr=PIPE)


def test_a_job_that_is_stopped_queues_again_and_goes_on(server, tmp_path):
    stand_ins(tmp_path, server)
    experiment, *own = RUNS["maskcon"]
    small = (
        str(ROOT / "experiments" / f"{experiment}.yaml"), *own, "--model.backbone.options", NETWORK,
        "--data.protocol.label_fraction", "0.1", "--data.batch_size", "16", "--retrieval.grid", "0",
        "--trainer.accelerator", "cpu", "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1",
    )  # fmt: skip
    status, said = finish(submit(tmp_path, *small, "--trainer.callbacks", KILL, SLURM_CPUS_PER_TASK="8"))
    assert status == 143, said[-3000:]
    assert (tmp_path / "queued").read_text() == "requeue 77\n"
    assert "Images per optimiser step: 16 x 1 processes x 1 accumulated = 16. Learning rate" in said
    # srun itself inherits no number of cores, and leaves tasks that wait for a dead one alone
    assert (tmp_path / "srun").read_text().startswith("--cpus-per-task=8 --kill-on-bad-exit=1 fgssl fit ")

    status, said = finish(submit(tmp_path, *small))
    assert status == 0, said[-3000:]
    run = tmp_path / "runs" / experiment / "slurm-77"
    assert results(run)["status"] == "finished"
    assert [step for step, _ in losses(run)] == [str(step) for step in range(16)]
    assert (tmp_path / "queued").read_text() == "requeue 77\n"


def test_cells_of_a_sweep_run_at_once_as_jobs_and_a_stopped_one_queues_again(server, tmp_path, monkeypatch, capsys):
    """Two cells of four at the same time, one of which is stopped; then the array again, and the table of all."""
    stand_ins(tmp_path, server)
    content = yaml.safe_load((ROOT / "experiments" / "sweeps" / "maskcon_digits.yaml").read_text())
    content["parameters"] = {"model.weight": {"values": [0.5, 1.0]}, "run.paper": {"value": "maskcon, Table 10"}}
    content["command"][3] = str(ROOT / "experiments" / "maskcon_digits.yaml")
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(content))
    stop = ("--trainer.callbacks", "tests.trust.callbacks.StopFirst")
    small = (*SMALL, "--model.memory", "50", *stop, "--trainer.max_epochs", "1")

    def job(cell: int) -> subprocess.Popen:
        variables = {"SLURM_JOB_ID": str(100 + cell), "SLURM_ARRAY_TASK_ID": str(cell), "STOP_RUN": "weight1.0"}
        return submit(tmp_path, str(path), *small, script="sweep.sbatch", **variables)

    (first, said_first), (second, said_second) = [finish(process) for process in (job(0), job(1))]
    assert first == 0, said_first[-3000:]
    assert second == 143, said_second[-3000:]
    assert "cell 0 of 2, to run: fgssl fit --config" in said_first
    assert (tmp_path / "queued").read_text() == "requeue 101\n"
    folder = tmp_path / "runs" / "sweep_grid"
    status = {cell: results(folder / cell)["status"] for cell in ("weight0.5", "weight1.0")}
    assert status == {"weight0.5": "finished", "weight1.0": "interrupted"}

    (first, said_first), (second, said_second) = [finish(process) for process in (job(0), job(1))]
    assert (first, second) == (0, 0), said_second[-3000:]
    assert "cell 0 of 2, finished" in said_first
    assert results(folder / "weight1.0")["status"] == "finished"
    assert [step for step, _ in losses(folder / "weight1.0")] == [str(step) for step in range(6)]

    monkeypatch.chdir(tmp_path)
    assert main(["sweep", str(path), *small]) == 0
    assert "2 cells in runs/sweep_grid, 2 already finished." in capsys.readouterr().out
    assert (folder / "curve.png").stat().st_size > 5000
