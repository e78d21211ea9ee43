"""Shared by all tests: one thread per process (pytest-xdist uses the cores), the folder of research data, and the
process in which the stand-in device exists."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: threads of two test processes would fight for two cores
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
import torch

from tests.methods.runs import PATIENCE
from tests.warm import CONTEXT, hide_gpus

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with Ctrl-C ignored


@pytest.fixture(scope="session")
def research_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is not set."""
    if "FGSSL_DATA" not in os.environ:
        pytest.skip("FGSSL_DATA is not set: no real data sets here")
    return Path(os.environ["FGSSL_DATA"])


@pytest.fixture(scope="session")
def elsewhere() -> Iterator[Callable[..., Any]]:
    """``elsewhere(function, *arguments)`` calls a function of a module in the process of ``tests/devices``."""
    with ProcessPoolExecutor(1, mp_context=CONTEXT, initializer=hide_gpus) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result(PATIENCE)
