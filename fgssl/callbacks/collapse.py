"""Warning about a collapse of self-distillation."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from fgssl.callbacks.online import embed_view
from fgssl.distributed import gather_rows, mean_over_ranks
from fgssl.errors import at_least
from fgssl.metrics.structure import feature_std, rankme

STD, RANK, SHARE = 0.01, 1.5, 0.001  # below these it has collapsed: see Collapse


class Collapse(Callback):
    """Log ``train/feature_std`` and ``train/rankme`` at the end of each epoch, and warn once about a collapse.

    Both are measured on the features (``Method.embed``, evaluation mode) of the first views of the last training
    batches. On for methods with prototypes; ``trainer.callbacks+: {class_path: Collapse}`` turns it on for others.

    A self-distilling method has the number of prototypes K as ``method.prototypes`` (int) and two scalars in
    ``StepResult.parts``, means over the batch: ``teacher_entropy``, the entropy of the teacher's distribution (nats, 0
    to log K), and ``teacher_student_kl``, its divergence from the student's distribution.

    From the second epoch on, a collapse is a ``feature_std`` below 0.01, a ``rankme`` below 1.5, or a
    ``teacher_entropy`` within 0.1 % of log K of 0 or of log K. In the first epoch all features are similar anyway.

    Args:
        images: Number of training images, over all processes, whose features are measured; RankMe is at most this.
    """

    def __init__(self, images: int = 512):
        at_least(2, images=images)
        self.images = images
        self._features: list[Tensor] = []
        self._entropies: list[Tensor] = []
        self._warned = False

    def on_train_batch_end(self, trainer: Trainer, method, outputs, batch, batch_idx: int) -> None:
        batches = math.ceil(self.images / (len(batch.index) * trainer.world_size))
        if batch_idx < trainer.num_training_batches - batches:
            return
        self._features.append(embed_view(trainer, method, batch.views[0]))
        entropy = trainer.callback_metrics.get("train/teacher_entropy")
        if entropy is not None:
            self._entropies.append(entropy)

    def on_train_epoch_end(self, trainer: Trainer, method) -> None:
        features, entropies = self._features, self._entropies
        self._features, self._entropies = [], []
        if not features:
            return
        (features_NF,) = gather_rows(torch.cat(features))
        features_NF = features_NF[torch.isfinite(features_NF).all(dim=1)]  # model.max_skips lets such steps pass
        if len(features_NF) < 2:
            return
        seen = {"feature_std": feature_std(features_NF), "rankme": rankme(features_NF)}
        method.log_dict({f"train/{name}": value for name, value in seen.items()}, batch_size=1)
        if entropies:
            seen["teacher_entropy"] = float(mean_over_ranks(torch.stack(entropies).mean()))
        found = signs(seen, method.prototypes)
        if found and trainer.current_epoch > 0 and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"Collapse? After epoch {trainer.current_epoch + 1}: {'; '.join(found)}. All images have "
                "nearly the same features. Lower model.optim.lr, lengthen the warm-up, or check the "
                "teacher's temperature and centre."
            )


def signs(seen: dict[str, float], prototypes: Any) -> list[str]:
    """The figures that tell a collapse, in words.

    Args:
        seen: ``feature_std``, ``rankme``, and ``teacher_entropy`` where the method has it.
        prototypes: K, or None.
    """
    found = []
    if not seen["feature_std"] >= STD:
        found.append(f"feature_std {seen['feature_std']:.2g} (0: all alike, 1: spread over the sphere)")
    if not seen["rankme"] >= RANK:
        found.append(f"rankme {seen['rankme']:.2f}, one direction")
    entropy, most = seen.get("teacher_entropy"), math.log(prototypes) if prototypes else None
    if entropy is not None and most and entropy < SHARE * most:
        found.append(f"teacher_entropy {entropy:.2g} nats, one prototype alone")
    if entropy is not None and most and entropy > (1 - SHARE) * most:
        found.append(f"teacher_entropy {entropy:.4f} nats of at most log K = {most:.4f}, all prototypes alike")
    return found
