"""CMD's losses (Bi et al., 2024, section IV): distillation within a level and between levels.

Shapes: B batch, T patches of a crop (its instances), K prototypes, C feature. Lists have one entry for each crop.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Pairs = Sequence[tuple[int, int]]


def image_distillation(
    student_logits: list[Tensor],
    teacher_logits: list[Tensor],
    *,
    center: Tensor,
    tau_s: float,
    tau_t: float,
    pairs: Pairs,
) -> Tensor:
    """L_I (Eq. 11): cross-entropy of teacher probabilities against student log-probabilities, mean over the pairs.

    The direction is DINO's. The paper prints the logarithm on the teacher's side, where no gradient flows. 2 teacher
    crops and 10 student crops make 18 pairs, without those of equal index.

    Args:
        student_logits: student logits [B, K] of each crop.
        teacher_logits: teacher logits [B, K] of each crop.
        center: centre [K], subtracted from the teacher's logits.
        tau_s: student temperature.
        tau_t: teacher temperature.
        pairs: index pairs (teacher crop, student crop).
    """
    teacher = [posterior(logits, center=center, tau=tau_t) for logits in teacher_logits]
    return bag_distillation([log_posterior(logits, tau=tau_s) for logits in student_logits], teacher, pairs=pairs)


def bag_distillation(student_log_bags: list[Tensor], teacher_bags: list[Tensor], *, pairs: Pairs) -> Tensor:
    """L_I (Eq. 11) of student log-probabilities and teacher probabilities [B, K]."""
    terms = [-(teacher_bags[t] * student_log_bags[s]).sum(dim=-1).mean() for t, s in pairs]
    return torch.stack(terms).mean()


def region_distillation(
    student_logits: list[Tensor],
    teacher_logits: list[Tensor],
    student_features: list[Tensor],
    teacher_features: list[Tensor],
    *,
    center: Tensor,
    tau_s: float,
    tau_t: float,
    pairs: Pairs,
) -> Tensor:
    """L_R (Eq. 12, 13): cross-entropy of each student patch with the teacher patch of the most similar feature.

    Mean over patches, batch and pairs. In the forward and in the backward pass, memory holds one copy of the teacher's
    probabilities and the student's probabilities of one crop, besides the given logits.

    Args:
        student_logits: student logits [B, T, K] of each crop; T may differ between crops.
        teacher_logits: teacher logits [B, T, K] of each crop.
        student_features: student backbone features [B, T, C] of each crop.
        teacher_features: teacher backbone features [B, T, C] of each crop.
        center: centre [K], subtracted from the teacher's logits.
        tau_s: student temperature.
        tau_t: teacher temperature.
        pairs: index pairs (teacher crop, student crop).
    """
    teacher = [posterior(logits, center=center, tau=tau_t) for logits in teacher_logits]
    loss = torch.zeros_like(center.flatten()[0])
    for s, logits_BTK in enumerate(student_logits):
        own = [(teacher[t], nearest_patches(student_features[s], teacher_features[t])) for t, i in pairs if i == s]
        if own:
            loss = loss + checkpoint(
                lambda logits, own=own: patch_loss(log_posterior(logits, tau=tau_s), own),
                logits_BTK,
                use_reentrant=False,
                preserve_rng_state=False,
            )
    return loss / len(pairs)


@torch.no_grad()
def nearest_patches(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """j* of Eq. 13: index of the teacher patch [B, Tt, C] of the highest cosine, for each student patch [B, Ts, C]."""
    cosine_BST = F.normalize(student_features, dim=-1) @ F.normalize(teacher_features, dim=-1).transpose(1, 2)
    return cosine_BST.argmax(dim=-1)


def patch_loss(log_p_BTK: Tensor, teachers: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum over the pairs of one student crop in Eq. 12; each pair is a mean over patches and batch.

    Args:
        log_p_BTK: student log-probabilities of the crop.
        teachers: teacher probabilities [B, Tt, K] and j* [B, T] for each teacher crop of the pairs.
    """
    images_B1 = torch.arange(len(log_p_BTK), device=log_p_BTK.device)[:, None]
    target_BTK = torch.zeros_like(log_p_BTK)
    for p_BTK, nearest_BT in teachers:
        target_BTK += p_BTK[images_B1, nearest_BT]
    return -(target_BTK * log_p_BTK).sum(dim=-1).mean()


def inter_level(bags: list[Tensor], *, pairs: Pairs) -> Tensor:
    """L_S (Eq. 14) of student bags, L_T (Eq. 15) of teacher bags: KL(bag i || bag j), mean over batch and pairs.

    L_T has no gradient, since none reaches the teacher.

    Args:
        bags: distributions [B, K].
        pairs: index pairs (i, j) of bags; in Eq. 14 all ordered pairs with i != j.
    """
    logs = [log_of(bag) for bag in bags]
    divergence = torch.zeros_like(bags[0][0, 0])
    for i, bag_BK in enumerate(bags):
        others = [logs[j] for first, j in pairs if first == i]
        if others:
            divergence = divergence + (bag_BK * (len(others) * logs[i] - sum(others))).sum(dim=-1).mean()
    return divergence / len(pairs)


def posterior(logits: Tensor, *, center: Tensor, tau: float) -> Tensor:
    """Teacher probabilities, softmax((logits - center) / tau)."""
    return ((logits - center) / tau).softmax(dim=-1)


def log_posterior(logits: Tensor, *, tau: float) -> Tensor:
    """Student log-probabilities, log softmax(logits / tau)."""
    return (logits / tau).log_softmax(dim=-1)


def bag_of(instances_BTK: Tensor) -> Tensor:
    """Bag of a crop (Eq. 4, 5): mean over its instances, [B, T, K] to [B, K]."""
    return instances_BTK.mean(dim=1)


def log_of(bag: Tensor) -> Tensor:
    """Logarithm of a distribution, finite at 0: probabilities are clamped to the smallest normal number."""
    return bag.clamp(min=torch.finfo(bag.dtype).tiny).log()
