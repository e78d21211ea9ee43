"""The methods, by the short names that a configuration uses."""

from fgssl.methods.frozen import Frozen
from fgssl.methods.maskcon import MaskCon

__all__ = ["Frozen", "MaskCon"]
