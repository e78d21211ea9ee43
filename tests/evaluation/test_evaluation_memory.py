"""Peak memory of the evaluation, in units of the float32 embeddings: 1.28 million rows of 2,048 take 10.5 GB."""

import pytest
import torch
from torch import Tensor

from fgssl.evaluation import embedding
from fgssl.evaluation.embedding import collect
from fgssl.evaluation.search import search
from fgssl.metrics import retrieval_metrics
from tests.bank import nearest
from tests.memory import PeakMemory, nbytes

LIMIT = 2.5  # the embeddings, one more copy in float32, and blocks: 26 GB; at most 3.0 where keys decide whole blocks


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Blocks as small beside the embeddings of this test as they are beside ImageNet's."""
    for name in ("BLOCK", "VECTORS"):
        monkeypatch.setattr(f"fgssl.metrics.ranking.{name}", 2**12)
    monkeypatch.setattr("fgssl.metrics.ranking.KEPT", 0)
    monkeypatch.setattr("fgssl.metrics.checks.ELEMENTS", 2**12)
    monkeypatch.setattr("fgssl.evaluation.search.PAIRS", 2**12)
    monkeypatch.setattr("fgssl.evaluation.search.FEW", 1)


def embeddings(rows: int = 2000, dim: int = 512) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    labels_N = torch.arange(rows) // 4
    return torch.randn(rows // 4, dim, generator=g)[labels_N] + torch.randn(rows, dim, generator=g), labels_N


def test_metrics_of_a_set_take_one_copy():
    z_ND, labels_N = embeddings(4000)  # the 128 queries of a block, of which there are copies, are few beside them
    with PeakMemory(z_ND) as memory:
        retrieval_metrics(z_ND, labels_N)
    assert 2 < memory.peak / nbytes(z_ND) < LIMIT


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_search_takes_one_copy(backend):
    z_ND, _ = embeddings()
    with PeakMemory(z_ND) as memory:
        search(z_ND[:200], z_ND, 5, backend=backend)
    assert 2 < memory.peak / nbytes(z_ND) < LIMIT


def test_search_in_the_bank_of_patches_takes_no_copy():
    bank, _ = embeddings(3000)
    with PeakMemory(bank) as memory:
        nearest(bank[:50], bank, 5, at_once=200)
    assert 1 < memory.peak / nbytes(bank) < 1.5


def test_collect_frees_the_batches_it_has_copied():
    z_ND, labels_N = embeddings()
    whole, size = z_ND.clone(), nbytes(z_ND)
    outputs = [
        {"embedding": z.clone(), "fine": fine, "index": index}
        for z, fine, index in zip(z_ND.split(64), labels_N.split(64), torch.arange(len(z_ND)).split(64), strict=True)
    ]
    with PeakMemory(*(output["embedding"] for output in outputs)) as memory:
        rows = collect(outputs)
    assert 2 <= memory.peak / size < 2.2
    assert sum(memory.alive.values()) / size < 1.1  # the batches are gone
    assert torch.equal(rows.embedding, whole)


def test_collect_of_several_ranks_is_in_the_order_of_the_data_set(monkeypatch):
    """Three ranks with 4 of 10 rows each; the last repeats two, with other embeddings: the first ones count."""
    index_RN = torch.tensor([[3, 1, 0, 2], [4, 5, 7, 6], [8, 9, 0, 1]])
    embedding_RN = index_RN[..., None].float() + torch.tensor([0.0, 0, 0.5])[:, None, None]
    embedding_RN[2, :2] -= 0.5
    columns = {"embedding": embedding_RN, "fine": index_RN * 10, "index": index_RN}
    batches = iter([(columns["fine"], columns["index"]), (embedding_RN[:, :3],), (embedding_RN[:, 3:],)])
    monkeypatch.setattr(embedding, "gather_rows", lambda *ours: [column.flatten(0, 1) for column in next(batches)])
    rows = collect([{name: column[0, some] for name, column in columns.items()} for some in (slice(3), slice(3, 4))])
    assert rows.index.tolist() == list(range(10))
    assert rows.fine.tolist() == list(range(0, 100, 10))
    assert rows.embedding[:, 0].tolist() == list(range(10))
