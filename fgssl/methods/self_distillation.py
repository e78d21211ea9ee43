"""Parts of DINO that CMD and FLSL share: student and EMA teacher, schedules, frozen last layer."""

from typing import Any

import torch
from torch import Tensor, nn

from fgssl.errors import above, at_least, between
from fgssl.losses.precision import at_least_float32
from fgssl.methods.base import Method
from fgssl.nn.heads import DINOHead
from fgssl.nn.teacher import Pair, teacher_of, without_drop_path
from fgssl.optim import cosine


class SelfDistillation(Method):
    """Base class of methods with a student and an EMA teacher (DINO: Caron et al., ICCV 2021).

    A method builds ``self.student``, with its network as ``student.backbone`` and DINO heads, then calls
    ``make_teacher``. Evaluation uses the teacher's features.

    Args:
        tau_s: student temperature.
        tau_t_start: teacher temperature in the first epoch.
        tau_t: teacher temperature after the warm-up: linear from tau_t_start to tau_t over tau_t_epochs, then constant.
        tau_t_epochs: epochs of the teacher temperature's warm-up; 0: tau_t from the start.
        momentum: momentum of the teacher's moving average at the first step; rises to 1 by a cosine over the run.
        freeze_last_layer: number of first epochs in which the heads' last layer is not trained.
    """

    evaluates = "teacher"
    prototypes: int
    student: Any
    teacher: Any

    def __init__(
        self,
        tau_s: float = 0.1,
        tau_t_start: float = 0.04,
        tau_t: float = 0.07,
        tau_t_epochs: int = 30,
        momentum: float = 0.996,
        freeze_last_layer: int = 1,
        **base,
    ):
        super().__init__(**base)
        above(0, tau_s=tau_s, tau_t_start=tau_t_start, tau_t=tau_t)
        between(0, 1, momentum=momentum)
        at_least(0, tau_t_epochs=tau_t_epochs, freeze_last_layer=freeze_last_layer)
        self.tau_s, self.tau_t_start, self.tau_t_end, self.tau_t_epochs = tau_s, tau_t_start, tau_t, tau_t_epochs
        self.momentum, self.freeze_last_layer = momentum, freeze_last_layer

    def make_teacher(self) -> None:
        """Make the teacher, a copy of the student without stochastic depth."""
        self.teacher = without_drop_path(teacher_of(self.student))

    def teachers(self) -> list[Pair]:
        return [Pair(self.student, self.teacher)]

    def teacher_momentum(self, step: int, total: int) -> float:
        return cosine(step - 1, total, self.momentum, 1.0)

    @property
    def tau_t(self) -> float:
        """Teacher temperature in the current epoch."""
        return teacher_temperature(self.current_epoch, self.tau_t_start, self.tau_t_end, self.tau_t_epochs)

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *kind: Any, **options: Any) -> None:
        super().configure_gradient_clipping(optimizer, *kind, **options)
        if self.current_epoch < self.freeze_last_layer:  # after the clipping, as in DINO's code
            for head in dino_heads(self.student):
                for weight in head.last_layer():
                    weight.grad = None


def dino_heads(network: nn.Module) -> list[DINOHead]:
    """DINO heads in a network."""
    return [module for module in network.modules() if isinstance(module, DINOHead)]


def teacher_temperature(epoch: int, start: float, end: float, epochs: int) -> float:
    """Linear from ``start`` at epoch 0 to ``end`` at epoch ``epochs`` - 1, then constant (DINO's code)."""
    return end if epoch >= epochs - 1 else start + (end - start) * epoch / (epochs - 1)


@torch.no_grad()
def watch(cross_entropy: Tensor, teacher_probs: Tensor) -> dict[str, Tensor]:
    """Signs of collapse.

    Args:
        cross_entropy: of the teacher's distributions against the student's, in nats, mean over rows.
        teacher_probs: [..., K] probabilities of the teacher.

    Returns:
        ``teacher_entropy``: entropy of the teacher's distributions in nats, mean over rows; 0 or log K in a collapse.
        ``teacher_student_kl``: Kullback-Leibler divergence of the student from the teacher in nats, mean over rows.
    """
    entropy = torch.special.entr(at_least_float32(teacher_probs)).sum(dim=-1).mean()
    return {"teacher_entropy": entropy, "teacher_student_kl": cross_entropy.detach() - entropy}
