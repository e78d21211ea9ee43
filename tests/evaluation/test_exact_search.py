"""Both backends against a full sort, and against each other bit by bit."""

import faiss
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fgssl.evaluation.search import search

KINDS = ("gaussian", "duplicates", "quantised", "equal", "near-ties")


def gallery(kind: str) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return {
        "gaussian": torch.randn(500, 24, generator=g),
        "duplicates": torch.randn(100, 24, generator=g).repeat(5, 1),
        "quantised": torch.randint(-1, 2, (500, 4), generator=g).float(),
        "equal": torch.ones(500, 6),
        "near-ties": 1 + 1e-4 * torch.randn(500, 24, generator=g),  # below what a float32 product can tell
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 7, 499])
def test_faiss_and_torch_agree_bit_by_bit(kind, k):
    z = gallery(kind)
    own = torch.arange(len(z))
    cosine_f, ids_f = search(z, z, k, exclude=own, backend="faiss")
    cosine_t, ids_t = search(z, z, k, exclude=own, backend="torch")
    assert torch.equal(ids_f, ids_t)
    assert torch.equal(cosine_f, cosine_t)
    assert (ids_f != own[:, None]).all()


@pytest.mark.parametrize("kind", ["gaussian", "duplicates", "quantised", "equal"])
@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_search_equals_a_full_sort(kind, backend):
    z = gallery(kind)
    queries = z[::3]
    got, ids = search(queries, z, 20, backend=backend)
    cosine = (F.normalize(queries.double()) @ F.normalize(z.double()).T).numpy()
    expected = np.argsort(-np.round(cosine, 9), axis=1, kind="stable")[:, :20]
    assert np.array_equal(ids.numpy(), expected)
    np.testing.assert_allclose(got.numpy(), np.take_along_axis(cosine, expected, 1), atol=1e-7)


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_search_does_not_depend_on_shards_and_blocks(backend, monkeypatch):
    z = gallery("near-ties")
    whole = search(z, z, 9, backend=backend)
    monkeypatch.setattr("fgssl.evaluation.search.FEW", 1)
    for name in ("BLOCK", "VECTORS"):
        monkeypatch.setattr(f"fgssl.metrics.ranking.{name}", 1)
    parts = [search(z[some], z, 9, backend=backend) for some in (slice(0, 1), slice(1, 200), slice(200, None))]
    assert all(torch.equal(torch.cat([part[i] for part in parts]), whole[i]) for i in (0, 1))


class FullGPU:
    """FAISS with GPUs whose memory is taken."""

    METRIC_INNER_PRODUCT, IndexFlatIP, knn = faiss.METRIC_INNER_PRODUCT, faiss.IndexFlatIP, staticmethod(faiss.knn)

    @staticmethod
    def StandardGpuResources() -> None:
        raise RuntimeError("Error in virtual void* allocMemory: Failed to cudaMalloc 1610612736 bytes")


def test_faiss_searches_on_the_cpu_where_the_gpu_is_full(monkeypatch, recwarn):
    z = gallery("near-ties")
    whole = search(z, z, 9)
    emptied = []
    monkeypatch.setattr("fgssl.evaluation.search.faiss", FullGPU)
    monkeypatch.setattr("fgssl.evaluation.search._on_gpu", lambda device, count: True)
    monkeypatch.setattr("fgssl.evaluation.search._warned", False)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("torch"))
    for times in (1, 2):
        assert all(torch.equal(*pair) for pair in zip(search(z, z, 9, backend="faiss"), whole, strict=True))
        assert len(emptied) == times
    (warning,) = recwarn  # one, not one a search
    assert "FAISS searches on the CPU" in str(warning.message)
    assert "Failed to cudaMalloc" in str(warning.message)


def test_faiss_on_a_gpu_takes_the_rows_in_parts(monkeypatch):
    z = gallery("near-ties")
    whole, added, places = search(z, z, 9), [], []

    class Index(faiss.IndexFlatIP):
        def add(self, rows):
            added.append(len(rows))
            super().add(rows)

    def to_gpu(resources, number, index):
        places.append(number)
        return Index(index.d)

    monkeypatch.setattr("fgssl.evaluation.search._on_gpu", lambda device, count: True)
    monkeypatch.setattr("fgssl.evaluation.search.AT_ONCE", 300)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu, raising=False)
    assert all(torch.equal(*pair) for pair in zip(search(z, z, 9, backend="faiss"), whole, strict=True))
    assert added == [300, 200]
    assert places == [z.device.index]


def test_auto_backend_is_torch_for_many_neighbours():
    z = torch.randn(400, 8)
    assert torch.equal(search(z, z, 300)[1], search(z, z, 300, backend="torch")[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be 1 to 5"),
        ({"k": 6}, "k must be 1 to 5"),
        ({"k": 5, "exclude": torch.arange(5)}, "k must be 1 to 4"),
        ({"k": 1, "backend": "annoy"}, "backend must be"),
        ({"k": 1, "queries": torch.randn(2, 4)}, "4 dimensions, the gallery 3"),
        ({"k": 1, "queries": torch.full((1, 3), torch.nan)}, "NaN"),
    ],
)
def test_search_refuses_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        search(**({"queries": torch.randn(5, 3), "gallery": torch.randn(5, 3)} | arguments))
