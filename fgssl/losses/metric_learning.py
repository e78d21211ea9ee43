"""Deep-metric-learning losses and triplet sampling as the tables of OBD-SD use them.

They differ from pytorch-metric-learning's in what is skipped and what the sums are divided by; those that do not differ
are taken from there. Shapes: B batch, T triplets, D embedding, C classes.

A triplet is (anchor, positive, negative): three [T] tensors of rows, as pytorch-metric-learning's miners give them.
"""

from typing import Literal

import torch
from torch import Tensor

Triplets = tuple[Tensor, Tensor, Tensor]


def multi_similarity(
    embeddings: Tensor,
    labels: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 40.0,
    base: float = 0.5,
    epsilon: float = 0.1,
) -> Tensor:
    """Multi-similarity loss with its own mining (Wang et al., CVPR 2019).

    Args:
        embeddings: [B, D] unit rows.
        labels: [B].
        alpha, beta: sharpness on positives and negatives.
        base: similarity at which a pair counts half.
        epsilon: margin of the mining: negatives above the least similar positive less this, positives below the most
            similar negative plus this.

    Returns:
        Scalar: mean over the anchors that keep a positive and a negative; 0 where none does.
        (pytorch-metric-learning divides by all anchors.)
    """
    s_BB = embeddings @ embeddings.T
    positive_BB, negative_BB = _pairs(labels)
    least_B1 = s_BB.masked_fill(~positive_BB, torch.inf).amin(dim=1, keepdim=True)
    most_B1 = s_BB.masked_fill(~negative_BB, -torch.inf).amax(dim=1, keepdim=True)
    positive_BB = positive_BB & (s_BB - epsilon < most_B1)
    negative_BB = negative_BB & (s_BB + epsilon > least_B1)
    used_B = positive_BB.any(dim=1) & negative_BB.any(dim=1)
    pull_B = _log_one_plus_sum(-alpha * (s_BB - base), positive_BB) / alpha
    push_B = _log_one_plus_sum(beta * (s_BB - base), negative_BB) / beta
    return ((pull_B + push_B) * used_B).sum() / used_B.sum().clamp(min=1)


