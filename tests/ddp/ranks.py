"""What each of several spawned processes saw."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing as mp


def seen_by_ranks(one_rank: Callable[[int, str], None], folder: Path, world: int) -> list[dict]:
    """Spawn ``world`` processes; each writes what it saw to ``<folder>/<rank>.pt``."""
    mp.spawn(one_rank, args=(str(folder),), nprocs=world)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]
