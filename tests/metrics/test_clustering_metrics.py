import numpy as np
import pytest
import torch

from fgssl.metrics import clustering_metrics
from fgssl.metrics.clustering import k_means, purity


def groups(noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    labels_N = torch.arange(10).repeat(40)
    centre_CD = torch.eye(10, 16)
    return centre_CD[labels_N] + noise * torch.randn(400, 16, generator=g), labels_N


def test_clustering_is_high_for_separate_groups_and_near_0_by_chance():
    # one start of k-means may merge two groups, so 1 is not promised
    assert clustering_metrics(*groups(0.01))["nmi"] > 0.9
    assert abs(clustering_metrics(*groups(100.0))["ami"]) < 0.05


def test_clustering_is_determined_by_the_seed():
    first, again, other = (clustering_metrics(*groups(0.5), seed=seed)["nmi"] for seed in (0, 0, 1))
    assert first == again != other


def test_clustering_normalises_by_the_arithmetic_mean():
    """One cluster a row: mutual information H(labels), NMI = 2 H(labels) / (H(labels) + log N)."""
    z, labels = torch.eye(8), torch.arange(8) // 4
    got = clustering_metrics(z, labels, n_clusters=8)["nmi"]
    assert got == pytest.approx(2 / (1 + 3), rel=1e-6)  # log 2 against log 8


@pytest.mark.parametrize("n_clusters", [0, 401])
def test_clustering_rejects_an_impossible_number_of_clusters(n_clusters):
    with pytest.raises(ValueError, match="must be in 1 .. 400"):
        clustering_metrics(*groups(0.5), n_clusters=n_clusters)


def test_clustering_rejects_nan():
    with pytest.raises(ValueError, match="NaN"):
        clustering_metrics(torch.full((4, 2), torch.nan), torch.arange(4))


def test_purity_counts_the_most_frequent_label_of_each_cluster():
    """Clusters {a, a, b}, {b, b}, {a, c}: 2 + 2 + 1 of 7."""
    labels, clusters = np.array([0, 0, 1, 1, 1, 0, 2]), np.array([5, 5, 5, 9, 9, 7, 7])
    assert purity(labels, clusters) == pytest.approx(5 / 7)
    assert purity(labels, labels) == 1


def test_purity_rejects_different_lengths_and_nothing():
    for labels, clusters in ((np.zeros(2), np.zeros(3)), (np.zeros(0), np.zeros(0))):
        with pytest.raises(ValueError, match="must be equal"):
            purity(labels, clusters)


def test_k_means_finds_separate_groups_whatever_their_length():
    z, labels = groups(0.01)
    z = z * torch.linspace(1, 50, len(z))[:, None]
    assert purity(labels.numpy(), k_means(z, 20)) == 1
