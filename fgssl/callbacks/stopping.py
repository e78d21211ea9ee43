"""Ctrl-C and SIGTERM during training: stop between two optimiser steps instead of at once."""

import os
import signal
import threading
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from fgssl.distributed import any_rank

SIGNALS = (signal.SIGTERM, signal.SIGINT)
FINISHING = b"\nCtrl-C: the step is finished and last.ckpt written. Ctrl-C again stops at once.\n"


class Stopped(SIGTERMException):
    """Ends a fit that was asked to stop by ``signal``; the checkpoint is written."""

    signal = signal.SIGTERM


class Stopping(Callback):
    """Note SIGTERM and Ctrl-C (SIGINT) while the memories are filled and while the method is trained.

    Clusters send SIGTERM before they stop a job. ``LastCheckpoint`` asks after each optimiser step, and ``QueueUpdate``
    after each batch of the filling, whether a process received one of them. A second Ctrl-C raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}  # handlers outside of training

    def on_train_start(self, trainer: Trainer, method) -> None:
        self.received = None
        if threading.current_thread() is threading.main_thread():  # Python sets handlers in the main thread only
            # Replaces Lightning's handler of SIGTERM, which calls a collective inside the signal handler.
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
            # Before each batch Lightning asks all processes for a SIGTERM, and waits for their devices to answer.
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        self._tells = trainer.is_global_zero

    def _note(self, number: int, *_) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGINT and self._tells:
            os.write(2, FINISHING)  # print may be interrupted by the handler in the middle of a line
        self.received = signal.Signals(number)

    def restore_handlers(self) -> None:
        """Give the signals back to the handlers from before the training."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_train_end(self, trainer: Trainer, method) -> None:
        self.restore_handlers()

    def on_exception(self, trainer: Trainer, method, exception: BaseException) -> None:
        self.restore_handlers()


def stop_of(trainer: Trainer, device) -> Stopped | None:
    """The exception that ends the fit if any process was asked to stop, else None. All ranks must call it."""
    return stopped(trainer) if any_rank(stop_requested(trainer), device) else None


def stop_requested(trainer: Trainer) -> bool:
    """Whether this process was asked to stop."""
    return _received(trainer) is not None


def stopped(trainer: Trainer) -> Stopped:
    """The exception that ends the fit, with the signal of this process or, if another was asked to stop, SIGTERM."""
    stop = Stopped()
    stop.signal = _received(trainer) or signal.SIGTERM
    return stop


def _received(trainer: Trainer) -> signal.Signals | None:
    stopping = next((callback for callback in trainer.callbacks if isinstance(callback, Stopping)), None)
    return None if stopping is None else stopping.received
