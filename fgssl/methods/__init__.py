"""The methods, by the short names that a configuration uses."""

from fgssl.methods.barlow_twins import BarlowTwins
from fgssl.methods.byol import BYOL
from fgssl.methods.cmd import CMD
from fgssl.methods.densecl import DenseCL
from fgssl.methods.flsl import FLSL
from fgssl.methods.lcr import BYOLLCR, LCR
from fgssl.methods.lewel import LEWEL
from fgssl.methods.mae import MAE
from fgssl.methods.maskcon import MaskCon
from fgssl.methods.metric_learning import MetricLearning
from fgssl.methods.mls import MLS
from fgssl.methods.obd_sd import OBDSD
from fgssl.methods.simclr import SimCLR
from fgssl.methods.simsiam import SimSiam
from fgssl.methods.swav import SwAV
from fgssl.methods.vicreg import VICReg

__all__ = [
    "BYOL",
    "BYOLLCR",
    "CMD",
    "FLSL",
    "LCR",
    "LEWEL",
    "MAE",
    "MLS",
    "OBDSD",
    "BarlowTwins",
    "DenseCL",
    "MaskCon",
    "MetricLearning",
    "SimCLR",
    "SimSiam",
    "SwAV",
    "VICReg",
]
