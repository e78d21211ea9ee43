"""Progress bar with images per second and the fraction of time spent waiting for data."""

import sys
import time

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class Throughput:
    """Images per second over all processes, and the fraction of time between a step and the next batch."""

    def __init__(self):
        self.start()  # resuming within an epoch skips on_train_epoch_start

    def start(self) -> None:
        self.images, self.waited = 0, 0.0
        self.began = self.left_off = time.perf_counter()

    def batch_arrived(self) -> None:
        self.waited += time.perf_counter() - self.left_off

    def batch_done(self, images: int) -> None:
        self.images += images
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

    def metrics(self) -> dict[str, str]:
        return {"img/s": f"{self.images_per_second:.0f}", "waiting for data": f"{self.waiting:.0%}"}


class ProgressBar(RichProgressBar):
    """A bar on a terminal, one line for each epoch in a log file; figures of the current epoch.

    Args:
        throughput: measured by ``Monitor``, which stands before the bar among the callbacks.
    """

    def __init__(self, throughput: Throughput):
        super().__init__(refresh_rate=5)  # Lightning's 100 per second take one percent of a core
        self.throughput = throughput

    def on_train_epoch_end(self, trainer: Trainer, method) -> None:
        super().on_train_epoch_end(trainer, method)
        if not sys.stdout.isatty():
            print_line(trainer, method, self.throughput)

    def get_metrics(self, trainer: Trainer, method) -> dict:
        metrics = super().get_metrics(trainer, method)
        metrics.pop("v_num", None)  # the run's name, already in the folder
        if not trainer.training:
            return metrics
        return {"train/loss": method.last_loss, **metrics, **self.throughput.metrics()}


@rank_zero_only
def print_line(trainer: Trainer, method, throughput: Throughput) -> None:
    """Print one line for an epoch."""
    shown = {"train/loss": method.last_loss, **trainer.progress_bar_metrics}
    figures = {name: f"{value:.4g}" for name, value in shown.items() if name != "v_num"}
    figures |= throughput.metrics()
    epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else "?"
    text = "  ".join(f"{name} {value}" for name, value in figures.items())
    print(f"epoch {trainer.current_epoch + 1}/{epochs}  {text}", flush=True)
