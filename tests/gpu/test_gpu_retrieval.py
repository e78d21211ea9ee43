"""Search and retrieval give the same bits on the CPU, on a GPU, and with FAISS on a GPU."""

import pytest
import torch

from fgssl.evaluation.search import search
from fgssl.metrics.retrieval import retrieval_metrics
from tests.gpu.on_gpu import DEVICES, nearly_full

Q, G, D = 300, 2500, 96


def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and gallery with exact ties (repeated rows) and near ties (rows that differ by 1e-7)."""
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(G, D, generator=generator)
    gallery[G // 2 : G // 2 + 200] = gallery[:200]
    gallery[-200:] = gallery[:200] * (1 + 1e-7 * torch.randn(200, D, generator=generator))
    queries = gallery[:Q] + 0.1 * torch.randn(Q, D, generator=generator)
    return queries, gallery


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("k", [1, 11, 300])
@pytest.mark.parametrize("backend", ["auto", "faiss", "torch"])
def test_search_on_the_device_is_bit_equal_to_the_cpu(backend, k, device):
    queries, gallery = embeddings()
    cosine, rows = search(queries, gallery, k, backend="torch")
    ours, found = search(queries.to(device), gallery.to(device), k, backend=backend)
    assert found.device.type == device
    assert torch.equal(found.cpu(), rows)
    assert torch.equal(ours.cpu(), cosine)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["auto", "faiss"])
def test_search_with_the_memory_nearly_full_is_bit_equal(backend, device):
    """FAISS takes its memory from the GPU itself, beside what torch keeps."""
    queries, gallery = embeddings()
    expected = search(queries, gallery, 20, backend="torch")
    ours = queries.to(device), gallery.to(device)
    with nearly_full(device, left=600 * 2**20):
        found = search(*ours, 20, backend=backend)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine.cpu(), theirs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("full", [False, True], ids=["free", "nearly full"])
def test_metrics_on_the_device_are_equal_to_those_of_the_cpu(full, device):
    _, gallery = embeddings()
    labels = torch.arange(G) % 40
    expected = retrieval_metrics(gallery, labels, ks=(1, 2, 10))
    ours = gallery.to(device), labels.to(device)
    with nearly_full(device if full else "cpu", left=600 * 2**20):
        assert retrieval_metrics(*ours, ks=(1, 2, 10)) == expected
