"""``--data.num_workers auto``: a share of the cores that the job may use."""

import os

import pytest

from fgssl.data import workers
from fgssl.data.datamodule import DataModule
from fgssl.data.datasets import ALL


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with the given number of cores in the affinity of the process, and files of a CPU quota."""
    monkeypatch.setattr(workers, "CGROUPS", tmp_path)
    for variable in ("SLURM_CPUS_PER_TASK", "SLURM_STEP_TASKS_PER_NODE"):
        monkeypatch.delenv(variable, raising=False)

    def of(cores: int, **files: str):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        (tmp_path / "cpu").mkdir(exist_ok=True)
        for name, text in files.items():
            (tmp_path / name.replace("__", "/").replace("_max", ".max").replace("cfs", "cpu.cfs")).write_text(text)

    return of


def test_cores_of_the_affinity_are_shared_by_the_processes(machine):
    machine(16)
    assert [workers.workers_of_process(n) for n in (1, 4, 5, 32)] == [16, 4, 3, 1]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu_max": "600000 100000\n"}, 6),
        ({"cpu_max": "50000 100000\n"}, 1),
        ({"cpu_max": "max 100000\n"}, 16),
        ({"cpu__cfs_quota_us": "400000\n", "cpu__cfs_period_us": "100000\n"}, 4),
        ({"cpu__cfs_quota_us": "-1\n", "cpu__cfs_period_us": "100000\n"}, 16),
    ],
)
def test_quota_of_a_container_limits_the_cores(machine, files, expected):
    machine(16, **files)
    assert workers.workers_of_process(1) == expected


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        pytest.param("4(x2)", 8, id="srun starts each process"),
        pytest.param("1(x2)", 2, id="srun starts torchrun"),
        pytest.param(None, 2, id="Lightning starts the processes in the script of the job"),
    ],
)
def test_slurms_cores_per_task_are_shared_by_the_processes_of_a_task(tasks, expected, machine, monkeypatch):
    machine(64)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    if tasks:
        monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
    assert workers.workers_of_process(4) == expected


def test_data_module_takes_auto(machine):
    machine(3)
    data = DataModule(ALL["digits"](), num_workers="auto", batch_size=16)
    assert data.test_dataloader().loader.num_workers == 3


@pytest.mark.slow
def test_auto_on_the_command_line(machine, tmp_path):
    import yaml

    from tests.cli.test_cli import fit

    machine(1)
    run = fit(tmp_path, "run", "--data.num_workers", "auto", "--trainer.max_steps", "1", epochs=1)
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["num_workers"] == "auto"
