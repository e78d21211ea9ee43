"""What each of several processes saw."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.warm import CONTEXT


def seen_by_ranks(one_rank: Callable[[int, str], None], folder: Path, world: int) -> list[dict]:
    """Start ``world`` processes; each writes what it saw to ``<folder>/<rank>.pt``."""
    mp.start_processes(one_rank, args=(str(folder),), nprocs=world, start_method=CONTEXT.get_start_method())
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


@contextmanager
def as_rank(rank: int, world: int, folder: str) -> Iterator[None]:
    """This process is one of several that torchrun would have started; Lightning then starts none of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "GROUP_RANK": 0}.items():
            patch.setenv(variable, str(value))
        patch.setenv("TORCHELASTIC_RUN_ID", "tests")
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
        yield
        dist.destroy_process_group()
