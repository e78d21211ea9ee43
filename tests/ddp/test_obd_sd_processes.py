"""The similarities of a global batch: gradient through the gather, and the same triplets in every process."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from fgssl.distributed import gather_with_gradient
from fgssl.losses.metric_learning import multi_similarity
from fgssl.methods.obd_sd import OBDSD, Distillation
from tests.ddp.ranks import seen_by_ranks
from tests.methods.runs import RUNS
from tests.tiny import BACKBONE as NETWORK

pytestmark = pytest.mark.ddp

WORLD = 2


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, torch.arange(12) % 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(5, 4, dtype=torch.float64)


def embed(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(module(x), dim=1)


def one_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    x, labels = inputs()
    module = nn.parallel.DistributedDataParallel(network())
    z = gather_with_gradient(embed(module, x.chunk(WORLD)[rank]))
    multi_similarity(z, labels).backward()
    seen = {"z": z.detach(), "gradient": module.module.weight.grad}
    images, fine = torch.full((2, 3, 8, 8), float(rank)), torch.tensor([rank, 7])
    for whole in (True, False):
        torch.manual_seed(0)
        method = OBDSD(NETWORK, dim=4, global_batch=whole, distillation=Distillation(teacher="none"), freeze_bn=True)
        seen[whole] = [x.detach() for x in method.over_processes(method.student(images), fine)]
    torch.save(seen, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("ranks")
    return seen_by_ranks(one_rank, folder, WORLD)


def test_gradient_through_the_gather_is_that_of_one_process(ranks):
    module, (x, labels) = network(), inputs()
    z = embed(module, x)
    multi_similarity(z, labels).backward()
    for seen in ranks:
        torch.testing.assert_close(seen["z"], z.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(seen["gradient"], module.weight.grad, rtol=1e-10, atol=1e-14)
    assert module.weight.grad.abs().sum() > 0


def test_similarities_are_of_all_processes_unless_told_otherwise(ranks):
    first, second = ranks
    for ours, theirs, whole in zip(first[False], second[False], first[True], strict=True):
        assert torch.equal(whole, torch.cat([ours, theirs]))
    assert all(torch.equal(a, b) for a, b in zip(first[True], second[True], strict=True))
    assert first[True][1].tolist() == [0, 7, 1, 7]


def test_one_process_gathers_nothing():
    z = torch.ones(2, 3, requires_grad=True)
    assert gather_with_gradient(z) is z


def test_whole_runs_are_compared_with_those_of_the_other_methods():
    """tests/ddp/test_processes.py and tests/trust take theirs from RUNS."""
    assert "obd_sd" in RUNS
