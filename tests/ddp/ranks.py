"""What each of several processes saw."""

import contextlib
import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fgssl.cli.main import main
from tests.warm import CONTEXT


def seen_by_ranks(one_rank: Callable[[int, str], None], folder: Path, world: int) -> list[dict]:
    """Start ``world`` processes; each writes what it saw to ``<folder>/<rank>.pt``."""
    mp.start_processes(one_rank, args=(str(folder),), nprocs=world, start_method=CONTEXT.get_start_method())
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


@contextlib.contextmanager
def as_rank(rank: int, world: int, folder: str) -> Iterator[None]:
    """This process is one of several that torchrun would have started; Lightning then starts none of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "GROUP_RANK": 0}.items():
            patch.setenv(variable, str(value))
        patch.setenv("TORCHELASTIC_RUN_ID", "tests")
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
        yield
        dist.destroy_process_group()


def one_rank(rank: int, folder: str, world: int, lines: list[list[str]]) -> None:
    """Run command lines, one after the other, as a process that torchrun would have started."""
    with as_rank(rank, world, folder), contextlib.redirect_stderr(io.StringIO()) as said:
        statuses = [main(line) for line in lines]
    torch.save({"statuses": statuses, "said": said.getvalue()}, f"{folder}/{rank}.pt")


def run_by(world: int, folder: Path, *lines: list[str], status: int = 0) -> str:
    """Run command lines by ``world`` processes, all of which have to end with ``status``; returns what they said."""
    seen = seen_by_ranks(partial(one_rank, world=world, lines=lines), folder, world)
    said = "".join(rank["said"] for rank in seen)
    assert [rank["statuses"] for rank in seen] == [[status] * len(lines)] * world, said[-3000:]
    return said
