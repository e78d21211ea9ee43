"""The methods, by the short names that a configuration uses."""

from fgssl.methods.barlow_twins import BarlowTwins
from fgssl.methods.cmd import CMD
from fgssl.methods.flsl import FLSL
from fgssl.methods.mae import MAE
from fgssl.methods.maskcon import MaskCon
from fgssl.methods.mls import MLS
from fgssl.methods.obd_sd import OBDSD
from fgssl.methods.swav import SwAV
from fgssl.methods.vicreg import VICReg

__all__ = ["CMD", "FLSL", "MAE", "MLS", "OBDSD", "BarlowTwins", "MaskCon", "SwAV", "VICReg"]
