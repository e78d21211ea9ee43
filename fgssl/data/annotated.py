"""Base of the data modules of detection and segmentation: images with annotated boxes or pixels.

Files of validation and test images that do not fit their annotations are named before training starts.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fgssl.data.augment import Channels, normalise
from fgssl.data.datamodule import DataModule, Images
from fgssl.data.datasets.base import DataSet
from fgssl.data.draws import uniform
from fgssl.data.images import read_image
from fgssl.data.protocols import Protocol
from fgssl.errors import UserError, between


def read_pixels(path: str | Path) -> Tensor:
    """[3, H, W] uint8 of an image file; errors as in ``read_image``."""
    return torch.from_numpy(np.array(read_image(path))).permute(2, 0, 1)


class AnnotatedImages(Images):
    """Data set whose items are whole batches of images and annotations.

    A subclass reads one image and its annotation in ``_views``.

    Attributes:
        batch: class of a batch, built from lists of images and annotations, rows [B] and draws [B].
        count: number of random numbers for each image.
    """

    batch: Callable[..., Any]
    count = 1

    def __getitem__(self, pairs: np.ndarray) -> Any:
        """Read a batch of [B, 2] (position, draw) pairs; a UserError is returned, as by ``Images``."""
        positions, draws = pairs.T
        numbers = uniform(self.seed, draws, stream=0, count=self.count)
        try:
            read = [self._read(position, row) for position, row in zip(positions, numbers, strict=True)]
        except UserError as error:
            return error
        rows = torch.tensor([row for row, _ in read])
        images, annotations = zip(*(views for _, views in read), strict=True)
        return self.batch(list(images), list(annotations), rows, torch.from_numpy(draws.copy()))


class AnnotatedData(DataModule):
    """Batches of annotated images of different sizes, by a protocol. Prediction uses the test rows.

    Args:
        dataset: data set and its place on the disk.
        protocol: training, validation and test rows.
        flip: probability of a left-right flip of a training image.
        batch_size: images in a training batch over all processes; each process takes an equal share. An optimiser step
            sees ``batch_size`` x ``trainer.accumulate_grad_batches`` images.
        eval_batch_size: images in an evaluation batch of one process; null: a process's share of ``batch_size``.
        num_workers: loader processes of each training process; 0 reads in the training process itself. ``auto``: the
            cores that the job may use on this machine, divided by its training processes.
        prefetch: batches that each loader process reads ahead.
        on_error: ``error`` stops the run at an unreadable image and names its path; ``skip`` takes the next row instead
            and reports it at the end of the epoch, or of a test. Results of fewer test images stand in other tables.
        mean: channel means for normalisation, 0 to 1; null: those that the backbone's starting weights were trained
            with, ImageNet's where it has none.
        std: channel standard deviations for normalisation; null: as of ``mean``.
        seed: seed of the order and of the random views; the run's ``seed_everything``.

    Raises:
        UserError: the data set is missing or does not match, or a batch does not fit it.
    """

    def __init__(
        self,
        dataset: DataSet,
        protocol: Protocol = Protocol(),
        flip: float = 0.5,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int | Literal["auto"] = 4,
        prefetch: int = 2,
        on_error: Literal["error", "skip"] = "error",
        mean: Channels | None = None,
        std: Channels | None = None,
        seed: int = 0,
    ):
        between(0, 1, flip=flip)
        super().__init__(
            dataset, protocol, batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=num_workers,
            prefetch=prefetch, on_error=on_error, mean=mean, std=std, seed=seed,
        )  # fmt: skip
        self.flip = flip

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise, in the model's precision. Float batches are returned unchanged."""
        if batch.images[0].is_floating_point():
            return batch
        self._report_skipped()
        dtype = self.trainer.lightning_module.dtype if self.trainer is not None else torch.float32
        images = [normalise(image[None].float().div_(255), self.mean, self.std)[0].to(dtype) for image in batch.images]
        return batch._replace(images=images)
