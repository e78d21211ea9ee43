"""Samplers: the images of each batch.

A sampler yields a [B, 2] int64 array for each batch with the columns *position* (index into the rows that are loaded)
and *draw* (serial number of the sample in the run, see ``Batch.draw``; -1 in evaluation). The order of an epoch is a
function of seed and epoch, so that a checkpoint holds the epoch and the batch only.

G images in a global batch, W processes, G / W images of it in each process.
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from fgssl.errors import UserError


class TrainSampler(Sampler):
    """Global batches of an epoch; rank r takes the r-th of W equal slices of each.

    The slices of all ranks, in rank order, are the batch of a single process. The last, incomplete batch of an epoch is
    left out.

    Args:
        images: number of training images.
        batch_size: G, images in a batch over all processes.
        seed: seed of the order.
        epoch: first epoch; -1 is the pass that fills a memory before epoch 0.
        start_batch: first batch of that epoch; later epochs start at 0.
        rank: rank of this process.
        world: number of processes.

    Raises:
        UserError: a global batch holds more images than there are, or the processes cannot share it equally.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        start_batch: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        if batch_size > images:
            raise UserError(
                f"data.batch_size is {batch_size}, and there are {images} training images. Lower it to "
                f"{images // world * world} or less."
            )
        if batch_size % world:
            below = batch_size // world * world
            nearest = f"{below} or {below + world}" if below else f"{world}"
            raise UserError(
                f"data.batch_size is {batch_size} images over all processes, and {world} processes cannot share them "
                f"equally. Set it to {nearest}, or change trainer.devices or trainer.num_nodes."
            )
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.epoch, self.start_batch = epoch, start_batch
        self.rank, self.world = rank, world

    def order(self, epoch: int) -> np.ndarray:
        """Positions in the order of the epoch, int64."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Batches of a whole epoch, also where the epoch starts at a later batch: trainers count progress by it."""
        return self.images // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each."""
        if epoch != self.epoch:
            self.epoch, self.start_batch = epoch, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        # Not a generator: loaders ask for the first batches before Lightning calls set_epoch.
        used = len(self) * self.batch_size
        serial = (self.epoch + 1) * self.images + np.arange(used)
        pairs = np.stack([self.order(self.epoch)[:used], serial], axis=1)
        return iter(pairs.reshape(len(self), self.world, -1, 2)[self.start_batch :, self.rank])


class Shuffled(TrainSampler):
    """Every image once per epoch, in random order."""

    def order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch + 1]).permutation(self.images)


class ClassBalanced(TrainSampler):
    """Global batches of ``G / images_per_class`` classes with ``images_per_class`` images each (metric learning).

    Batches are drawn independently: an image can occur several times in an epoch, or not at all.

    Args:
        labels: [N] class of each training image.
        batch_size: G, images in a batch over all processes.
        images_per_class: images of each class in a global batch (OBD-SD: 2).
        replacement: draw classes and images with replacement, as OBD-SD's released code does: an image can be paired
            with itself. False: the classes of a batch are distinct, and the images of a class where it has enough.
        **options: as in TrainSampler.

    Raises:
        UserError: G is no multiple of ``images_per_class``, or there are too few classes.
    """

    def __init__(
        self, labels: np.ndarray, batch_size: int, *, images_per_class: int = 2, replacement: bool = False, **options
    ):
        super().__init__(len(labels), batch_size, **options)
        self.images_per_class, self.replacement = images_per_class, replacement
        classes, starts = np.unique(np.sort(labels), return_index=True)
        self.members = np.split(np.argsort(labels, kind="stable"), starts[1:])
        self.classes_per_batch, rest = divmod(batch_size, images_per_class)
        if rest:
            raise UserError(
                f"data.batch_size ({batch_size}) must be a multiple of data.images_per_class ({images_per_class})."
            )
        if self.classes_per_batch > len(classes) and not replacement:
            raise UserError(
                f"A batch of {batch_size} with {images_per_class} images per class needs {self.classes_per_batch} "
                f"classes; the training images have {len(classes)}. Lower data.batch_size or set "
                "data.replacement to true."
            )

    def order(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch + 1])
        return np.concatenate([self._global_batch(rng) for _ in range(len(self))])

    def _global_batch(self, rng: np.random.Generator) -> np.ndarray:
        classes = rng.choice(len(self.members), self.classes_per_batch, replace=self.replacement)
        return np.concatenate([self._images(rng, self.members[label]) for label in classes])

    def _images(self, rng: np.random.Generator, members: np.ndarray) -> np.ndarray:
        replace = self.replacement or len(members) < self.images_per_class
        return rng.choice(members, self.images_per_class, replace=replace)


class EvalShard(Sampler):
    """Every image in order, in one block for each rank.

    Where the images cannot be divided equally, the first ones are repeated at the end, so that all ranks have batches
    of the same sizes; ``Batch.index`` identifies the duplicates.

    Args:
        images: number of images.
        batch_size: images in a batch of one process.
        rank: rank of this process.
        world: number of processes.
    """

    def __init__(self, images: int, batch_size: int, *, rank: int = 0, world: int = 1):
        each = -(-images // world)
        self.positions = np.resize(np.arange(images), (world, each))[rank]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.positions) // self.batch_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        pairs = np.stack([self.positions, np.full_like(self.positions, -1)], axis=1)
        return (pairs[start : start + self.batch_size] for start in range(0, len(pairs), self.batch_size))
