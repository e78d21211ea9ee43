"""``fgssl search``: the nearest neighbours of given images in an embedded folder, as a table and a picture."""

import torch

from fgssl.evaluation.embedding import Embeddings
from fgssl.evaluation.store import Stored, read_embeddings


def as_embeddings(stored: Stored) -> Embeddings:
    return Embeddings(*(torch.from_numpy(column) for column in (stored.embedding, stored.fine, stored.index)))
