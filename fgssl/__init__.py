"""fgssl: fine-grained and self-supervised visual learning on PyTorch Lightning."""

__version__ = "0.1.0"
