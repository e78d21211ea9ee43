"""Progress bar with images per second and the fraction of time spent waiting for data."""

import sys
import time

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities.rank_zero import rank_zero_only


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
            print_line(trainer, self.throughput)

    def get_metrics(self, trainer: Trainer, method) -> dict:
        metrics = super().get_metrics(trainer, method)
        metrics.pop("v_num", None)  # the run's name, already in the folder
        return {**metrics, **self.throughput.metrics()} if trainer.training else metrics


@rank_zero_only
def print_line(trainer: Trainer, throughput: Throughput) -> None:
    """Print one line for an epoch."""
    figures = {name: f"{value:.4g}" for name, value in trainer.progress_bar_metrics.items() if name != "v_num"}
    figures |= throughput.metrics()
    epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else "?"
    text = "  ".join(f"{name} {value}" for name, value in figures.items())
    print(f"epoch {trainer.current_epoch + 1}/{epochs}  {text}", flush=True)
