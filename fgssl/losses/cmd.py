"""CMD's losses (Bi et al., 2024, section IV): distillation within a level and between levels.

Shapes: B batch, T patches of a crop (its instances), K prototypes, C feature. A crop is one entry of a list.
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
    """Eq. 11 in DINO's direction: - sum p_teacher log p_student, mean over the batch, then over the pairs.

    The paper prints the logarithm on the teacher's side, which has no gradient. 2 teacher and 10 student crops make 18
    pairs, equal indices left out.

    Args:
        student_logits, teacher_logits: [B, K] a crop.
        center: [K], taken off the teacher's logits.
        tau_s, tau_t: temperatures.
        pairs: (teacher crop, student crop).
    """
    teacher = [posterior(logits, center=center, tau=tau_t) for logits in teacher_logits]
    return bag_distillation([log_posterior(logits, tau=tau_s) for logits in student_logits], teacher, pairs=pairs)


def bag_distillation(student_log_bags: list[Tensor], teacher_bags: list[Tensor], *, pairs: Pairs) -> Tensor:
    """Eq. 11 of what are distributions already: the student's logarithms and the teacher's probabilities [B, K]."""
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
    """Eq. 12 and 13: each student patch learns from the teacher patch whose backbone feature is the most alike.

    Mean over the patches, the batch, then the pairs. Beside the logits that it is given, one copy of the teacher's
    probabilities exists at a time, and of the student's only one crop's, in the backward pass too.

    Args:
        student_logits, teacher_logits: [B, T, K] a crop; T may differ between crops.
        student_features, teacher_features: [B, T, C] a crop.
        center: [K], taken off the teacher's logits.
        tau_s, tau_t: temperatures.
        pairs: (teacher crop, student crop).
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
    """j* of Eq. 13: [B, Ts, C] and [B, Tt, C] to [B, Ts], the teacher patch of the highest cosine."""
    cosine_BST = F.normalize(student_features, dim=-1) @ F.normalize(teacher_features, dim=-1).transpose(1, 2)
    return cosine_BST.argmax(dim=-1)


def patch_loss(log_p_BTK: Tensor, teachers: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The pairs of one student crop in Eq. 12, summed: mean over its patches and the batch of - sum p_t[j*] log p_s.

    Args:
        log_p_BTK: logarithms of the student's probabilities.
        teachers: of each teacher crop that it learns from, the probabilities [B, Tt, K] and j* [B, T].
    """
    images_B1 = torch.arange(len(log_p_BTK), device=log_p_BTK.device)[:, None]
    target_BTK = torch.zeros_like(log_p_BTK)
    for p_BTK, nearest_BT in teachers:
        target_BTK += p_BTK[images_B1, nearest_BT]
    return -(target_BTK * log_p_BTK).sum(dim=-1).mean()


def inter_level(bags: list[Tensor], *, pairs: Pairs) -> Tensor:
    """Eq. 14, L_S: the Kullback-Leibler divergence KL(bag i || bag j), mean over the batch, then over the pairs (i, j).

    Of the teacher's bags it is Eq. 15, L_T: a number to log, whose gradient is zero, since no gradient reaches the
    teacher. Of a teacher's bags first and a student's second it trains the student.

    Args:
        bags: [B, K] distributions.
        pairs: indices of two bags; Eq. 14 has all ordered pairs of two different ones.
    """
    logs = [log_of(bag) for bag in bags]
    divergence = torch.zeros_like(bags[0][0, 0])
    for i, bag_BK in enumerate(bags):
        others = [logs[j] for first, j in pairs if first == i]
        if others:
            divergence = divergence + (bag_BK * (len(others) * logs[i] - sum(others))).sum(dim=-1).mean()
    return divergence / len(pairs)


def posterior(logits: Tensor, *, center: Tensor, tau: float) -> Tensor:
    """The teacher's softmax((logits - center) / tau)."""
    return ((logits - center) / tau).softmax(dim=-1)


def log_posterior(logits: Tensor, *, tau: float) -> Tensor:
    """The student's log softmax(logits / tau)."""
    return (logits / tau).log_softmax(dim=-1)


def bag_of(instances_BTK: Tensor) -> Tensor:
    """Eq. 4, 5: the mean over a crop's instances, [B, T, K] to [B, K]: in no order, and a distribution again."""
    return instances_BTK.mean(dim=1)


def log_of(bag: Tensor) -> Tensor:
    """Its logarithm; a probability too small for its type counts as the smallest, so that 0 log 0 is 0."""
    return bag.clamp(min=torch.finfo(bag.dtype).tiny).log()
