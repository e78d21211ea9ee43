"""Pure metrics: embeddings and labels in, numbers out."""

from fgssl.metrics.clustering import clustering_metrics
from fgssl.metrics.retrieval import finish, retrieval_metrics, retrieval_statistics
from fgssl.metrics.structure import embedding_density, spectral_decay

__all__ = [
    "clustering_metrics",
    "embedding_density",
    "finish",
    "retrieval_metrics",
    "retrieval_statistics",
    "spectral_decay",
]
