"""Parts of MoCo that MLS, LCR and DenseCL share: query encoder, key encoder, and a memory of keys."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from fgssl.data.batch import Batch
from fgssl.data.draws import seed_of
from fgssl.errors import above, between
from fgssl.methods.base import Keys, Method
from fgssl.nn.shuffle import across_processes, synchronise_batch_norm
from fgssl.nn.teacher import Pair, teacher_of


class MomentumContrast(Method):
    """Base class of methods with a query encoder and its moving average (MoCo: He et al., CVPR 2020).

    A method builds ``self.query``, an encoder, then calls ``make_key``. Evaluation uses the features of the query
    encoder. ``batch.views = [view 1, view 2]``: the query encoder sees view 1, the key encoder view 2.

    Args:
        tau: Temperature of the contrastive losses.
        momentum: EMA momentum of the key encoder.
        keys_batch_norm: BatchNorm of the key encoder with several processes. ``shuffled``: each process encodes a
            random part of all images (MoCo); ``synchronised``: statistics over all processes; ``plain``: statistics
            of each process. No difference with one process.
    """

    default_views = {"class_path": "PairViews", "init_args": {"recipe": "moco"}}
    views_needed = (2, 2)
    query: Any
    key: Any

    def __init__(
        self,
        tau: float = 0.2,
        momentum: float = 0.999,
        keys_batch_norm: Literal["shuffled", "synchronised", "plain"] = "shuffled",
        **base,
    ):
        super().__init__(**base)
        between(0, 1, momentum=momentum)
        above(0, tau=tau)
        self.tau, self.momentum, self.keys_batch_norm = tau, momentum, keys_batch_norm
        self._shuffle_seed = 0

    def make_key(self) -> None:
        """Make the key encoder, a copy of the query encoder."""
        self.key = teacher_of(self.query)
        if self.keys_batch_norm == "synchronised":
            synchronise_batch_norm(self.key)

    def embed(self, images: Tensor) -> Tensor:
        return self.query.features(images)

    def teachers(self) -> list[Pair]:
        return [Pair(self.query, self.key)]

    def teacher_momentum(self, step: int, total: int) -> float:
        return self.momentum

    @torch.no_grad()
    def encoded(self, encode: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor) -> tuple[Tensor, ...]:
        """Outputs of ``encode``, a function of the key encoder, for view 2, with the BatchNorm of the option."""
        if self.keys_batch_norm == "shuffled":
            return across_processes(encode, images, seed=self._shuffle_seed)
        return encode(images)

    def entries(self, keys_BD: Tensor, batch: Batch) -> dict[str, Keys]:
        """Keys, draws and rows that enter the memory; draw (in place of a label) and row identify the crop."""
        draw = batch.draw.to(keys_BD.device, non_blocking=True)  # the data module keeps it on the CPU
        return {"memory": (keys_BD, draw, batch.index)}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self._shuffle_seed = seed_of(self._seed, self.current_epoch, batch_idx)  # the same in all processes
