"""OBD-SD: self-distillation with online batch diffusion round any metric-learning loss, and its paper's rivals."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fgssl.checkpoint import read_checkpoint
from fgssl.data.batch import Batch
from fgssl.distributed import gather_rows, gather_with_gradient
from fgssl.errors import UserError
from fgssl.evaluation.embedding import collect
from fgssl.losses.obd_sd import diffused_targets, distillation_weight, global_similarity, relation_distillation
from fgssl.losses.precision import at_least_float32
from fgssl.methods.base import Method, StepResult
from fgssl.nn.backbones import Backbone, Encoder
from fgssl.nn.dml import Margin, MultiSimilarity, Spec, build_dml
from fgssl.nn.heads import mlp
from fgssl.nn.teacher import Pair, teacher_of


@dataclass(frozen=True)
class Distillation:
    """Whose relations the student imitates, how they are refined, and how much they weigh.

    Args:
        teacher: ``none``; ``epoch``: the student as it stood at the end of the last epoch (PSD, OBD-SD);
            ``pretrained``: a trained network that stays as it is (BAR); ``heads``: heads of higher dimension on the
            student's own backbone, trained with it (S2SD-MSD).
        lam: lambda.
        dynamic: weigh by lambda t / T (Eq. 2); false: by lambda throughout.
        tau: temperature of the relations.
        omega: of the diffusion; 0 leaves the teacher's relations as they are (PSD).
        tau_d: temperature of the diffusion, ``softmax`` alone; 0.005 on SOP in the released code, not in the paper.
        normalization: of the diffusion. ``softmax``: the released code, and what its published runs use.
            ``symmetric``: the paper's Eq. 3 to 5.
        clamp: take negative cosines as 0 in the ``symmetric`` affinity. The paper's text does not, and a sample whose
            cosines sum to less than 0 then gives NaN.
        manifold: diffuse on the ``batch``, or once an epoch on the whole training set, ``global`` (section 5.5), whose
            formula is ``symmetric``.
        neighbours: k of Eq. 12, ``global`` alone.
        power: exponent of the cosines in Eq. 12: 1 in the paper, 3 in the released code; ``global`` alone.
        checkpoint: ``pretrained``: the teacher's, a run of this method with the same network.
        head_dims: ``heads``: their dimensions.
    """

    teacher: Literal["none", "epoch", "pretrained", "heads"] = "epoch"
    lam: float = 1000.0
    dynamic: bool = True
    tau: float = 1.0
    omega: float = 0.3
    tau_d: float = 1.0
    normalization: Literal["softmax", "symmetric"] = "softmax"
    clamp: bool = True
    manifold: Literal["batch", "global"] = "batch"
    neighbours: int = 50
    power: float = 1.0
    checkpoint: str | None = None
    head_dims: list[int] = field(default_factory=lambda: [512, 1024, 1536, 2048])

    def __post_init__(self):
        if not 0 <= self.omega < 1:
            raise UserError(f"model.distillation.omega is {self.omega}; it lies in [0, 1).")
        if self.tau <= 0 or self.tau_d <= 0:
            raise UserError("model.distillation: the temperatures tau and tau_d are above 0.")
        if self.manifold == "global" and (self.normalization, self.teacher) != ("symmetric", "epoch"):
            raise UserError("model.distillation.manifold global needs normalization symmetric and teacher epoch.")
        if self.teacher == "heads" and not self.head_dims:
            raise UserError("model.distillation.teacher heads needs head_dims.")

    @property
    def label(self) -> str:
        """What the paper's tables call it."""
        diffused = "+OBDP" if self.omega else ""
        return {
            "none": "",
            "epoch": "+OBD-SD" if self.omega else "+PSD",
            "pretrained": "+BAR" + diffused,
            "heads": "+S2SD-MSD" + diffused,
        }[self.teacher]

    def weight(self, epoch: int, epochs: int) -> float:
        """tau^2 (t / T) lambda of Eq. 7, or tau^2 lambda; 0 while there is no last epoch."""
        if self.teacher == "none" or (self.teacher == "epoch" and epoch == 0):
            return 0.0
        dynamic = distillation_weight(epoch, epochs, lam=self.lam, tau=self.tau)
        return dynamic if self.dynamic else self.tau**2 * self.lam

    def targets(self, d_BB: Tensor) -> Tensor:
        """[B, B] targets from the teacher's similarities."""
        return diffused_targets(
            d_BB,
            omega=self.omega,
            tau=self.tau,
            tau_d=self.tau_d,
            normalization=self.normalization,
            clamp=self.clamp,
        )


