"""Small things that the tests of methods and callbacks share: images of blobs, a loader, a network, a trainer."""

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fgssl.data.batch import Batch
from fgssl.nn.backbones import Backbone

BACKBONE = Backbone("resnet18", small_input=True, options={"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]})


class Blobs(Dataset):
    """N float images of a class-dependent colour in two noisy views; fine label i % 4, coarse label fine // 2."""

    def __init__(self, count: int, size: int = 8):
        generator = torch.Generator().manual_seed(0)
        self.fine = torch.arange(count) % 4
        colours = torch.randn(4, 3, 1, 1, generator=generator)
        self.views = [
            colours[self.fine] + 0.3 * torch.randn(count, 3, size, size, generator=generator) for _ in range(2)
        ]

    def __len__(self) -> int:
        return len(self.fine)

    def __getitem__(self, row: int) -> tuple[list[Tensor], Tensor, int]:
        return [view[row] for view in self.views], self.fine[row], row


def collate(items: list) -> Batch:
    views = [torch.stack(view) for view in zip(*(item[0] for item in items), strict=True)]
    fine, index = torch.stack([item[1] for item in items]), torch.tensor([item[2] for item in items])
    return Batch(views, fine, fine // 2, index, index)


def blob_loader(count: int = 32, batch_size: int = 8) -> DataLoader:
    """Batches in a fixed order."""
    return DataLoader(Blobs(count), batch_size, collate_fn=collate)


def tiny_trainer(**options) -> Trainer:
    """A silent CPU trainer."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "devices": 1, "max_epochs": 1}
    return Trainer(**(quiet | options))
