"""Boxes of the objects in the training images, for ContrastiveCrop."""

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from fgssl.callbacks.online import evaluating
from fgssl.callbacks.progress import counted
from fgssl.data.views import ContrastiveCrop
from fgssl.distributed import gather_rows
from fgssl.nn.feature_map import last_features


class ObjectBoxes(Callback):
    """Locate the object of each training image by the trained network, before the epochs that ContrastiveCrop names.

    Each process takes its share of the images. The boxes of all are kept where the loader processes read them
    (``DataModule.objects``), and in the checkpoint of the data module.
    """

    def __init__(self) -> None:
        self._first = 0  # epoch that this fit began with

    def on_fit_start(self, trainer: Trainer, method) -> None:
        """Before the loader of the first epoch reads ahead; later ones do so after ``on_train_epoch_start``."""
        self._first, batch = trainer.datamodule.next_batch
        if batch == 0:  # else the checkpoint holds the boxes
            _update(trainer, method, self._first)

    def on_train_epoch_start(self, trainer: Trainer, method) -> None:
        if trainer.current_epoch != self._first:
            _update(trainer, method, trainer.current_epoch)


def _update(trainer: Trainer, method, epoch: int) -> None:
    data = trainer.datamodule
    if data.views.due(epoch):
        index, boxes = locate(trainer, method, data.views)
        data.objects[index.cpu()] = boxes.cpu()


def locate(trainer: Trainer, method, views: ContrastiveCrop) -> tuple[Tensor, Tensor]:
    """Rows [N] and boxes [N, 4] of the training images, the same on all ranks; some rows occur twice."""
    data, found = trainer.datamodule, []
    loader = data.whole_loader()
    with counted(trainer, "Locating the objects", len(loader)) as set_done:
        for number, batch in enumerate(loader):
            batch = trainer.strategy.batch_to_device(batch)
            with evaluating(method), trainer.precision_plugin.forward_context():
                map_BFHW = last_features(method.backbone_of("student"), batch.views[0])[1]
            found.append((batch.index, object_boxes(map_BFHW, batch.views[0].shape[-1], views.threshold)))
            set_done(number + 1)
    index, boxes = (torch.cat(column) for column in zip(*found, strict=True))
    index, boxes = gather_rows(index, boxes)
    return index, boxes


def object_boxes(map_BFHW: Tensor, size: int, threshold: float) -> Tensor:
    """Boxes [B, 4] (x0, y0, x1, y1) around the positions of feature maps whose sum over the channels is large.

    As in ContrastiveCrop's released code: the sum is stretched to 0 to 1 in each image and resized to ``size`` px, and
    a box reaches from the first to the last row and column with a value above ``threshold``. Where no value is above
    it, as in a constant map, the box is the whole image.

    Args:
        map_BFHW: feature maps [B, F, H, W].
        size: side of the images, px.
        threshold: 0 to below 1.

    Returns:
        Shares of width and height, float64.
    """
    heat_BHW = map_BFHW.float().sum(dim=1)
    heat_BHW = heat_BHW - heat_BHW.amin(dim=(1, 2), keepdim=True)
    heat_BHW = heat_BHW / heat_BHW.amax(dim=(1, 2), keepdim=True)
    above_BSS = F.interpolate(heat_BHW[:, None], size=(size, size), mode="bilinear")[:, 0] > threshold
    x0, x1 = _first_and_last(above_BSS.any(dim=1))
    y0, y1 = _first_and_last(above_BSS.any(dim=2))
    boxes_B4 = torch.stack([x0, y0, x1, y1], dim=1).double() / size
    whole_4 = torch.tensor([0.0, 0.0, 1.0, 1.0]).to(boxes_B4)
    return torch.where(above_BSS.any(dim=(1, 2))[:, None], boxes_B4, whole_4)


def _first_and_last(above_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of the first and the last true value of each row."""
    there = above_BS.int()
    return there.argmax(dim=1), there.shape[1] - 1 - there.flip(1).argmax(dim=1)
