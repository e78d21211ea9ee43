"""OBD-SD: self-distillation with online batch diffusion around any metric-learning loss (Zeng et al., 2022)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fgssl.checkpoint import check_fits, read_checkpoint
from fgssl.data.batch import Batch
from fgssl.distributed import gather_rows
from fgssl.errors import UserError
from fgssl.evaluation.embedding import collect
from fgssl.losses.obd_sd import global_similarity, relation_distillation
from fgssl.methods.base import StepResult
from fgssl.methods.metric_learning import MetricLearning
from fgssl.nn.backbones import Backbone
from fgssl.nn.distillation import Distillation, similarity
from fgssl.nn.heads import mlp
from fgssl.nn.teacher import Pair, teacher_of


class OBDSD(MetricLearning):
    """Online batch diffusion-based self-distillation for deep metric learning (Zeng et al., 2022).

    :class:`MetricLearning` with a second term, the distillation of the similarities within a batch. Shapes: B batch of
    all processes, F feature, D embedding, K embedding of a head, N training images.

    Args:
        backbone: student network; the paper's are ResNet50 and BN-Inception with ImageNet weights.
        distillation: settings of the distillation.
    """

    def __init__(
        self,
        backbone: Backbone = Backbone("resnet50"),
        distillation: Distillation = Distillation(),
        **metric_learning,
    ):
        super().__init__(backbone, **metric_learning)
        if not self.normalize:
            raise UserError("model.normalize false: OBDSD compares cosines, of embeddings of unit length.")
        self.distillation = distillation
        features: Any = self.student.backbone.num_features
        if distillation.teacher in ("epoch", "pretrained"):
            self.teacher = teacher_of(self.student).eval()
            if distillation.teacher_precision == "bf16":
                self.teacher = self.teacher.to(memory_format=torch.channels_last)
        if distillation.teacher == "heads":
            self.heads = nn.ModuleList(mlp(features, d, d) for d in distillation.head_dims)
            self.head_losses = nn.ModuleList(self.new_loss(d)[0] for d in distillation.head_dims)
        self.variant += distillation.label
        self._resumed = False
        self._global: tuple[int, Tensor, Tensor] | None = None  # epoch, data-set rows [N], similarities [N, N]

    def teachers(self) -> list[Pair]:
        return [Pair(self.student, self.teacher, every="epoch")] if self.distillation.teacher == "epoch" else []

    def step(self, batch: Batch) -> StepResult:
        (images,) = batch.views
        h_BF = self.student.features(images)
        z_BD, labels_B = self.embeddings(h_BF, batch.fine)
        torch.manual_seed(self._draw_seed)  # so that every process draws the same triplets
        dml = self.metric_loss(self.dml_loss, z_BD, labels_B)
        weight = self.distillation.weight(self.current_epoch, self.epochs())
        if not weight and self.distillation.teacher != "heads":  # no forward of the teacher; heads train in every epoch
            return StepResult(dml, {"dml": dml})
        if self.distillation.teacher == "heads":
            dml, targets = self.from_heads(dml, h_BF, labels_B)
        else:
            targets = [self.from_teacher(images, batch.index)]
        d_BB = similarity(z_BD)
        losses = [relation_distillation(d_BB, target_BB, tau=self.distillation.tau) for target_BB in targets]
        kl = torch.stack(losses).mean()
        parts = {"dml": dml, "kl": kl, "distillation_weight": torch.tensor(weight)}
        return StepResult(dml + weight * kl, parts)  # Eq. 7

    def from_teacher(self, images: Tensor, index_B: Tensor) -> Tensor:
        """[B, B] targets from the student of the last epoch, or from the pretrained network."""
        with torch.no_grad():
            if self.distillation.manifold == "global":
                return torch.softmax(self.global_relations(index_B) / self.distillation.tau, dim=1)
            z_BD = self.teacher_embeddings(images)
            if self.across_processes:
                (z_BD,) = gather_rows(z_BD)
            return self.distillation.targets(similarity(z_BD))

    def teacher_embeddings(self, images: Tensor) -> Tensor:
        """[B, D] embeddings of the teacher, its backbone in ``distillation.teacher_precision``."""
        if self.distillation.teacher_precision == "training":
            return self.teacher(images)
        with torch.autocast(images.device.type, torch.bfloat16):
            h_BF = self.teacher.features(images.contiguous(memory_format=torch.channels_last))
        return self.teacher.project(h_BF.to(images.dtype))

    def from_heads(self, dml: Tensor, h_BF: Tensor, labels_B: Tensor) -> tuple[Tensor, list[Tensor]]:
        """S2SD-MSD: mean of the student's loss and of the heads' mean loss; and the targets [B, B] of each head."""
        losses, targets = [], []
        for head, head_loss in zip(self.heads, self.head_losses, strict=True):
            (z_BK,) = self.over_processes(nn.functional.normalize(head(h_BF), dim=1))
            losses.append(self.metric_loss(head_loss, z_BK, labels_B))
            targets.append(self.distillation.targets(similarity(z_BK)))
        return (dml + torch.stack(losses).mean()) / 2, targets

    def epochs(self) -> float:
        """Number of epochs T of the run; infinite if it has no end."""
        if self._trainer is None:
            return 1
        total = self.total_steps()
        return math.ceil(total / self.steps_per_epoch()) if math.isfinite(total) else total

    def follows_length(self) -> list[str]:
        grows = self.distillation.dynamic and self.distillation.teacher != "none"
        own = ["the weight of the distillation (model.distillation.dynamic)"] if grows else []
        return super().follows_length() + own

    # ---- diffusion over all training images (Sec. 5.5) ----------------------------------------------------------

    def global_relations(self, index_B: Tensor) -> Tensor:
        """[B, B] similarities of the teacher, diffused over the whole training set (Sec. 5.5).

        Computed for all training images at the first step of an epoch, also where a checkpoint resumes within one.
        """
        if self._global is None or self._global[0] != self.current_epoch:
            rows_N, z_ND = self.training_embeddings()
            d = self.distillation
            with torch.autocast(z_ND.device.type, enabled=False):
                a_NN = global_similarity(z_ND, omega=d.omega, neighbours=d.neighbours, power=d.power)
            self._global = (self.current_epoch, rows_N, a_NN)
        _, rows_N, a_NN = self._global
        (index_B,) = gather_rows(index_B) if self.across_processes else (index_B,)
        place_B = torch.searchsorted(rows_N, index_B)
        return a_NN[place_B][:, place_B]

    def training_embeddings(self) -> tuple[Tensor, Tensor]:
        """Data-set rows [N] of the training images, and the teacher's embeddings [N, D] of their plain views."""
        trainer: Any = self.trainer
        outputs = []
        with torch.random.fork_rng(devices=[]):  # a new loader draws a seed; the numbers of dropout stay
            for batch in trainer.datamodule.gallery_loader():
                batch = trainer.strategy.batch_to_device(batch)
                z_BD = self.teacher_embeddings(batch.views[0])
                outputs.append({"embedding": z_BD, "fine": batch.fine, "index": batch.index})
        collected = collect(outputs)
        return collected.index, nn.functional.normalize(collected.embedding, dim=1)

    # ---- hooks of Lightning -------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> "OBDSD":
        super().train(mode)
        if hasattr(self, "teacher"):
            self.teacher.eval()
        return self

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._resumed = True

    def on_fit_start(self) -> None:
        if self.distillation.teacher == "pretrained" and not self._resumed:
            self.load_teacher()  # a resumed run has its teacher in its own checkpoint

    def load_teacher(self) -> None:
        """Copy the student of ``distillation.checkpoint`` into the teacher.

        Raises:
            UserError: no checkpoint is given, or it holds another network.
        """
        path = self.distillation.checkpoint
        if path is None:
            raise UserError(
                "model.distillation.teacher pretrained needs model.distillation.checkpoint, a checkpoint of a run of "
                "OBDSD."
            )
        state = read_checkpoint(path)["state_dict"]
        weights = {name.removeprefix("student."): w for name, w in state.items() if name.startswith("student.")}
        check_fits(weights, self.teacher, path)
        self.teacher.load_state_dict(weights)
