"""The similarities of a global batch: gradient through the gather, and the same triplets in every process."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from fgssl.distributed import gather_with_gradient
from fgssl.losses.metric_learning import multi_similarity
from tests.ddp.test_processes import on
from tests.methods.runs import RUNS, complete, results, state

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
    torch.save((z.detach(), module.module.weight.grad), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_gradient_through_the_gather_is_that_of_one_process(tmp_path):
    mp.spawn(one_rank, args=(str(tmp_path),), nprocs=WORLD)
    module, (x, labels) = network(), inputs()
    z = embed(module, x)
    multi_similarity(z, labels).backward()
    for rank in range(WORLD):
        gathered, gradient = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(gathered, z.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient, module.weight.grad, rtol=1e-10, atol=1e-14)
    assert module.weight.grad.abs().sum() > 0


def test_one_process_gathers_nothing():
    z = torch.ones(2, 3, requires_grad=True)
    assert gather_with_gradient(z) is z


@pytest.mark.parametrize("whole", ["true", "false"])
def test_similarities_are_of_all_processes_unless_told_otherwise(whole, tmp_path):
    """Global, two processes train what one does; each by itself, something else. Random triplets and boundaries too."""
    double = ("--trainer.precision", "64-true")
    ours = complete("obd_sd_margin", tmp_path, "two", *on(2), *double, "--model.global_batch", whole)
    theirs = complete("obd_sd_margin", tmp_path, "one", *double)
    pairs = [(state(ours)[name], value) for name, value in state(theirs).items()]
    same = all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in pairs)
    assert same == (whole == "true")
    metrics = [results(run)["metrics"] for run in (ours, theirs)]
    assert (metrics[0]["test/density"] == pytest.approx(metrics[1]["test/density"], rel=1e-5)) == (whole == "true")


def test_the_run_is_one_of_those_that_every_method_has_to_pass():
    assert {"obd_sd", "obd_sd_margin"} <= RUNS.keys()
