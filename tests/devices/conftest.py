"""The process in which the stand-in device exists."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from tests.methods.runs import PATIENCE


@pytest.fixture(scope="session")
def elsewhere() -> Iterator[Callable[..., Any]]:
    """``elsewhere(function, *arguments)`` calls a function of a module in the process of the device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.setenv("OMP_NUM_THREADS", "1")
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield lambda function, *arguments: pool.submit(function, *arguments).result(PATIENCE)