class OBDSD(Method):
    """Online batch diffusion-based self-distillation for deep metric learning (Zeng et al., 2022).

    One view an image: ``batch.views = [view]``. Shapes: B batch of all processes, F feature, D embedding.

    Args:
        backbone: the network. The paper's are ResNet50 and BN-Inception with ImageNet weights.
        dim: D.
        freeze_bn: keep the running statistics of BatchNorm (those of ImageNet); its scale and shift train.
        dml_loss: class name or ``{class_path, init_args}``: ``MultiSimilarity``, ``Margin`` (R-Margin with
            ``push_own``), or any loss of pytorch-metric-learning.
        miner: what the loss sees, named likewise: ``RandomTriplets``, ``SemiHard``, ``SoftHard``, ``DistanceWeighted``,
            or any miner of pytorch-metric-learning; null: all pairs, or the loss's own mining.
        distillation: the part that is this method's.
        global_batch: similarities over the batch of all processes; false: of each process by itself.
        train_classes: labels of the training classes; the data's where the command line builds both.
        optim: optimiser and schedule.
    """

    default_views = {"class_path": "SingleView"}
    views_needed = (1, 1)
    classes: Tensor

    def __init__(
        self,
        backbone: Backbone = Backbone("resnet50"),
        dim: int = 128,
        freeze_bn: bool = True,
        dml_loss: Spec = Spec("MultiSimilarity"),
        miner: Spec | None = None,
        distillation: Distillation = Distillation(),
        global_batch: bool = True,
        train_classes: list[int] = [],  # noqa: B006
        **base,
    ):
        super().__init__(**base)
        self.distillation, self.across_processes = distillation, global_batch
        self.register_buffer("classes", torch.tensor(train_classes, dtype=torch.long), persistent=False)
        network, classes = backbone.build(), len(train_classes)
        features = network.num_features
        self.student = Encoder(network, nn.Linear(features, dim), freeze_statistics=freeze_bn)
        self.dml_loss, self.miner = build_dml(dml_loss, miner, num_classes=classes, embedding_size=dim)
        if distillation.teacher in ("epoch", "pretrained"):
            self.teacher = teacher_of(self.student).eval()
        if distillation.teacher == "heads":
            self.heads = nn.ModuleList(mlp(features, d, d) for d in distillation.head_dims)
            losses = [
                build_dml(dml_loss, miner, num_classes=classes, embedding_size=d)[0] for d in distillation.head_dims
            ]
            self.head_losses = nn.ModuleList(losses)
        self.variant = _loss_label(self.dml_loss) + distillation.label
        self._draw_seed, self._resumed = 0, False
        self._global: tuple[int, Tensor, Tensor] | None = None  # epoch, rows [N], refined similarities [N, N]

    def embed(self, images: Tensor) -> Tensor:
        return self.student(images)

    def teachers(self) -> list[Pair]:
        return [Pair(self.student, self.teacher, every="epoch")] if self.distillation.teacher == "epoch" else []

    def step(self, batch: Batch) -> StepResult:
        (images,) = batch.views
        h_BF = self.student.features(images)
        z_BD, labels_B = self.over_processes(self.student.project(h_BF), self.class_of(batch.fine))
        torch.manual_seed(self._draw_seed)  # the same triplets in every process
        dml = self.metric_loss(self.dml_loss, z_BD, labels_B)
        weight = self.distillation.weight(self.current_epoch, self.epochs())
        if not weight and self.distillation.teacher != "heads":  # no teacher forward; heads train from the start
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

    def metric_loss(self, loss: nn.Module, z_BD: Tensor, labels_B: Tensor) -> Tensor:
        """L_DML, in float32 at least."""
        with torch.autocast(z_BD.device.type, enabled=False):
            z_BD = at_least_float32(z_BD)
            mined = () if self.miner is None else (self.miner(z_BD, labels_B),)
            return loss(z_BD, labels_B, *mined)

    def from_teacher(self, images: Tensor, index_B: Tensor) -> Tensor:
        """[B, B] targets of the last epoch's student, or of the pre-trained network."""
        with torch.no_grad():
            if self.distillation.manifold == "global":
                return torch.softmax(self.global_relations(index_B) / self.distillation.tau, dim=1)
            (z_BD,) = gather_rows(self.teacher(images)) if self.across_processes else (self.teacher(images),)
            return self.distillation.targets(similarity(z_BD))

    def from_heads(self, dml: Tensor, h_BF: Tensor, labels_B: Tensor) -> tuple[Tensor, list[Tensor]]:
        """S2SD-MSD: half the loss of the embedding and half the mean of the heads'; a target of each head."""
        losses, targets = [], []
        for head, head_loss in zip(self.heads, self.head_losses, strict=True):
            (z_BK,) = self.over_processes(nn.functional.normalize(head(h_BF), dim=1))
            losses.append(self.metric_loss(head_loss, z_BK, labels_B))
            targets.append(self.distillation.targets(similarity(z_BK)))
        return (dml + torch.stack(losses).mean()) / 2, targets

    def over_processes(self, z_BD: Tensor, *labels_B: Tensor) -> list[Tensor]:
        """Embeddings, with their gradient, and labels of all processes."""
        if not self.across_processes:
            return [z_BD, *labels_B]
        return [gather_with_gradient(z_BD), *gather_rows(*labels_B)]

    def class_of(self, fine_B: Tensor) -> Tensor:
        """Data-set labels to 0 .. C - 1 of the training classes."""
        return torch.searchsorted(self.classes, fine_B) if len(self.classes) else fine_B

    def epochs(self) -> int:
        """T."""
        if self._trainer is None:
            return 1
        epochs = self.trainer.max_epochs
        return epochs if epochs and epochs > 0 else math.ceil(self.total_steps() / self.steps_per_epoch())

    # ---- global manifold ----------------------------------------------------------------------------------------

    def global_relations(self, index_B: Tensor) -> Tensor:
        """[B, B] similarities refined on the whole training set by the epoch's teacher: section 5.5.

        Made when an epoch, or what a checkpoint left of it, first asks for them.
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
        """Rows [N] of the data set and the teacher's embeddings [N, D] of their plain views."""
        trainer: Any = self.trainer
        outputs = []
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed that the step's dropout must not miss
            for batch in trainer.datamodule.gallery_loader():
                batch = trainer.strategy.batch_to_device(batch)
                z_BD = self.teacher(batch.views[0])
                outputs.append({"embedding": z_BD, "fine": batch.fine, "index": batch.index})
        collected = collect(outputs)
        return collected.index, nn.functional.normalize(collected.embedding, dim=1)

    # ---- what Lightning asks ------------------------------------------------------------------------------------

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
            self.load_teacher()  # a resumed run has it in its own checkpoint

    def load_teacher(self) -> None:
        path = self.distillation.checkpoint
        if path is None:
            raise UserError("model.distillation.teacher pretrained needs checkpoint: that of a run of OBDSD.")
        state = read_checkpoint(path)["state_dict"]
        weights = {name.removeprefix("student."): w for name, w in state.items() if name.startswith("student.")}
        try:
            self.teacher.load_state_dict(weights)
        except RuntimeError as fault:
            raise UserError(f"model.distillation.checkpoint: {path} holds another network ({fault}).") from fault

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        numbers = np.random.SeedSequence([self._seed, self.current_epoch, batch_idx])
        self._draw_seed = int(numbers.generate_state(1, np.uint64)[0])


def similarity(z_BD: Tensor) -> Tensor:
    """[B, B] cosines of unit rows; a bf16 product would be off by 0.004."""
    with torch.autocast(z_BD.device.type, enabled=False):
        z_BD = at_least_float32(z_BD)
        return z_BD @ z_BD.T


def _loss_label(loss: nn.Module) -> str:
    """What the paper's tables call a loss."""
    if isinstance(loss, Margin):
        return "R-Margin" if loss.push_own else "Margin"
    return "MS" if isinstance(loss, MultiSimilarity) else type(loss).__name__
