"""Throughput: only the time in the loader counts as waiting for data."""

import time

import pytest
import torch
from lightning.pytorch import Callback

from fgssl.callbacks.monitor import Monitor
from fgssl.data.datamodule import Loader
from tests.callbacks.test_teacher_and_queue import Toy
from tests.tiny import Blobs, collate, tiny_trainer


class Clock:
    """A clock that stands still but for ``work``."""

    def __init__(self):
        self.now = 0.0

    def work(self, seconds: float) -> None:
        self.now += seconds


class SlowBatches(Blobs):
    """Batches of 8 images that take 3 s each."""

    def __init__(self, clock: Clock):
        super().__init__(32)
        self.clock = clock

    def __getitem__(self, rows):
        self.clock.work(3)
        return collate([super(SlowBatches, self).__getitem__(row) for row in rows])


class SlowStep(Callback):
    """A step whose host side takes 1 s, and the device's work 4 s until someone waits for it before the next batch."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def on_train_batch_start(self, *_):
        self.clock.work(4)  # the copy of a batch to the device is queued behind the former step

    def on_train_batch_end(self, *_):
        self.clock.work(1)


def test_waiting_for_data_is_the_time_in_next_of_the_loader_alone(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    loader = Loader(SlowBatches(clock), [list(rows) for rows in torch.arange(32).split(8)])
    monitor = Monitor()
    tiny_trainer(max_epochs=2, callbacks=[SlowStep(clock), monitor]).fit(Toy(), loader)
    assert monitor.throughput.elapsed == 4 * (3 + 4 + 1)
    assert monitor.throughput.waiting == pytest.approx(3 / 8)
    assert monitor.throughput.images_per_second == pytest.approx(32 / 32)
