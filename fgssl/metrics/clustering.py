"""Agreement of k-means clusters with labels: NMI and AMI."""

import faiss
import numpy as np
import torch.nn.functional as F
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
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
    z_ND = np.ascontiguousarray(F.normalize(embeddings.detach().float()).cpu().numpy())
    labels_N = labels.cpu().numpy()
    k = len(np.unique(labels_N)) if n_clusters is None else n_clusters
    if not 1 <= k <= len(z_ND):
        raise ValueError(f"n_clusters is {k}; it must be in 1 .. {len(z_ND)}, the number of embeddings")

    # Train on all rows: by default, faiss samples 256 rows per cluster and warns below 39.
    kmeans = faiss.Kmeans(
        z_ND.shape[1], k, niter=ITERATIONS, seed=seed, min_points_per_centroid=1, max_points_per_centroid=len(z_ND)
    )
    kmeans.train(z_ND)
    cluster_N = kmeans.assign(z_ND)[1]
    return {
        "nmi": float(normalized_mutual_info_score(labels_N, cluster_N, average_method="arithmetic")),
        "ami": float(adjusted_mutual_info_score(labels_N, cluster_N, average_method="arithmetic")),
    }
