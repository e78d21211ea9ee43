"""Linear probe: a linear classifier trained on the features of a frozen network."""

from typing import Any, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F

from fgssl.errors import UserError, at_least
from fgssl.evaluation.embedding import embed_rows
from fgssl.evaluation.linear_probe import block_features, feature_width, with_features
from fgssl.nn.backbones import Backbone
from fgssl.optim import Optim
from fgssl.tasks.finetune import Finetune

# eval_linear.py of DINO, EsViT and CMD; their cosine schedule changes per epoch, ours per step.
RECIPE = Optim(name="sgd", lr=1e-3, momentum=0.9, weight_decay=0.0, warmup=0, reference_batch=256)


class Probe(Finetune):
    """Linear classifier on the features of a frozen network (CMD, Bi et al., section V; EsViT, Li et al., ICLR 2022).

    ``fgssl probe`` makes its configuration for a checkpoint of any method or a public network. Takes one view per
    image: ``batch.views = [view]``. Shapes: B batch, F feature, C classes.

    Args:
        backbone: backbone architecture; with ``init_from`` the architecture of the checkpoint.
        init_from: checkpoint or run folder of any method whose backbone is loaded; null: weights as ``backbone`` says.
        network: network of the checkpoint; null: the teacher if it is updated after each step (CMD reports its
            features), else the student.
        blocks: number of last residual blocks whose pooled outputs are concatenated (EsViT: 4); 1: the pooled feature
            of the network, which DINO and EsViT use for a ResNet.
        unit_length: scale the features to unit length, as in LCR's released code.
        augment: train on random views (``data.views``); false: on the evaluation view, whose features are computed
            once.
        of: name of the probed method in tables, such as ``MaskCon``.
        num_fine: number of classes C; from the data set on the command line.
        optim: optimiser and learning rate schedule.
    """

    def __init__(
        self,
        backbone: Backbone = Backbone("resnet50"),
        init_from: str | None = None,
        network: Literal["student", "teacher"] | None = None,
        blocks: int = 4,
        unit_length: bool = False,
        augment: bool = True,
        of: str | None = None,
        num_fine: int = 0,
        optim: Optim = RECIPE,
        **base,
    ):
        at_least(1, blocks=blocks)
        if network and not init_from:
            raise UserError(f"--network {network} needs a checkpoint: give --ckpt_path RUN too.")
        super().__init__(backbone, init_from, network, frozen=True, num_fine=num_fine, optim=optim, **base)
        self.blocks, self.unit_length, self.augment, self.variant = blocks, unit_length, augment, of
        self.classifier = nn.Linear(feature_width(self.backbone, blocks), num_fine)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Features [B, F] of images [B, 3, H, W]; precomputed features [B, F] are returned as they are."""
        if images.ndim == 2:
            return images.to(self.dtype)
        features_BF = block_features(self.backbone, images, self.blocks)
        return F.normalize(features_BF, dim=1) if self.unit_length else features_BF

    # ---- features computed once ---------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if not self.augment:
            self._compute_features()

    def _compute_features(self) -> None:
        """Replace the images of the training and validation loaders by their features, in unchanged order."""
        trainer: Any = self.trainer
        data = trainer.datamodule
        train, val = data.train_dataloader, data.val_dataloader
        rows = embed_rows(trainer, self, data.gallery_loader())
        data.train_dataloader = lambda: with_features(train(), rows)
        if data.has_validation:
            held_out = embed_rows(trainer, self, val())
            data.val_dataloader = lambda: with_features(val(), held_out)
        images, width = rows.embedding.shape
        rank_zero_info(f"Computed {width} features of each of {images:,} training images.")

    def on_fit_end(self) -> None:
        trainer: Any = self.trainer
        for name in ("train_dataloader", "val_dataloader"):
            vars(trainer.datamodule).pop(name, None)  # restores the method of the class
