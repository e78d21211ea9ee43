"""fgssl: fine-grained and self-supervised visual learning on PyTorch Lightning."""

import importlib
from typing import Any

__version__ = "0.2.0"

# Public names and the modules they are in, imported at first use: torch and Lightning take seconds to import.
_PUBLIC = {
    "Method": "fgssl.methods.base",
    "StepResult": "fgssl.methods.base",
    "BYOL": "fgssl.methods",
    "BYOLLCR": "fgssl.methods",
    "CMD": "fgssl.methods",
    "DenseCL": "fgssl.methods",
    "FLSL": "fgssl.methods",
    "LCR": "fgssl.methods",
    "LEWEL": "fgssl.methods",
    "MAE": "fgssl.methods",
    "MLS": "fgssl.methods",
    "BarlowTwins": "fgssl.methods",
    "MaskCon": "fgssl.methods",
    "MetricLearning": "fgssl.methods",
    "OBDSD": "fgssl.methods",
    "SimCLR": "fgssl.methods",
    "SimSiam": "fgssl.methods",
    "SwAV": "fgssl.methods",
    "VICReg": "fgssl.methods",
    "Detect": "fgssl.tasks",
    "Finetune": "fgssl.tasks",
    "Frozen": "fgssl.tasks",
    "Probe": "fgssl.tasks",
    "Segment": "fgssl.tasks",
    "Backbone": "fgssl.nn.backbones",
    "Encoder": "fgssl.nn.backbones",
    "Memory": "fgssl.nn.memory",
    "Optim": "fgssl.optim",
    "load": "fgssl.inference.model",
    "Model": "fgssl.inference.model",
    "Index": "fgssl.inference.index",
    "Hit": "fgssl.inference.index",
    "Preprocessing": "fgssl.data.preprocessing",
    "Digits": "fgssl.data.datasets",
    "Folder": "fgssl.data.datasets",
    "HuggingFace": "fgssl.data.datasets",
    "Items": "fgssl.data.datasets",
    "PairViews": "fgssl.data.views",
    "SingleView": "fgssl.data.views",
    "ContrastiveCrop": "fgssl.data.views",
    "MultiCrop": "fgssl.data.views",
    "NestedCrops": "fgssl.data.views",
    "DataModule": "fgssl.data.datamodule",
    "Protocol": "fgssl.data.protocols",
    "Rerank": "fgssl.evaluation.reranking",
    "Retrieval": "fgssl.callbacks.retrieval",
    "UserError": "fgssl.errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fgssl' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
