"""Batches of images and labels."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    """B images and their labels.

    Attributes:
        views: list of [B, 3, H, W] tensors, one for each crop; uint8 from the loader, float32 and normalised after
            ``on_after_batch_transfer``. Evaluation has one view.
        fine: [B] int64 fine labels.
        coarse: [B] int64 coarse labels, -1 where the data set has none.
        index: [B] int64 row in the data set's index.
        draw: [B] int64 serial number of each sample in the run. Together with the seed it determines all random numbers
            of its views, for any number of workers and processes and after a resume.
    """

    views: list[Tensor]
    fine: Tensor
    coarse: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody asks a batch for
    draw: Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy values that were computed on the CPU to a device, without waiting for its work."""
    if device.type in ("cpu", "mps"):
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def empty_images(shape: tuple[int, ...], dtype: type[np.generic]) -> Tensor:
    """Uninitialised tensor on the CPU for the images of a batch.

    Its memory comes from NumPy, which asks Linux for pages of 2 MB. With torch's pages of 4 kB, the first write to two
    views of 224 px takes 0.4 ms an image, a quarter of their augmentation.
    """
    return torch.from_numpy(np.empty(shape, dtype))
