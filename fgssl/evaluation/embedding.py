"""Embeddings of a data set, gathered from all ranks in the order of the data set."""

from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from fgssl.distributed import gather_rows


class Embeddings(NamedTuple):
    """N embedded images in ascending order of their data-set rows, each row once; equal on all ranks.

    Attributes:
        embedding: [N, F] float32 features.
        fine: [N] int64 labels.
        index: [N] int64 data-set rows.
    """

    embedding: Tensor
    fine: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


def collect(outputs: list[dict[str, Tensor]]) -> Embeddings:
    """Concatenate the batches of all ranks and remove the repeated rows that pad the ranks to equal length."""
    embedding = torch.cat([output["embedding"].float() for output in outputs])
    fine = torch.cat([output["fine"] for output in outputs])
    index = torch.cat([output["index"] for output in outputs])
    embedding, fine, index = gather_rows(embedding, fine, index)
    rows, first = np.unique(index.cpu().numpy(), return_index=True)
    chosen = torch.from_numpy(first).to(embedding.device)
    return Embeddings(embedding[chosen], fine[chosen], torch.from_numpy(rows).to(index))


@torch.no_grad()
def embed_rows(trainer: Trainer, method, loader) -> Embeddings:
    """Embed the images of a loader with the evaluated network."""
    outputs = []
    for number, batch in enumerate(loader):
        batch = trainer.strategy.batch_to_device(batch)
        with trainer.precision_plugin.forward_context():
            outputs.append(method.validation_step(batch, number))
    return collect(outputs)
