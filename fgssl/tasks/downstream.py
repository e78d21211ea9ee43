"""What fine-tuning, probing, detection and segmentation share: they start from a trained backbone."""

from dataclasses import replace
from typing import Any, Literal

from torch import nn

from fgssl.checkpoint import load_backbone
from fgssl.methods.base import Method
from fgssl.nn.backbones import Backbone

Whose = Literal["student", "teacher"]


class Downstream(Method):
    """Base of the tasks that start from the backbone of a checkpoint.

    A task builds its network from ``start_of(backbone)`` and names it in ``backbones()`` where the default of
    ``Method.backbones`` does not find it.

    Args:
        init_from: checkpoint or run folder of any method to start from, trained with the same ``backbone``; null: start
            from ``backbone`` as it is built.
        init_network: network of the checkpoint: ``student``, ``teacher``; null: the teacher where it has one that
            follows the student step by step, else the student.
        optim: optimiser and schedule.
    """

    def __init__(self, init_from: str | None = None, init_network: Whose | None = "student", **base):
        super().__init__(**base)
        self.init_from, self.init_network = init_from, init_network
        self._resumed = False

    def start_of(self, backbone: Backbone) -> Backbone:
        """The backbone to build: without weights of its own where ``init_from`` gives them."""
        return replace(backbone, pretrained=False, weights=None) if self.init_from else backbone

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._resumed = True

    def on_fit_start(self) -> None:
        if self.init_from and not self._resumed:  # a resumed run has its weights in its own checkpoint
            network: nn.Module = self.backbone_of("student")
            load_backbone(network, self.init_from, self.init_network)
