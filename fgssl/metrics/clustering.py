"""Agreement of k-means clusters with labels: NMI, AMI and purity."""

import faiss
import numpy as np
import torch.nn.functional as F
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor

from fgssl.metrics.checks import check_embeddings

ITERATIONS = 20  # of k-means; the usual number in metric learning


def clustering_metrics(
    embeddings: Tensor, labels: Tensor, *, n_clusters: int | None = None, seed: int = 0
) -> dict[str, float]:
    """NMI and AMI between k-means clusters of the embeddings and the labels. K-means runs on the CPU.

    Args:
        embeddings: [N, D] float; L2-normalised here.
        labels: [N] int.
        n_clusters: number of clusters; None: the number of distinct labels. OBD-SD's released code uses the number of
            training classes.
        seed: random seed of the initial centres.

    Returns:
        ``nmi`` and ``ami``: normalised and adjusted mutual information with the arithmetic mean. The expected AMI of
        random clusters is 0; AMI can be slightly negative.

    Raises:
        ValueError: empty input, different lengths, NaN or Inf, or fewer rows than clusters.
    """
    check_embeddings(embeddings, labels)
    labels_N = labels.cpu().numpy()
    cluster_N = k_means(embeddings, len(np.unique(labels_N)) if n_clusters is None else n_clusters, seed=seed)
    return {
        "nmi": nmi(labels_N, cluster_N),
        "ami": float(adjusted_mutual_info_score(labels_N, cluster_N, average_method="arithmetic")),
    }


def k_means(embeddings: Tensor, k: int, *, seed: int = 0) -> np.ndarray:
    """Cluster numbers [N] of the L2-normalised embeddings, by k-means on the CPU.

    Args:
        embeddings: [N, D] float.
        k: number of clusters.
        seed: random seed of the initial centres.

    Raises:
        ValueError: fewer rows than clusters.
    """
    z_ND = np.ascontiguousarray(F.normalize(embeddings.detach().float()).cpu().numpy())
    if not 1 <= k <= len(z_ND):
        raise ValueError(f"n_clusters is {k}; it must be in 1 .. {len(z_ND)}, the number of embeddings")

    # Train on all rows: by default, faiss samples 256 rows per cluster and warns below 39.
    kmeans = faiss.Kmeans(
        z_ND.shape[1], k, niter=ITERATIONS, seed=seed, min_points_per_centroid=1, max_points_per_centroid=len(z_ND)
    )
    kmeans.train(z_ND)
    return kmeans.assign(z_ND)[1]


def nmi(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Normalised mutual information of labels [N] and clusters [N], with the arithmetic mean, in 0 to 1."""
    return float(normalized_mutual_info_score(labels, clusters, average_method="arithmetic"))


def purity(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Share of rows whose label is the most frequent one of their cluster.

    Args:
        labels: [N] int labels.
        clusters: [N] int cluster numbers.

    Returns:
        In 0 to 1. It grows with the number of clusters: compare it at equal numbers only.

    Raises:
        ValueError: empty input or different lengths.
    """
    if not len(labels) or labels.shape != clusters.shape:
        raise ValueError(
            f"labels of shape {labels.shape} and clusters of shape {clusters.shape} must be equal, above 0"
        )
    return float(contingency_matrix(labels, clusters).max(axis=0).sum() / len(labels))
