"""Retrieval, search and re-ranking on the stand-in device: the bits of the CPU, and no tensor left behind there."""

import pytest
import torch

from fgssl.evaluation.reranking import Rerank, reranked_search
from fgssl.evaluation.search import search
from fgssl.metrics import retrieval_metrics
from tests.bank import nearest
from tests.devices.stand_in import device, stand_in

pytestmark = pytest.mark.slow

RERANK = (Rerank(query_expansion=3, database_augmentation=2), Rerank(k_reciprocal=True, k1=6, k2=3))


def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    """Far, near and equal rows."""
    g = torch.Generator().manual_seed(0)
    z_ND = torch.randn(120, 140, generator=g)
    z_ND[40:60] = z_ND[:20]
    z_ND[60:90] = z_ND[90:] + 1e-6 * torch.randn(30, 140, generator=g)
    return z_ND, torch.arange(120) % 12


def everything(where: torch.device | str) -> list:
    z_ND, labels_N = (column.to(where) for column in embeddings())
    own_N = torch.arange(120, device=where)
    found = [search(z_ND, z_ND, 7, exclude=own_N, backend=backend) for backend in ("auto", "faiss", "torch")]
    found += [reranked_search(z_ND, z_ND, 7, options, exclude=own_N) for options in RERANK]
    found += [reranked_search(z_ND[:9], z_ND, 7, RERANK[1]), nearest(z_ND[:9], z_ND, 7, at_once=50)]
    assert all(column.device == z_ND.device for pair in found for column in pair)
    return [
        retrieval_metrics(z_ND, labels_N),
        retrieval_metrics(z_ND, labels_N, gallery=z_ND[::2], gallery_labels=labels_N[::2]),
        [[column.cpu().tolist() for column in pair] for pair in found],
    ]


def on_device(few: int) -> list:
    with pytest.MonkeyPatch.context() as patch, stand_in():
        patch.setattr("fgssl.evaluation.search.FEW", few)
        return everything(device())


@pytest.mark.parametrize("few", [1, 128])  # candidates by float32 scores, or the keys of all rows
def test_the_device_gives_the_bits_of_the_cpu(few, elsewhere):
    assert elsewhere(on_device, few) == everything("cpu")
