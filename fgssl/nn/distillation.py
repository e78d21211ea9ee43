"""Settings of OBD-SD's relation distillation, and the similarities that it works on. Shapes: B batch, D embedding."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fgssl.errors import UserError, above
from fgssl.losses.obd_sd import diffused_targets, distillation_weight
from fgssl.losses.precision import at_least_float32


@dataclass(frozen=True)
class Distillation:
    """Settings of the distillation of similarities from a teacher to the student.

    Args:
        teacher: network that gives the targets. ``none``: no distillation. ``epoch``: copy of the student as of the
            end of the last epoch (PSD, OBD-SD). ``pretrained``: trained network from ``checkpoint``, kept fixed (BAR).
            ``heads``: heads of higher dimension on the student's backbone, trained with it (S2SD-MSD).
        lam: weight lambda of the distillation loss.
        dynamic: weight lambda t / T in epoch t of T, counted from 0 (Eq. 2); false: lambda in every epoch.
        tau: temperature of teacher and student similarities.
        omega: probability of a step of the random walk, in [0, 1); 0 leaves out the diffusion (PSD).
        tau_d: temperature of the transition matrix, with ``normalization: softmax`` only. The released code has 0.005
            on SOP; the paper has no such temperature.
        normalization: transition matrix of the diffusion. ``softmax``: as in the released code and its published runs.
            ``symmetric``: as in Eq. 3 to 5 of the paper.
        clamp: set negative cosines to 0 before the ``symmetric`` normalization. Without it, as in the paper's formula,
            a row with a negative sum gives NaN.
        manifold: images that the diffusion covers. ``batch``: those of the batch. ``global``: all training images,
            once an epoch (Sec. 5.5); needs ``normalization: symmetric`` and ``teacher: epoch``.
        neighbours: number of nearest neighbours k in Eq. 12, with ``manifold: global`` only.
        power: exponent of the cosines in Eq. 12, with ``manifold: global`` only: 1 in the paper, 3 in the released
            code.
        checkpoint: checkpoint of a run of OBDSD with the same network, for ``teacher: pretrained``.
        head_dims: output dimensions of the heads, for ``teacher: heads``.
        teacher_precision: number format of the forward pass of the ``epoch`` or ``pretrained`` teacher's backbone.
            ``training``: that of ``trainer.precision``. ``bf16``: bfloat16, channels last. The divergence of Eq. 6
            changes by 1 % at most; on a CPU with bfloat16 instructions, distillation adds 12 % to the time of a step
            instead of 29 % (ResNet18, 64 px).
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
    teacher_precision: Literal["training", "bf16"] = "training"

    def __post_init__(self):
        if not 0 <= self.omega < 1:
            raise UserError(f"model.distillation.omega is {self.omega}; it lies in [0, 1).")
        above(0, tau=self.tau, tau_d=self.tau_d)
        if self.manifold == "global" and (self.normalization, self.teacher) != ("symmetric", "epoch"):
            raise UserError("model.distillation.manifold global needs normalization symmetric and teacher epoch.")
        if self.teacher == "heads" and not self.head_dims:
            raise UserError("model.distillation.teacher heads needs head_dims.")

    @property
    def label(self) -> str:
        """Name in the paper's tables, after the name of the loss."""
        diffused = "+OBDP" if self.omega else ""
        return {
            "none": "",
            "epoch": "+OBD-SD" if self.omega else "+PSD",
            "pretrained": "+BAR" + diffused,
            "heads": "+S2SD-MSD" + diffused,
        }[self.teacher]

    def weight(self, epoch: int, epochs: float) -> float:
        """Factor of the distillation loss in an epoch counted from 0 (Eq. 7); 0 while there is no teacher yet."""
        if self.teacher == "none" or (self.teacher == "epoch" and epoch == 0):
            return 0.0
        dynamic = distillation_weight(epoch, epochs, lam=self.lam, tau=self.tau)
        return dynamic if self.dynamic else self.tau**2 * self.lam

    def targets(self, d_BB: Tensor) -> Tensor:
        """[B, B] target distributions from the teacher's similarities [B, B]."""
        return diffused_targets(
            d_BB,
            omega=self.omega,
            tau=self.tau,
            tau_d=self.tau_d,
            normalization=self.normalization,
            clamp=self.clamp,
        )


def similarity(z_BD: Tensor) -> Tensor:
    """[B, B] cosines of unit rows, in float32 at least: a bfloat16 product has an error of 0.004."""
    with torch.autocast(z_BD.device.type, enabled=False):
        z_BD = at_least_float32(z_BD)
        return z_BD @ z_BD.T
