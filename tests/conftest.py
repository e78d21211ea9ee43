"""Shared by all tests: one thread per process (pytest-xdist uses the cores), and the folder of research data."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: threads of two test processes would fight for two cores
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def research_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is not set."""
    if "FGSSL_DATA" not in os.environ:
        pytest.skip("FGSSL_DATA is not set: no real data sets here")
    return Path(os.environ["FGSSL_DATA"])
