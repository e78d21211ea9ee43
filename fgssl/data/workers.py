"""Number of loader processes from the cores that a job may use."""

import contextlib
import math
import os
import re
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def workers_of_process(processes: int) -> int:
    """Loader processes of a training process: its share of the cores that this job may use, 1 or more.

    The cores are those of the process's CPU affinity and of the CPU quota of its container. SLURM's
    ``--cpus-per-task`` is shared by the processes of a task: one where srun starts each, all where torchrun does.

    Args:
        processes: training processes on this machine.
    """
    per_task = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if per_task.isdigit():
        return max(1, min(int(per_task), cores()) // max(1, processes // tasks_of_node()))
    return max(1, cores() // processes)


def tasks_of_node() -> int:
    """Tasks that srun started on each node, such as 4 of ``4(x2)``; 1 where srun did not start this process."""
    tasks = re.match(r"\d+", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return int(tasks[0]) if tasks else 1


def cores() -> int:
    """Cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(allowed, quota())))


def quota() -> float:
    """Cores' worth of time that the container's CPU quota grants; infinite without one. Linux, cgroups 2 and 1."""
    with contextlib.suppress(OSError, ValueError):
        granted, period = (CGROUPS / "cpu.max").read_text().split()
        return int(granted) / int(period)
    with contextlib.suppress(OSError, ValueError):
        granted, period = ((CGROUPS / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(granted) > 0:
            return int(granted) / int(period)
    return math.inf
