"""MaskCon: masked contrastive learning from coarse labels, and the baselines of its paper."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgssl.data.batch import Batch
from fgssl.errors import UserError, at_least
from fgssl.losses.maskcon import soft_contrastive_loss, soft_targets
from fgssl.methods.base import Keys, Method, StepResult
from fgssl.nn.backbones import Backbone, Encoder
from fgssl.nn.heads import mlp
from fgssl.nn.memory import Memory
from fgssl.nn.teacher import Pair, teacher_of

# name: (contrastive part?, classifier part?). SupCE and SupFINE are the classifier alone.
VARIANTS = {
    "maskcon": (True, False),
    "grafit": (True, False),
    "supcon": (True, False),
    "selfcon": (True, False),
    "coins": (True, True),
    "supce": (False, True),
    "supfine": (False, True),
}


class MaskCon(Method):
    """Masked contrastive learning for coarse-labelled data (Feng & Patras, CVPR 2023).

    Two views an image: the query's by the trained encoder, the key's by its EMA. A FIFO memory holds K keys and their
    coarse labels. Views: ``batch.views = [query view, key view]``.

    Shapes: B batch, K memory length, F feature, D projection.

    Args:
        backbone: the network f. The paper's is ResNet18 (``small_input`` at 64 px and below).
        variant: ``maskcon``; or a baseline on the same step: ``selfcon`` (target: the sample itself), ``supcon``
            (equal weight on itself and each entry of its coarse label), ``grafit`` (Eq. 9), ``coins`` (Eq. 10),
            ``supce`` (cross-entropy of the coarse label), ``supfine`` (of the fine label, the upper bound).
        weight: w of Eq. 9, 10 and 15.
        tau: temperature of the relations, Eq. 11; may be 0 or inf.
        tau0: temperature of the projections.
        dim: D. The paper's text has 128, its released code 256.
        hidden: width of the projector h.
        memory: K. 8192 in the paper; 16384 for ImageNet32 in the released code.
        momentum: EMA momentum m of the key encoder.
        num_coarse: coarse classes; the data set's where the command line builds both.
        num_fine: fine classes, likewise; ``supfine`` needs them.
        optim: optimiser and schedule.
    """

    default_views = {"class_path": "PairViews", "init_args": {"recipe": "cars"}}
    views_needed = (2, 2)

    def __init__(
        self,
        backbone: Backbone = Backbone(),
        variant: Literal["maskcon", "grafit", "supcon", "selfcon", "coins", "supce", "supfine"] = "maskcon",
        weight: float = 1.0,
        tau: float = 0.1,
        tau0: float = 0.1,
        dim: int = 128,
        hidden: int = 512,
        memory: int = 8192,
        momentum: float = 0.99,
        num_coarse: int = 0,
        num_fine: int = 0,
        **base,
    ):
        super().__init__(**base)
        at_least(1, dim=dim, hidden=hidden, memory=memory)
        at_least(0, momentum=momentum)
        _check(variant, weight, tau, tau0, num_coarse, num_fine)
        self.variant, self.momentum = variant, momentum
        self.weight, self.tau = _relations_of(variant, weight, tau)
        self.tau0 = tau0
        network = backbone.build()
        features = network.num_features
        self.contrasts, self.classifies = VARIANTS[variant]
        self.query = Encoder(network, mlp(features, hidden, dim) if self.contrasts else nn.Identity())
        if self.contrasts:
            self.key = teacher_of(self.query)
            self.memory = Memory(memory, dim)
        if self.classifies:
            self.classifier = nn.Linear(features, num_fine if variant == "supfine" else num_coarse)

    def embed(self, images: Tensor) -> Tensor:
        return self.query.features(images)

    def teachers(self) -> list[Pair]:
        return [Pair(self.query, self.key)] if self.contrasts else []

    def teacher_momentum(self, step: int, total: int) -> float:
        return self.momentum

    def prefill(self, batch: Batch) -> dict[str, Keys]:
        return {"memory": (self.key(batch.views[1]), batch.coarse, batch.index)}

    def step(self, batch: Batch) -> StepResult:
        strong, weak = batch.views
        h_BF = self.query.features(strong)
        if not self.contrasts:
            return StepResult(self.classification_loss(h_BF, batch))
        q_BD = self.query.project(h_BF)
        with torch.no_grad():
            k_BD = self.key(weak)
        contrastive = self.contrastive_loss(q_BD, k_BD, batch.coarse)
        enqueue = {"memory": (k_BD, batch.coarse, batch.index)}
        if not self.classifies:
            return StepResult(contrastive, enqueue=enqueue)
        ce = self.classification_loss(h_BF, batch)
        loss = self.weight * ce + (1 - self.weight) * contrastive  # Eq. 10
        return StepResult(loss, {"ce": ce, "contrastive": contrastive}, enqueue)

    def contrastive_loss(self, q_BD: Tensor, k_BD: Tensor, coarse_B: Tensor) -> Tensor:
        """Eq. 5 with the targets of Eq. 15; those of CoIns are SelfCon's."""
        weight = 0.0 if self.classifies else self.weight
        z = soft_targets(k_BD, self.memory.keys, coarse_B, self.memory.labels, tau=self.tau, weight=weight)
        return soft_contrastive_loss(q_BD, k_BD, self.memory.keys, z, tau0=self.tau0)

    def classification_loss(self, h_BF: Tensor, batch: Batch) -> Tensor:
        """Eq. 2 on the backbone feature of the query view."""
        labels = batch.fine if self.variant == "supfine" else batch.coarse
        return F.cross_entropy(self.classifier(h_BF), labels)


def _relations_of(variant: str, weight: float, tau: float) -> tuple[float, float]:
    """The w and tau that make each baseline a case of Eq. 11 to 15."""
    return {
        "grafit": (weight, torch.inf),
        "supcon": (1.0, torch.inf),
        "selfcon": (0.0, tau),
    }.get(variant, (weight, tau))


def _check(variant: str, weight: float, tau: float, tau0: float, num_coarse: int, num_fine: int) -> None:
    if not 0 <= weight <= 1:
        raise UserError(f"model.weight is {weight}; w of Eq. 15 lies within [0, 1].")
    if tau < 0:
        raise UserError(f"model.tau is {tau}; a temperature is at least 0 (0 and inf are allowed).")
    if tau0 <= 0:
        raise UserError(f"model.tau0 is {tau0}; the projections' temperature is above 0.")
    if variant == "supfine" and not num_fine:
        raise UserError("model.variant supfine needs fine labels, and the data set has none (model.num_fine is 0).")
    if variant not in ("supfine", "selfcon") and not num_coarse:
        raise UserError(f"model.variant {variant} needs coarse labels, and the data set has none (num_coarse is 0).")