def _pairs(labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """[B, B] masks of the positives, without the anchor itself, and of the negatives."""
    same_BB = labels_B[:, None] == labels_B
    return same_BB.clone().fill_diagonal_(False), ~same_BB


def _log_one_plus_sum(x_BB: Tensor, mask_BB: Tensor) -> Tensor:
    """ln(1 + sum of exp over the mask) by rows: [B], finite in value and gradient for an empty mask too."""
    masked_BB = x_BB.masked_fill(~mask_BB, -torch.inf)
    return torch.cat([masked_BB, x_BB.new_zeros(len(x_BB), 1)], dim=1).logsumexp(dim=1)


def margin_loss(
    embeddings: Tensor,
    labels: Tensor,
    triplets: Triplets,
    beta: Tensor,
    *,
    margin: float = 0.2,
    average: Literal["triplets", "pairs"] = "triplets",
) -> Tensor:
    """Margin loss (Wu et al., ICCV 2017): positives nearer than beta - margin, negatives farther than beta + margin.

    Args:
        embeddings: [B, D] unit rows.
        labels: [B] in 0 .. C - 1.
        triplets: [T] each.
        beta: [C] boundary of each class; the anchor's counts.
        margin: half the width of the boundary.
        average: what the sum of both hinges is divided by. ``triplets``: those with any active term, as the released
            code does since torch 1.2, where the sum of two masks became their union. ``pairs``: the active terms, as
            the paper of the loss has it.

    Returns:
        Scalar; 0 where nothing is active.
    """
    anchor_T, positive_T, negative_T = triplets
    beta_T = beta[labels[anchor_T]]
    pull_T = (distance(embeddings[anchor_T], embeddings[positive_T]) - beta_T + margin).relu()
    push_T = (beta_T - distance(embeddings[anchor_T], embeddings[negative_T]) + margin).relu()
    active = torch.stack([pull_T > 0, push_T > 0])
    count = active.any(dim=0).sum() if average == "triplets" else active.sum()
    return (pull_T + push_T).sum() / count.clamp(min=1)


def distance(x_TD: Tensor, y_TD: Tensor) -> Tensor:
    """[T] Euclidean distances, with a finite gradient at 0: sqrt(. + 1e-8)."""
    return ((x_TD - y_TD).square().sum(dim=-1) + 1e-8).sqrt()


# ---- triplets: one for each anchor that has a positive and a negative; drawn by torch's generator -------------------


def random_triplets(embeddings: Tensor, labels: Tensor) -> Triplets:
    """Any positive, any negative."""
    anchor_A, _, positive_AB, negative_AB = _candidates(embeddings, labels)
    return anchor_A, _draw(positive_AB), _draw(negative_AB)


def semi_hard_triplets(embeddings: Tensor, labels: Tensor, *, margin: float = 0.2) -> Triplets:
    """Any positive; a negative farther than it by less than ``margin``, or any (Schroff et al., CVPR 2015)."""
    anchor_A, distance_AB, positive_AB, negative_AB = _candidates(embeddings, labels)
    chosen_A = _draw(positive_AB)
    farther_AB = distance_AB - distance_AB.gather(1, chosen_A[:, None])
    return anchor_A, chosen_A, _draw_among(negative_AB & (farther_AB > 0) & (farther_AB < margin), negative_AB)


def soft_hard_triplets(embeddings: Tensor, labels: Tensor) -> Triplets:
    """A positive beyond the nearest negative, a negative within the farthest positive, or any (MIC, ICCV 2019)."""
    anchor_A, distance_AB, positive_AB, negative_AB = _candidates(embeddings, labels)
    farthest_A1 = distance_AB.masked_fill(~positive_AB, -torch.inf).amax(dim=1, keepdim=True)
    nearest_A1 = distance_AB.masked_fill(~negative_AB, torch.inf).amin(dim=1, keepdim=True)
    positive_A = _draw_among(positive_AB & (distance_AB > nearest_A1), positive_AB)
    return anchor_A, positive_A, _draw_among(negative_AB & (distance_AB < farthest_A1), negative_AB)


def distance_weighted_triplets(embeddings: Tensor, labels: Tensor, *, cutoff: float = 0.5) -> Triplets:
    """Any positive; negatives at all distances alike: weighted by :func:`inverse_density` (Wu et al., ICCV 2017)."""
    anchor_A, distance_AB, positive_AB, negative_AB = _candidates(embeddings, labels)
    weight_AB = inverse_density(distance_AB, negative_AB, dim=embeddings.shape[1], cutoff=cutoff)
    return anchor_A, _draw(positive_AB), _draw(weight_AB)


def inverse_density(distances: Tensor, allowed: Tensor, *, dim: int, cutoff: float = 0.5) -> Tensor:
    """Probability of each candidate, the inverse of how many points of a sphere lie at its distance r.

    exp((2 - D) ln r - (D - 3) / 2 ln(1 - r^2 / 4)), normalised over the allowed candidates.

    Args:
        distances: [A, B] between unit vectors.
        allowed: [A, B] bool, at least one a row.
        dim: D.
        cutoff: smaller r count as this.

    Returns:
        [A, B], rows of sum 1.
    """
    r_AB = distances.detach().clamp(min=cutoff)
    rest_AB = (1 - r_AB.square() / 4).clamp(min=1e-6)  # r = 2, the opposite point, would weigh infinitely
    log_AB = (2 - dim) * r_AB.log() - (dim - 3) / 2 * rest_AB.log()
    return log_AB.masked_fill(~allowed, -torch.inf).softmax(dim=1)


def without_positives(triplets: Triplets, share: float) -> Triplets:
    """R-Margin's regularisation (Roth et al., ICML 2020): with probability ``share`` (a, p, n) becomes (a, a, p).

    A sample of the anchor's own class is then pushed away, which keeps classes from collapsing.
    """
    anchor_T, positive_T, negative_T = triplets
    flipped_T = torch.rand(len(anchor_T), device=anchor_T.device) < share
    return anchor_T, torch.where(flipped_T, anchor_T, positive_T), torch.where(flipped_T, positive_T, negative_T)


def _candidates(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Anchors [A] with both kinds of partner; their distances to all, and masks of positives and negatives [A, B]."""
    positive_BB, negative_BB = _pairs(labels)
    anchor_A = (positive_BB.any(dim=1) & negative_BB.any(dim=1)).nonzero()[:, 0]
    z_BD = embeddings.detach()
    cosine_AB = (z_BD[anchor_A] @ z_BD.T).float()
    distance_AB = (2 - 2 * cosine_AB).clamp(min=0).sqrt()
    return anchor_A, distance_AB, positive_BB[anchor_A], negative_BB[anchor_A]


def _draw(weights_AB: Tensor) -> Tensor:
    """[A] one column of each row, by weight."""
    if len(weights_AB) == 0:
        return torch.empty(0, dtype=torch.long, device=weights_AB.device)
    return torch.multinomial(weights_AB.float(), 1)[:, 0]


def _draw_among(preferred_AB: Tensor, allowed_AB: Tensor) -> Tensor:
    """[A] one of the preferred columns of each row; of the allowed ones where it has none."""
    return _draw(torch.where(preferred_AB.any(dim=1, keepdim=True), preferred_AB, allowed_AB))
