"""Base class of fine-tuning, probing, detection and segmentation, which start from a trained backbone."""

from dataclasses import replace
from typing import Any, Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn

from fgssl.checkpoint import checkpoint_file, followed_network, load_backbone
from fgssl.data.datasets.base import some
from fgssl.data.index import Index
from fgssl.errors import UserError
from fgssl.methods.base import Method
from fgssl.nn.backbones import Backbone
from fgssl.nn.weights import has_windows, load_weights

Whose = Literal["student", "teacher"]


class Downstream(Method):
    """Base class of tasks that start from the backbone of a checkpoint.

    A subclass builds its network from ``start_of(backbone)``, and overrides ``backbones`` if the default of ``Method``
    does not find it.

    Args:
        init_from: checkpoint or run folder of any method whose backbone is loaded; null: weights as ``backbone`` says.
        init_network: network of the checkpoint; null: the teacher if it is updated after each step, else the student.
        optim: optimiser and learning rate schedule.
    """

    def __init__(self, init_from: str | None = None, init_network: Whose | None = "student", **base):
        super().__init__(**base)
        self.init_from, self.init_network = init_from, init_network
        self.classes: tuple[str, ...] = ()  # names of the classes of the data that it was trained on
        self._resumed = False

    def start_of(self, backbone: Backbone) -> Backbone:
        """Settings of the backbone to build: without pretrained weights if ``init_from`` gives them."""
        return replace(backbone, pretrained=False, weights=None) if self.init_from else backbone

    def setup(self, stage: str) -> None:
        super().setup(stage)
        trainer: Any = self.trainer
        if stage == "fit" and trainer.datamodule is not None:
            self.classes = tuple(str(name) for name in trainer.datamodule.parts.index.fine_names)

    def knows_classes_of(self, index: Index) -> bool:
        """Whether the classes of a data set are those of the training, in their order, or those are not known."""
        return not self.classes or self.classes == tuple(str(name) for name in index.fine_names)

    def check_classes(self, index: Index) -> None:
        """Refuse data of other classes, whose numbers mean something else.

        Raises:
            UserError: names both.
        """
        if not self.knows_classes_of(index):
            raise UserError(
                f"the network was trained on other classes ({some(list(self.classes))}) than {index.name} has "
                f"({some(list(index.fine_names))}). Take data with the classes of the training, in their order."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["classes"] = {"names": list(self.classes)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.classes = tuple(checkpoint.get("classes", {}).get("names", ()))  # an earlier version did not keep them
        self._resumed = True

    def on_fit_start(self) -> None:
        if self.init_from and not self._resumed:  # the checkpoint of a resumed run holds the weights
            network: nn.Module = self.backbone_of("student")
            if has_windows(network):  # its weights may be those of a plain ViT
                path = str(checkpoint_file(self.init_from, "--model.init_from"))
                whose = self.init_network or followed_network(path)
                rank_zero_info(load_weights(network, path, whose, option="--model.init_from"))
            else:
                load_backbone(network, self.init_from, self.init_network)
