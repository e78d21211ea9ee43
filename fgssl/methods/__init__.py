"""The methods, by the short names that a configuration uses."""

from fgssl.methods.maskcon import MaskCon

__all__ = ["MaskCon"]
