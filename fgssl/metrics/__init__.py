"""Metrics as pure functions of embeddings, scores or masks and their labels."""

from fgssl.metrics.classification import average_precisions, mean_average_precisions, topk_accuracy
from fgssl.metrics.clustering import clustering_metrics
from fgssl.metrics.retrieval import finish, retrieval_metrics, retrieval_statistics
from fgssl.metrics.structure import embedding_density, feature_std, rankme, spectral_decay

__all__ = [
    "average_precisions",
    "clustering_metrics",
    "embedding_density",
    "feature_std",
    "finish",
    "mean_average_precisions",
    "rankme",
    "retrieval_metrics",
    "retrieval_statistics",
    "spectral_decay",
    "topk_accuracy",
]
