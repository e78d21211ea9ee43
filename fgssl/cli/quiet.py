"""Messages and warnings of Lightning and other libraries that fgssl does not show."""

import logging
import re
import sys
import warnings
from typing import Any

LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric")
_CLUTTER = re.compile(  # messages of Lightning that repeat what we say, or advertise
    "Tip: For seamless|configure_callbacks. will override|[GT]PU available|Seed set to|LOCAL_RANK: |"
    "`Trainer.fit` stopped: `max_|Restor(ing|ed) |Loaded model weights|Detected KeyboardInterrupt"
)


class _CurrentStderr(logging.StreamHandler):
    """Writes to what ``sys.stderr`` is now: while a bar is shown, rich prints such lines above it."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, _: Any) -> None:
        """Ignore the stream of the constructor."""


def _is_wanted(record: logging.LogRecord) -> bool:
    return not _CLUTTER.search(record.getMessage())


def quieten() -> None:
    """Suppress warnings of libraries that do not help the user."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).addFilter(_is_wanted)
    for logger in map(logging.getLogger, LOGGERS):
        logger.handlers = [_CurrentStderr() for _ in logger.handlers]
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"  # without the line of code
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    warnings.filterwarnings("ignore", message="Found .* module.* in eval mode")  # teachers and frozen statistics
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message=".*have no `val_dataloader`")
    warnings.filterwarnings("ignore", message=".*sync_dist=True")  # what is logged is equal on all ranks, or rank 0's
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need to be provided")
    warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=".*number of training batches .* is smaller than the logging interval")
