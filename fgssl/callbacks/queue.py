"""Updates the memories."""

import itertools
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from fgssl.callbacks.progress import counted
from fgssl.callbacks.stopping import stop_of
from fgssl.distributed import check_equal_on_ranks, gather_rows
from fgssl.errors import UserError
from fgssl.nn.memory import Memory

CHECK_EVERY = 100  # optimiser steps between two comparisons of the memories over the ranks


class QueueUpdate(Callback):
    """Enqueue the keys of a step after the optimiser has stepped, identically on every rank.

    Accumulated batches are enqueued together after their optimiser step, so that none of them sees the keys of another,
    as in one large batch. Before the first epoch the memories are filled with keys of training images.
    """

    def on_train_start(self, trainer: Trainer, method) -> None:
        self._step = trainer.global_step
        self._waiting: list[dict] = []
        memories = method.memories()
        if memories and all(memory.fill == 0 for memory in memories.values()):
            _prefill(trainer, method)

    def on_train_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int) -> None:
        if outputs["enqueue"] and not method.skipped:
            self._waiting.append(outputs["enqueue"])
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        for entries in self._waiting:
            enqueue(method, entries)
        self._waiting = []
        if self._step % CHECK_EVERY == 0:
            check_equal_on_ranks({name: m.checksum() for name, m in method.memories().items()}, self._step)


def enqueue(method, entries: dict[str, tuple[Tensor, Tensor, Tensor]]) -> None:
    """Gather keys, labels and rows from all ranks and put them into the memory of each name."""
    for name, rows in entries.items():
        memory_of(method, name).enqueue(*gather_rows(*rows))


def memory_of(method, name: str) -> Memory:
    """The memory of a name.

    Raises:
        UserError: the method has none of this name.
    """
    try:
        return method.get_submodule(name)
    except AttributeError:
        known = ", ".join(method.memories()) or "none"
        raise UserError(
            f"{type(method).__name__} enqueues keys by the name '{name}', but its memories are: {known}."
        ) from None


@torch.no_grad()
def _prefill(trainer: Trainer, method) -> None:
    """Run the training images once through the method's key side until every memory is just full."""
    memories = list(method.memories().values())
    length = max(memory.length for memory in memories)
    rank_zero_info(f"Filling the memory with {length} keys.")
    # Another order and other crops than the first epoch's; not the loader that the first epoch has already started.
    datamodule = trainer.datamodule
    loader: Any = datamodule.train_loader(epoch=-1) if datamodule is not None else trainer.train_dataloader
    if trainer.fast_dev_run:  # a memory that is filled in part works as well
        loader = itertools.islice(loader, int(trainer.fast_dev_run))
    with counted(trainer, "Filling the memory", length) as set_done:
        for batch in loader:
            stop = stop_of(trainer, method.device)
            if stop is not None:
                raise stop
            batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
            with trainer.precision_plugin.forward_context():
                entries = method.prefill(batch)
            for name, rows in entries.items():
                memory = memory_of(method, name)
                room = memory.length - memory.fill
                memory.enqueue(*(row[:room] for row in gather_rows(*rows)))
            set_done(max(memory.fill for memory in memories))
            if all(memory.fill == memory.length for memory in memories):
                return
    if trainer.fast_dev_run:
        return
    # One pass may end short of the memory, which the first steps then fill (Stanford Cars: 8,064 of 8,192 keys).
    longest = max(memories, key=lambda memory: memory.length)
    if longest.length > 2 * longest.fill:
        rank_zero_warn(
            f"model.memory is {longest.length}, more than twice the {longest.fill} images of an epoch: once it is full "
            "every image always meets older keys of its own in it. Lower model.memory to at most an epoch's images."
        )
