"""Embeddings of a data set, gathered from all ranks in the order of the data set."""

from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from fgssl.distributed import gather_rows
from fgssl.errors import UserError
from fgssl.metrics.checks import not_finite


class Embeddings(NamedTuple):
    """N embedded images in ascending order of their data-set rows, each row once; equal on all ranks.

    Attributes:
        embedding: [N, F] float32 features.
        fine: [N] int64 labels; -1: none.
        index: [N] int64 data-set rows.
    """

    embedding: Tensor
    fine: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


def collect(outputs: list[dict[str, Tensor]]) -> Embeddings:
    """Concatenate the batches of all ranks and remove the repeated rows that pad the ranks to equal length.

    Peak memory is that of the outputs of this rank plus that of the result: one batch is gathered at a time.

    Args:
        outputs: ``embedding`` [B, F], ``fine`` and ``index`` [B] of each batch, as many and of the same sizes on every
            rank. The list is emptied, so that the memory of a batch is free once it is copied.
    """
    fine, index = gather_rows(*(torch.cat([output[name] for output in outputs]) for name in ("fine", "index")))
    rows, first = np.unique(index.cpu().numpy(), return_index=True)
    chosen = torch.from_numpy(first).to(index.device)
    place = torch.full_like(index, -1).index_put((chosen,), torch.arange(len(rows)).to(index))  # of each gathered row
    place = place.unflatten(0, (-1, sum(len(output["index"]) for output in outputs)))  # [ranks, rows of a rank]
    embedding, start = None, 0
    outputs.reverse()
    while outputs:
        (batch,) = gather_rows(outputs.pop()["embedding"].float())
        here = place[:, start : start + len(batch) // len(place)].flatten()
        if embedding is None:
            embedding = batch.new_empty(len(rows), *batch.shape[1:])
        embedding[here[here >= 0]] = batch[here >= 0]
        start += len(batch) // len(place)
    assert embedding is not None
    bad = not_finite(embedding)
    if bad:
        raise UserError(
            f"the features of {bad:,} of {len(rows):,} images hold NaN or Inf. Either the weights do, after a training "
            "that diverged (lower model.optim.lr, or go on from an earlier checkpoint), or trainer.precision is too "
            "narrow for this network (32-true is not)."
        )
    return Embeddings(embedding, fine[chosen], torch.from_numpy(rows).to(index))


def with_label(rows: Embeddings) -> Embeddings:
    """The rows that have a class label; the same object if all have."""
    has_label = rows.fine >= 0
    return rows if has_label.all() else Embeddings(*(column[has_label] for column in rows))


@torch.no_grad()
def embed_rows(trainer: Trainer, method, loader) -> Embeddings:
    """Embed the images of a loader with the evaluated network."""
    outputs = []
    for number, batch in enumerate(loader):
        batch = trainer.strategy.batch_to_device(batch)
        with trainer.precision_plugin.forward_context():
            outputs.append(method.validation_step(batch, number))
    return collect(outputs)
