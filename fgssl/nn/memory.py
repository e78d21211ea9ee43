"""Memory bank: a first-in first-out queue of keys with their labels and data-set rows."""

import torch
from torch import Tensor, nn


class Memory(nn.Module):
    """FIFO memory of K keys of D dimensions.

    ``keys`` [fill, D], ``labels`` [fill] and ``index`` [fill] show the filled slots only. The contents are buffers and
    the position is extra state, so a checkpoint holds both. Ranks that enqueue the same keys in the same order hold the
    same memory.

    Args:
        length: Number of keys K.
        dim: Dimension D of a key.
    """

    keys_KD: Tensor
    labels_K: Tensor
    index_K: Tensor

    def __init__(self, length: int, dim: int):
        super().__init__()
        self.length = length
        self.pointer = 0  # slot of the next key; plain integers, so that no step waits for the device
        self.fill = 0
        self.register_buffer("keys_KD", torch.zeros(length, dim))
        self.register_buffer("labels_K", torch.full((length,), -1))
        self.register_buffer("index_K", torch.full((length,), -1))

    @property
    def keys(self) -> Tensor:
        """[fill, D] keys in the order of the slots."""
        return self.keys_KD[: self.fill]

    @property
    def labels(self) -> Tensor:
        """[fill] labels (int64)."""
        return self.labels_K[: self.fill]

    @property
    def index(self) -> Tensor:
        """[fill] data-set rows (int64)."""
        return self.index_K[: self.fill]

    @torch.no_grad()
    def enqueue(self, keys: Tensor, labels: Tensor, index: Tensor) -> None:
        """Overwrite the oldest entries by a batch of any length; of a batch longer than K the last K keys stay.

        Args:
            keys: [B, D] keys, on the device of the memory.
            labels: [B] labels, on the same device.
            index: [B] data-set rows, on the same device.
        """
        start, count = self.pointer, len(keys)
        kept = min(count, self.length)
        slots = (start + torch.arange(count - kept, count, device=keys.device)) % self.length
        for buffer, values in ((self.keys_KD, keys), (self.labels_K, labels), (self.index_K, index)):
            buffer[slots] = values[count - kept :].to(buffer.dtype)
        self.pointer = (start + count) % self.length
        self.fill = min(self.fill + count, self.length)

    def checksum(self) -> Tensor:
        """int64 scalar that is equal for equal memories, computed from all bits and their slots."""
        slots = torch.arange(1, self.length + 1, device=self.keys_KD.device)
        bits_K = sum(
            rows.view(self.length, -1).view(torch.int16).sum(1, dtype=torch.int64)
            for rows in (self.keys_KD, self.labels_K, self.index_K)
        )
        return (bits_K * slots).sum() + self.pointer

    def get_extra_state(self) -> dict[str, int]:
        return {"pointer": self.pointer, "fill": self.fill}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.pointer, self.fill = state["pointer"], state["fill"]
