"""Work on rank 0 that takes longer than the timeout of collectives."""

import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout, default_pg_timeout

from fgssl.distributed import from_rank_zero, wait_for_all_ranks
from fgssl.errors import UserError
from tests.ddp.ranks import run_by, seen_by_ranks
from tests.ddp.test_processes import metrics, on
from tests.methods.runs import arguments, complete, state

pytestmark = pytest.mark.ddp

WORLD = 2
TIMEOUT = timedelta(seconds=2)
ROOT = Path(__file__).parents[2]


def long_work(answer):
    """Takes two timeouts."""
    time.sleep(2 * TIMEOUT.total_seconds())
    return answer


def fail():
    raise ValueError("no clusters")


def one_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    dist.barrier()
    _set_pg_timeout(TIMEOUT)
    seen = {}
    called = []
    seen["long"] = from_rank_zero(lambda: called.append(rank) or long_work({"nmi": 0.1 + 0.2, "rows": [1, 2]}))
    seen["called"] = bool(called)
    seen["numpy"] = from_rank_zero(lambda: {"ap": torch.tensor(0.5).numpy()[()]})
    seen["nothing"] = from_rank_zero(lambda: None)
    try:
        from_rank_zero(fail)
    except (ValueError, UserError) as fault:
        seen["fault"] = f"{type(fault).__name__}: {fault}"
    if rank == 1:
        long_work(None)  # a slow disk
        Path(folder, "slow").touch()
    wait_for_all_ranks()
    _set_pg_timeout(default_pg_timeout)
    seen["waited"] = Path(folder, "slow").is_file()
    total = torch.ones(())
    dist.all_reduce(total)  # collectives go on as before
    seen["total"] = float(total)
    torch.save(seen, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    return seen_by_ranks(one_rank, folder, WORLD)


def test_all_ranks_get_the_result_of_rank_zero_which_alone_works_for_longer_than_the_timeout(ranks):
    assert [rank["long"] for rank in ranks] == [{"nmi": 0.1 + 0.2, "rows": [1, 2]}] * WORLD
    assert [rank["called"] for rank in ranks] == [True, False]
    assert [rank["numpy"] for rank in ranks] == [{"ap": 0.5}] * WORLD
    assert [rank["nothing"] for rank in ranks] == [None] * WORLD
    assert [rank["total"] for rank in ranks] == [WORLD] * WORLD


def test_a_failure_on_rank_zero_ends_the_wait_of_the_others(ranks):
    assert ranks[0]["fault"] == "ValueError: no clusters"
    assert ranks[1]["fault"] == "UserError: process 1 ends because process 0 failed: ValueError: no clusters"


def test_all_ranks_wait_for_one_with_a_slow_disk(ranks):
    assert [rank["waited"] for rank in ranks] == [True] * WORLD


def test_no_code_works_on_rank_zero_while_others_wait_in_a_broadcast():
    for path in (ROOT / "fgssl").rglob("*.py"):
        assert "strategy.broadcast(" not in path.read_text(), f"{path}: use from_rank_zero"


def test_two_processes_measure_what_one_measures(tmp_path):
    """Everything that rank 0 alone works out: k-means, density, k-NN, pictures."""
    callbacks = "[{class_path: OnlineKNN}, {class_path: BestOnTest, init_args: {nmi: true}}]"
    flags = (
        "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.precision", "64-true",
        "--trainer.callbacks", callbacks,
        "--retrieval.extra", "[clustering, density]", "--retrieval.grid", "2",
    )  # fmt: skip
    run_by(2, tmp_path, arguments("maskcon", tmp_path, "two", *on(2), *flags))
    two = tmp_path / "maskcon" / "two"
    one = complete("maskcon", tmp_path, "one", *flags)
    ours, theirs = metrics(two), metrics(one)
    assert {"test/nmi", "test/density", "test/knn_top1", "test/best_epoch_nmi"} <= theirs.keys()
    assert ours == pytest.approx(theirs, abs=1e-6)
    for name, value in state(one).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(state(two)[name], value, rtol=1e-5, atol=1e-6)
    assert (two / "retrieval.jpg").is_file()
