"""Pictures of what a masked autoencoder sees of an image, and what it makes of it."""

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from fgssl.data.datamodule import DataModule
from fgssl.data.preprocessing import Preprocessing
from fgssl.errors import at_least
from fgssl.report.figures import QUERY, picture_rows
from fgssl.report.pictures import log_picture
from fgssl.run import folder_of

GREY = 0.5  # of the hidden patches, 0 to 1


class Reconstructions(Callback):
    """Draws test images, their visible patches, and the image with the predicted hidden patches.

    Of MAE, in each test. File: ``reconstructions.jpg`` in the run folder; logged as ``test/reconstructions``. The
    images are from the first batch, and their masks are the same each time. With ``model.normalise_pixels`` a predicted
    patch has the mean and the contrast of the true one, which the network does not predict.

    Args:
        count: number of images, one in each row.
    """

    def __init__(self, count: int = 6):
        at_least(1, count=count)
        self.count = count

    def on_test_batch_end(
        self, trainer: Trainer, method, outputs, batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        ours = isinstance(trainer.datamodule, DataModule) and hasattr(method, "reconstruct")
        if not (ours and trainer.loggers and trainer.is_global_zero and batch_idx == 0):
            return
        images = batch.views[0]
        if tuple(images.shape[-2:]) != method.image_size:
            return  # of another size than in training, which the decoder has no positions for
        spread = torch.linspace(0, len(images) - 1, min(self.count, len(images)), device=images.device)
        images = images[spread.round().long()]
        painted, hidden = method.reconstruct(images)
        seen, painted, images = (in_colours(x, trainer.datamodule.preprocessing) for x in (images, painted, images))
        seen[hidden[:, 0].cpu().numpy()] = round(255 * GREY)
        words = ("image", "visible", "reconstruction")
        rows = [
            [(picture, word, QUERY) for picture, word in zip(row, words, strict=True)]
            for row in zip(images, seen, painted, strict=True)
        ]
        path = folder_of(trainer.loggers) / "reconstructions.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture_rows(rows, "test images and their reconstruction", path)
        log_picture(trainer.loggers, "test/reconstructions", path)


def in_colours(images: Tensor, preprocessing: Preprocessing) -> np.ndarray:
    """Normalised images [B, 3, H, W] as pixels [B, H, W, 3] uint8."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    shares = images.detach().float().cpu() * std + mean
    return (255 * shares.clamp(0, 1)).round().byte().permute(0, 2, 3, 1).numpy()
