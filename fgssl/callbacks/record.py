"""Writes ``config.yaml`` at the start of a run, and ``results.json`` during the run and at its end."""

import contextlib
import shutil
import time
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from fgssl.errors import UserError
from fgssl.loggers import MetricsLogger
from fgssl.run import GOING_ON, SignsOfLife, claim, folder_of_checkpoint, provenance, read_json, write_json

# Of an earlier start of the run.
KEPT = ("command", "resumed_by", "metrics", "epochs", "steps", "train_s", "timed_epochs")


class Record(Callback):
    """Write the configuration and the results of a run to its folder.

    ``train_s`` is the time of the ``timed_epochs`` whole epochs, each from its start to its last batch, in seconds:
    without validation, tests and set-up, which ``duration_s`` includes.

    A resumed run keeps the ``command`` that started it; those that resumed it are in ``resumed_by``.

    Args:
        folder: The run folder.
        config: Resolved configuration as YAML text.
        facts: Plain values for ``results.json`` (experiment, method, seed, ...).
    """

    def __init__(self, folder: Path, config: str, facts: dict[str, Any]):
        self.folder, self.config, self.facts = Path(folder), config, facts
        self.results: dict[str, Any] = {**facts, "status": "running", "metrics": {}}
        self._began = time.time()
        self._started = self._trained = self._tested_before = False
        self._epoch_began: float | None = None  # None: the run resumed within the epoch
        self._last_batch = 0.0
        self._signs: SignsOfLife | None = None

    def setup(self, trainer: Trainer, method, stage: str) -> None:
        if trainer.is_global_zero and not self._started:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._lock = claim(self.folder)
                keep_config(self.folder / "config.yaml", self.config)
                if stage == "fit" and folder_of_checkpoint(self.results.get("ckpt_path")) == self.folder.resolve():
                    self._go_on()
                else:
                    self._drop_rows(trainer, 0)  # of a start in this folder that failed before its first checkpoint
            except OSError as fault:
                raise UserError(f"run.root: nothing can be written to {self.folder} ({fault.strerror}).") from fault
            self._started = True
            for logger in trainer.loggers:
                logger.log_hyperparams(yaml.safe_load(self.config) | self.facts)  # what does not change during the run
            self._say_where(trainer)
            self._write()
            self._signs = SignsOfLife(self.folder / "results.json")

    def _go_on(self) -> None:
        """Take duration and metrics of a resumed run's earlier start.

        They hold until they are measured again, those of the test rows until a step is trained.
        """
        path = self.folder / "results.json"
        earlier = read_json(path) if path.is_file() else {}
        self.results |= {name: earlier[name] for name in KEPT if name in earlier}
        self._began -= earlier.get("duration_s", 0)
        self._tested_before = True

    def _drop_rows(self, trainer: Trainer, step: int) -> None:
        """Remove the logged rows of a step and later ones, which an earlier start wrote."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsLogger):
                logger.drop_after(step)

    def _say_where(self, trainer: Trainer) -> None:
        """Take command, versions and hardware of this start; a resumed run stays that of its first command."""
        said = provenance() | {"processes": trainer.world_size}
        if "command" in self.results:
            resumed_by = [*self.results.get("resumed_by", []), said.pop("command")]
            said["resumed_by"] = list(dict.fromkeys(resumed_by))
        self.results |= said

    def on_fit_start(self, trainer: Trainer, method) -> None:
        self.results["data"] = trainer.datamodule.describe()

    def on_train_start(self, trainer: Trainer, method) -> None:
        self._trained = True
        if trainer.global_step > 0:
            self._drop_rows(trainer, trainer.global_step)

    def on_save_checkpoint(self, trainer: Trainer, method, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = yaml.safe_load(self.config)

    def on_train_epoch_start(self, trainer: Trainer, method) -> None:
        self._epoch_began = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int) -> None:
        self._last_batch = time.perf_counter()
        if self._tested_before:  # with the weights of before this step
            self._tested_before = False
            metrics = self.results["metrics"]
            self.results["metrics"] = {name: metrics[name] for name in metrics if not name.startswith("test/")}

    def on_train_epoch_end(self, trainer: Trainer, method) -> None:
        if self._epoch_began is not None:
            self.results["train_s"] = self.results.get("train_s", 0.0) + self._last_batch - self._epoch_began
            self.results["timed_epochs"] = self.results.get("timed_epochs", 0) + 1
        self._epoch_began = None
        self._note(trainer, status="running")

    def on_fit_end(self, trainer: Trainer, method) -> None:
        # A run that chooses options on held-out training rows; or data without test images, such as COCO's for MLS.
        no_test = trainer.limit_test_batches == 0 or len(trainer.datamodule.parts.test) == 0
        self._note(trainer, status="finished" if no_test else "trained")

    def on_validation_end(self, trainer: Trainer, method) -> None:
        self.results["data"] = trainer.datamodule.describe()
        self._note(trainer, status="validated" if trainer.state.fn == "validate" else None)

    def on_test_end(self, trainer: Trainer, method) -> None:
        self.results["data"] = trainer.datamodule.describe()
        self._note(trainer, status="finished")

    def on_predict_end(self, trainer: Trainer, method) -> None:
        self.results["data"] = trainer.datamodule.describe()
        self._note(trainer, status="predicted")

    def on_exception(self, trainer: Trainer, method, exception: BaseException) -> None:
        interrupted = isinstance(exception, KeyboardInterrupt | SystemExit)
        self.results["error"] = f"{type(exception).__name__}: {exception}".removesuffix(": ")
        if self._started:
            with contextlib.suppress(OSError):  # the exception may be a full disk
                self._note(trainer, status="interrupted" if interrupted else "failed")

    @rank_zero_only
    def _note(self, trainer: Trainer, status: str | None = None) -> None:
        self.results["status"] = status or self.results["status"]
        self.results["metrics"] |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        if trainer.state.fn == "fit" and self._trained:
            self.results |= {"epochs": trainer.fit_loop.epoch_progress.current.processed, "steps": trainer.global_step}
        self.results["duration_s"] = round(time.time() - self._began, 1)
        self._write()
        if self._signs is not None and self.results["status"] not in GOING_ON:
            self._signs.stop()

    def _write(self) -> None:
        write_json(self.folder / "results.json", self.results)


def keep_config(path: Path, text: str) -> None:
    """Write ``config.yaml`` atomically; a different one from an earlier start of the run is kept under a number."""
    if path.is_file() and path.read_text() != text:
        number = 1 + len(list(path.parent.glob("config-*.yaml")))
        shutil.copy(path, path.with_name(f"config-{number}.yaml"))
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)
