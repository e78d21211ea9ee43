"""Progress bar with the remaining time of the run, images per second and the fraction of time waiting for data."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text


class Throughput:
    """Images per second over all processes, and the fraction of time spent waiting for data."""

    def __init__(self):
        self.start()  # resuming within an epoch skips on_train_epoch_start

    def start(self, waited: float = 0.0) -> None:
        """Begin an epoch; ``waited``: seconds that the loader has waited so far."""
        self.images, self.waited, self._waited_before = 0, 0.0, waited
        self.began = self.left_off = time.perf_counter()

    def batch_done(self, images: int, waited: float) -> None:
        """Count a batch; ``waited``: seconds that the loader has waited by now."""
        self.images += images
        self.waited = waited - self._waited_before
        self.left_off = time.perf_counter()

    @property
    def elapsed(self) -> float:
        return max(self.left_off - self.began, 1e-9)

    @property
    def images_per_second(self) -> float:
        return self.images / self.elapsed

    @property
    def waiting(self) -> float:
        """Fraction of the time spent waiting for data."""
        return self.waited / self.elapsed

    def texts(self) -> list[str]:
        return [f"{self.images_per_second:.0f} img/s", f"{100 * self.waiting:.0f} % waiting"]


class Clock:
    """Time until the end of the run, from the mean time of a batch since it was started or resumed."""

    def start(self, trainer: Trainer) -> None:
        self.began, self.first = time.perf_counter(), batches_done(trainer)

    def left(self, trainer: Trainer) -> float | None:
        """Seconds, validation included once there was one; None before the first batch or without an end."""
        done, total = batches_done(trainer), batches_in_all(trainer)
        if done <= self.first or not math.isfinite(total):
            return None
        return (time.perf_counter() - self.began) / (done - self.first) * max(total - done, 0)


def batches_done(trainer: Trainer) -> int:
    """Training batches of this process that are done, over all epochs."""
    return trainer.fit_loop.epoch_loop.total_batch_idx + 1


def batches_in_all(trainer: Trainer) -> float:
    """Training batches of this process in the whole run; infinite without ``max_epochs`` and ``max_steps``."""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    by_epochs = epochs * trainer.num_training_batches if epochs > 0 else math.inf
    return min(by_epochs, steps * trainer.accumulate_grad_batches if steps > 0 else math.inf)


def duration(seconds: float | None) -> str:
    """``1:02:03``, or ``-:--:--`` for None."""
    return "-:--:--" if seconds is None else str(timedelta(seconds=round(seconds)))


class Figures(ProgressColumn):
    """Last column of the bar: figures of the epoch for training, the remaining time for everything else."""

    def __init__(self, bar: "ProgressBar"):
        super().__init__(Column())  # the column that is cut on a narrow terminal
        self.bar = bar

    def render(self, task: Task) -> Text:
        training = task.id == self.bar.train_progress_bar_id
        text = "  ".join(self.bar.figures) if training else f"{duration(task.time_remaining)} left"
        return Text(text, no_wrap=True, overflow="ellipsis")


class ProgressBar(RichProgressBar):
    """A bar of at most 100 columns on a terminal, one line for each epoch in a log file.

    It shows the epoch, counted from 1, the remaining time of the whole run, the loss and the throughput of the epoch.

    Args:
        throughput: measured by ``Monitor``, which stands before the bar among the callbacks.
    """

    console: dict[str, Any] = {}  # options of rich.console.Console

    def __init__(self, throughput: Throughput):
        shown = Console(**self.console)
        self.on_terminal = shown.is_terminal or shown.is_jupyter
        # Lightning's 100 refreshes per second take one percent of a core.
        super().__init__(refresh_rate=5 if self.on_terminal else 0, console_kwargs=self.console)
        self.throughput, self.clock = throughput, Clock()
        self.figures: list[str] = []

    def configure_columns(self, trainer: Trainer) -> list:
        whole = Column(no_wrap=True)
        return [
            TextColumn("{task.description}", table_column=whole),
            BarColumn(bar_width=10, table_column=whole.copy()),
            MofNCompleteColumn(table_column=whole.copy()),
            Figures(self),
        ]

    def on_train_start(self, trainer: Trainer, method) -> None:
        super().on_train_start(trainer, method)
        self.clock.start(trainer)

    def on_train_epoch_end(self, trainer: Trainer, method) -> None:
        super().on_train_epoch_end(trainer, method)
        self.refresh(hard=True)
        if not self.on_terminal and trainer.is_global_zero:
            text = "  ".join(self._figures(trainer, method, super().get_metrics(trainer, method)))
            print(f"{self._get_train_description(trainer.current_epoch)}  {text}", flush=True)

    def get_metrics(self, trainer: Trainer, method) -> dict:
        """Nothing for Lightning's column, which would need a line of its own; ``Figures`` shows them."""
        if trainer.training:
            self.figures = self._figures(trainer, method, super().get_metrics(trainer, method))
        return {}

    def _figures(self, trainer: Trainer, method, metrics: dict) -> list[str]:
        metrics = {"loss": method.last_loss, **metrics}  # already on the host: a logged value would have to be fetched
        metrics = {name.removeprefix("train/"): value for name, value in metrics.items() if name != "v_num"}
        measured = [f"{name} {value:.4g}" for name, value in metrics.items()]
        return [f"run {duration(self.clock.left(trainer))} left", *measured, *self.throughput.texts()]

    def _get_train_description(self, current_epoch: int) -> str:
        epochs = self.trainer.max_epochs
        return f"Epoch {current_epoch + 1}" + (f" of {epochs}" if epochs and epochs > 0 else "")


@contextmanager
def counted(trainer: Trainer, description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar beside that of the training, if there is one; gives the function that sets how much is done."""
    bar = trainer.progress_bar_callback
    if not isinstance(bar, ProgressBar) or bar.progress is None:
        yield lambda done: None
        return
    progress, task = bar.progress, bar.progress.add_task(description, total=total)

    def set_done(done: int) -> None:
        progress.update(task, completed=done)
        bar.refresh()

    try:
        yield set_done
    finally:
        progress.refresh()
        progress.remove_task(task)
        progress.refresh()
