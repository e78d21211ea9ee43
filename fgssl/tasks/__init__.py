"""Tasks on a trained network, by the short names that a configuration uses."""

from fgssl.tasks.detect import Detect
from fgssl.tasks.finetune import Finetune
from fgssl.tasks.frozen import Frozen
from fgssl.tasks.probe import Probe
from fgssl.tasks.segment import Segment

__all__ = ["Detect", "Finetune", "Frozen", "Probe", "Segment"]
