"""How well k-means finds the classes: NMI and AMI."""

import faiss
import numpy as np
import torch.nn.functional as F
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from torch import Tensor

from fgssl.metrics.checks import check_embeddings

ITERATIONS = 20  # as the metric-learning tables use


def clustering_metrics(
    embeddings: Tensor, labels: Tensor, *, n_clusters: int | None = None, seed: int = 0
) -> dict[str, float]:
    """Agreement of k-means clusters with the labels. K-means runs on the CPU wherever the embeddings are.

    Args:
        embeddings: [N, D] float, normalised inside.
        labels: [N] int.
        n_clusters: k of k-means; None for the number of distinct labels. (OBD-SD's code takes the number of training
            classes.)
        seed: of the initial centres.

    Returns:
        ``nmi``, ``ami``: normalised and adjusted mutual information, arithmetic mean. AMI is 0 in expectation for
        clusters drawn by chance and may be slightly negative.

    Raises:
        ValueError: empty input, lengths that differ, NaN or Inf, or fewer rows than clusters.
    """
    check_embeddings(embeddings, labels)
    z_ND = np.ascontiguousarray(F.normalize(embeddings.detach().float()).cpu().numpy())
    labels_N = labels.cpu().numpy()
    k = len(np.unique(labels_N)) if n_clusters is None else n_clusters
    if not 1 <= k <= len(z_ND):
        raise ValueError(f"{k} clusters of {len(z_ND)} embeddings")

    # Every row is used: faiss would draw 256 a cluster, and warn below 39.
    kmeans = faiss.Kmeans(
        z_ND.shape[1], k, niter=ITERATIONS, seed=seed, min_points_per_centroid=1, max_points_per_centroid=len(z_ND)
    )
    kmeans.train(z_ND)
    cluster_N = kmeans.assign(z_ND)[1]
    return {
        "nmi": float(normalized_mutual_info_score(labels_N, cluster_N, average_method="arithmetic")),
        "ami": float(adjusted_mutual_info_score(labels_N, cluster_N, average_method="arithmetic")),
    }
