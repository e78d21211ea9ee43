"""MaskCon: masked contrastive learning from coarse labels, and the baselines of its paper."""

from typing import Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F

from fgssl.data.batch import Batch
from fgssl.errors import UserError, above, at_least, between
from fgssl.losses.maskcon import soft_contrastive_loss, soft_targets
from fgssl.methods.base import Keys, Method, StepResult
from fgssl.nn.backbones import Backbone, Encoder
from fgssl.nn.heads import mlp
from fgssl.nn.memory import Memory
from fgssl.nn.teacher import Pair, teacher_of

# variant: (has a contrastive term, has a classifier)
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

    ``batch.views`` is [query view, key view]. The trained encoder sees the query view, its EMA copy (the key encoder)
    the key view. A first-in first-out memory holds the last K keys and their coarse labels.

    Shapes: B batch, K memory length, F feature, D projection.

    Args:
        backbone: Network f. The paper uses ResNet18, with ``small_input`` for 32 px images.
        variant: Training objective. ``maskcon``: soft relations within the coarse label (Eq. 15). Baselines of the
            paper: ``selfcon``: the sample's own key is the only positive; ``supcon``: equal weight on the own key and
            all entries of the same coarse label; ``grafit``: mix of ``supcon`` and ``selfcon`` (Eq. 9); ``coins``: mix
            of coarse-label cross-entropy and ``selfcon`` (Eq. 10); ``supce``: coarse-label cross-entropy;
            ``supfine``: fine-label cross-entropy, the upper bound.
        weight: Mixing weight w of ``maskcon`` (Eq. 15), ``grafit`` (Eq. 9) and ``coins`` (Eq. 10), in [0, 1]. The
            paper's best w differs by variant: experiments/maskcon_baselines/ has those of Grafit and CoIns.
        tau: Temperature of the soft relations (Eq. 11), in [0, inf]; ``maskcon`` only. 0: the nearest entry of the
            same coarse label alone; inf: all of them equally (Grafit).
        tau0: Temperature of the projections (Eq. 5), above 0.
        dim: Output dimension D of the projector. Paper: 128; released code: 256.
        hidden: Hidden dimension of the projector.
        memory: Memory length K. Paper: 8192; released code: 16384 for ImageNet32, 8192 otherwise.
        momentum: EMA momentum of the key encoder, in [0, 1].
        num_coarse: Number of coarse classes; by default the data set's.
        train_classes: Fine labels of the training classes, ascending, one output of ``supfine`` each; by default the
            data's.
        optim: Optimiser and learning-rate schedule.
    """

    classes: Tensor
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
        train_classes: list[int] = [],  # noqa: B006
        **base,
    ):
        super().__init__(**base)
        at_least(1, dim=dim, hidden=hidden, memory=memory)
        _check(variant, weight, tau, tau0, momentum, num_coarse, len(train_classes))
        self.variant, self.momentum = variant, momentum
        self.weight, self.tau = _relations_of(variant, weight, tau)
        self.tau0 = tau0
        self.register_buffer("classes", torch.tensor(train_classes, dtype=torch.long), persistent=False)
        network = backbone.build()
        features = network.num_features
        self.contrasts, self.classifies = VARIANTS[variant]
        self.query = Encoder(network, mlp(features, hidden, dim) if self.contrasts else nn.Identity())
        if self.contrasts:
            self.key = teacher_of(self.query)
            self.memory = Memory(memory, dim)
        if self.classifies:
            self.classifier = nn.Linear(features, len(train_classes) if variant == "supfine" else num_coarse)

    def embed(self, images: Tensor) -> Tensor:
        return self.query.features(images)

    def labels_needed(self) -> set[Literal["fine", "coarse"]]:
        return set() if self.variant == "selfcon" else {"fine" if self.variant == "supfine" else "coarse"}

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
        """Contrastive loss (Eq. 5) with the targets of Eq. 15; CoIns has SelfCon's targets."""
        weight = 0.0 if self.classifies else self.weight
        z = soft_targets(k_BD, self.memory.keys, coarse_B, self.memory.labels, tau=self.tau, weight=weight)
        return soft_contrastive_loss(q_BD, k_BD, self.memory.keys, z, tau0=self.tau0)

    def classification_loss(self, h_BF: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of a linear classifier on the backbone feature of the query view (Eq. 2)."""
        labels = torch.searchsorted(self.classes, batch.fine) if self.variant == "supfine" else batch.coarse
        return F.cross_entropy(self.classifier(h_BF), labels)


def _relations_of(variant: str, weight: float, tau: float) -> tuple[float, float]:
    """The w and tau with which Eq. 11-15 give the variant."""
    return {
        "grafit": (weight, torch.inf),
        "supcon": (1.0, torch.inf),
        "selfcon": (0.0, tau),
    }.get(variant, (weight, tau))


def _check(
    variant: str, weight: float, tau: float, tau0: float, momentum: float, num_coarse: int, num_train: int
) -> None:
    between(0, 1, weight=weight, momentum=momentum)
    at_least(0, tau=tau)  # 0 and inf are allowed
    above(0, tau0=tau0)
    if tau0 == torch.inf:
        raise UserError("model.tau0 is inf; it must be finite.")
    if variant == "supfine" and not num_train:
        raise UserError("model.variant supfine needs fine labels; the data set has none (train_classes is empty).")
    if variant not in ("supfine", "selfcon") and not num_coarse:
        raise UserError(
            f"model.variant {variant} needs coarse labels; the data set has none (model.num_coarse is 0). "
            "Choose data with coarse labels or --model.variant selfcon."
        )
    limits: dict[tuple[str, float], str] = {
        ("coins", 0): "selfcon",
        ("coins", 1): "supce",
        ("grafit", 0): "selfcon",
        ("grafit", 1): "supcon",
    }
    if (variant, weight) in limits:
        rank_zero_warn(
            f"model.variant {variant} at model.weight {weight:g} is {limits[variant, weight]}. The paper's w for each "
            "data set is in experiments/maskcon_baselines/."
        )
