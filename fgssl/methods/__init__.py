"""The methods, by the short names that a configuration uses."""

from fgssl.methods.cmd import CMD
from fgssl.methods.detect import Detect
from fgssl.methods.finetune import Finetune
from fgssl.methods.flsl import FLSL
from fgssl.methods.frozen import Frozen
from fgssl.methods.maskcon import MaskCon
from fgssl.methods.mls import MLS
from fgssl.methods.obd_sd import OBDSD
from fgssl.methods.probe import Probe
from fgssl.methods.segment import Segment

__all__ = ["CMD", "FLSL", "MLS", "OBDSD", "Detect", "Finetune", "Frozen", "MaskCon", "Probe", "Segment"]
