"""What BatchNorm of the keys sees on two processes: each of the three settings does what it says."""

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from fgssl.callbacks.queue import enqueue
from fgssl.data.batch import Batch
from fgssl.methods.mls import MLS
from tests.ddp.ranks import seen_by_ranks
from tests.tiny import BACKBONE

pytestmark = pytest.mark.ddp

WORLD, B = 2, 6
SETTINGS = ("plain", "shuffled", "synchronised")


def method_of(setting: str) -> MLS:
    torch.manual_seed(0)
    return MLS(BACKBONE, dim=6, hidden=8, memory=20, k=3, keys_batch_norm=setting).double()


def images() -> torch.Tensor:
    """Of two processes, whose images differ in brightness: statistics of one are not those of the other."""
    x = torch.randn(WORLD * B, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x + torch.arange(WORLD).repeat_interleave(B)[:, None, None, None]


def one_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    rows = torch.arange(WORLD * B).chunk(WORLD)[rank]
    mine = images()[rows]
    seen = {}
    for setting in SETTINGS:
        method = method_of(setting)
        method._shuffle_seed = 3
        enqueue(method, method.step(Batch([mine, mine], rows, rows, rows, rows)).enqueue)
        bn = method.key.backbone.bn1
        seen[setting] = {"running": [bn.running_mean, bn.running_var], **vars_of(method)}
    torch.save(seen, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def vars_of(method: MLS) -> dict:
    memory = method.memory
    return {"keys": memory.keys, "index": memory.index, "draw": memory.labels, "checksum": memory.checksum()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    return seen_by_ranks(one_rank, folder, WORLD)


def encoded(parts: list[torch.Tensor]) -> torch.Tensor:
    """[g2, z2] of all rows, each part normalised by its own statistics; put back into the order of the rows."""
    out = torch.empty(WORLD * B, 14, dtype=torch.float64)
    for rows in parts:
        key = method_of("plain").key
        with torch.no_grad():
            g = key.features(images()[rows])
            out[rows] = torch.cat([F.normalize(g, dim=1), key.project(g)], dim=1)
    return out


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    # the memory is in float64 with the method; its sums are in another order
    return torch.allclose(ours.double(), theirs, rtol=1e-6, atol=1e-9)


ALL = torch.arange(WORLD * B)
PARTS = {
    "plain": list(ALL.chunk(WORLD)),
    "shuffled": list(torch.randperm(WORLD * B, generator=torch.Generator().manual_seed(3)).chunk(WORLD)),
    "synchronised": [ALL],
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_keys_are_normalised_in_the_company_that_the_setting_names(ranks, setting):
    for seen in ranks:
        assert seen[setting]["index"].tolist() == ALL.tolist()  # each key with its own row
        for other, parts in PARTS.items():
            assert same(seen[setting]["keys"], encoded(parts)) == (other == setting), other


@pytest.mark.parametrize("setting", SETTINGS)
def test_dictionaries_are_identical_on_both_processes(ranks, setting):
    first, second = (seen[setting] for seen in ranks)
    assert torch.equal(first["keys"], second["keys"])
    assert torch.equal(first["draw"], second["draw"])
    assert first["checksum"] == second["checksum"]


def test_synchronised_running_statistics_are_those_of_one_process(ranks):
    key = method_of("plain").key
    with torch.no_grad():
        key.features(images())
    for seen in ranks:
        mean, variance = seen["synchronised"]["running"]
        torch.testing.assert_close(mean, key.backbone.bn1.running_mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(variance, key.backbone.bn1.running_var, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(ranks[0]["plain"]["running"][0], ranks[1]["plain"]["running"][0])
