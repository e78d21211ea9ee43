"""Validation of the input of metrics."""

from torch import Tensor

ELEMENTS = 2**22  # checked at a time


def check_embeddings(embeddings: Tensor, labels: Tensor | None = None, name: str = "embeddings") -> None:
    """Check that ``embeddings`` is a finite, non-empty [N, D] matrix and ``labels`` a vector of length N.

    Args:
        embeddings: tensor to check.
        labels: labels of the rows, or None.
        name: name of the rows in the error message.

    Raises:
        ValueError: a condition does not hold.
    """
    if embeddings.ndim != 2 or embeddings.numel() == 0:
        raise ValueError(f"{name} must be a non-empty [N, D] matrix, got shape {tuple(embeddings.shape)}")
    if labels is not None and labels.shape != (len(embeddings),):
        raise ValueError(f"{len(embeddings)} {name} but labels of shape {tuple(labels.shape)}")
    bad = not_finite(embeddings)
    if bad:
        raise ValueError(f"{bad} of {len(embeddings)} {name} hold NaN or Inf")


def not_finite(embeddings: Tensor) -> int:
    """Number of rows with NaN or Inf."""
    parts = embeddings.flatten(1).split(max(1, ELEMENTS // max(1, embeddings[0].numel()))) if len(embeddings) else ()
    return int(sum((~part.isfinite()).any(dim=1).sum() for part in parts))
