"""Metric-learning losses and triplet selection of OBD-SD's tables.

Only what differs from pytorch-metric-learning is here: which terms are skipped, what sums are divided by, how triplets
are drawn. Shapes: B batch, A anchors, T triplets, D embedding, C classes.

Triplets are three [T] tensors of rows (anchor, positive, negative), as pytorch-metric-learning's miners give them.
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
    """Multi-similarity loss with its own selection of pairs (Wang et al., CVPR 2019).

    Args:
        embeddings: [B, D] unit rows.
        labels: [B] class labels.
        alpha: sharpness on positive pairs.
        beta: sharpness on negative pairs.
        base: similarity at which a pair has half its weight.
        epsilon: margin of the selection. Kept are negatives more similar than the least similar positive minus
            epsilon, and positives less similar than the most similar negative plus epsilon.

    Returns:
        Scalar, mean over the anchors that keep a positive and a negative; 0 if there is none.
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
    """[B, B] masks of positive pairs, without the diagonal, and of negative pairs."""
    same_BB = labels_B[:, None] == labels_B
    return same_BB.clone().fill_diagonal_(False), ~same_BB


def _log_one_plus_sum(x_BB: Tensor, mask_BB: Tensor) -> Tensor:
    """[B] ln(1 + sum of exp(x) over the mask) of each row; value and gradient are finite for an empty mask."""
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
        labels: [B] class labels, 0 to C - 1.
        triplets: anchors, positives and negatives [T].
        beta: [C] boundary of each class; the class of the anchor decides.
        margin: half the width of the zone around the boundary.
        average: denominator of the sum of both hinges. ``triplets``: triplets with an active hinge, as in the released
            code (it adds two boolean masks, which has been their union since torch 1.2). ``pairs``: active hinges, as
            in the paper of the loss.

    Returns:
        Scalar; 0 if no hinge is active.
    """
    anchor_T, positive_T, negative_T = triplets
    beta_T = beta[labels[anchor_T]]
    pull_T = (distance(embeddings[anchor_T], embeddings[positive_T]) - beta_T + margin).relu()
    push_T = (beta_T - distance(embeddings[anchor_T], embeddings[negative_T]) + margin).relu()
    active = torch.stack([pull_T > 0, push_T > 0])
    count = active.any(dim=0).sum() if average == "triplets" else active.sum()
    return (pull_T + push_T).sum() / count.clamp(min=1)


def distance(x_TD: Tensor, y_TD: Tensor) -> Tensor:
    """[T] Euclidean distances sqrt(square + 1e-8); the gradient is finite at 0."""
    return ((x_TD - y_TD).square().sum(dim=-1) + 1e-8).sqrt()


# ---- triplets, drawn by torch's generator; all but the random ones: one for each anchor that has both partners ------


def random_triplets(embeddings: Tensor, labels: Tensor) -> Triplets:
    """B different triplets out of all triplets of the batch, all equally likely; all of them where there are fewer.

    As in the released code: an anchor may come several times or not at all.
    """
    positive_BB, negative_BB = _pairs(labels)
    anchor_P, positive_P = positive_BB.nonzero(as_tuple=True)
    each_P = negative_BB.sum(dim=1)[anchor_P]  # triplets of each positive pair
    last_P = each_P.cumsum(dim=0)
    total = int(each_P.sum())
    drawn_T = torch.randperm(total, device=labels.device)[: len(labels)]
    pair_T = torch.searchsorted(last_P, drawn_T, right=True)
    number_T = drawn_T - (last_P - each_P)[pair_T]  # of the anchor's negatives
    negatives_first_BB = negative_BB.long().argsort(dim=1, descending=True, stable=True)
    return anchor_P[pair_T], positive_P[pair_T], negatives_first_BB[anchor_P[pair_T], number_T]


def semi_hard_triplets(embeddings: Tensor, labels: Tensor, *, margin: float = 0.2) -> Triplets:
    """A random positive; a negative farther by less than ``margin``, or any if there is none (Schroff et al., 2015)."""
    anchor_A, distance_AB, positive_AB, negative_AB = _candidates(embeddings, labels)
    chosen_A = _draw(positive_AB)
    farther_AB = distance_AB - distance_AB.gather(1, chosen_A[:, None])
    return anchor_A, chosen_A, _draw_among(negative_AB & (farther_AB > 0) & (farther_AB < margin), negative_AB)


def soft_hard_triplets(embeddings: Tensor, labels: Tensor) -> Triplets:
    """A positive farther than the nearest negative, a negative nearer than the farthest positive (MIC, ICCV 2019).

    Any positive or negative where there is none such.
    """
    anchor_A, distance_AB, positive_AB, negative_AB = _candidates(embeddings, labels)
    farthest_A1 = distance_AB.masked_fill(~positive_AB, -torch.inf).amax(dim=1, keepdim=True)
    nearest_A1 = distance_AB.masked_fill(~negative_AB, torch.inf).amin(dim=1, keepdim=True)
    positive_A = _draw_among(positive_AB & (distance_AB > nearest_A1), positive_AB)
    return anchor_A, positive_A, _draw_among(negative_AB & (distance_AB < farthest_A1), negative_AB)


def distance_weighted_triplets(embeddings: Tensor, labels: Tensor, *, cutoff: float = 0.5) -> Triplets:
    """A random positive; a negative with the probabilities of :func:`inverse_density` (Wu et al., ICCV 2017)."""
    anchor_A, distance_AB, positive_AB, negative_AB = _candidates(embeddings, labels)
    weight_AB = inverse_density(distance_AB, negative_AB, dim=embeddings.shape[1], cutoff=cutoff)
    return anchor_A, _draw(positive_AB), _draw(weight_AB)


def inverse_density(distances: Tensor, allowed: Tensor, *, dim: int, cutoff: float = 0.5) -> Tensor:
    """Probabilities inverse to the density of the distance r between random points on a sphere.

    exp((2 - D) ln r - (D - 3) / 2 ln(1 - r^2 / 4)), normalised over the allowed candidates.

    Args:
        distances: [A, B] distances r between unit vectors.
        allowed: [A, B] bool, at least one in each row.
        dim: dimension D of the vectors.
        cutoff: smallest r; shorter distances count as this one.

    Returns:
        [A, B] probabilities; each row sums to 1.
    """
    r_AB = distances.detach().clamp(min=cutoff)
    rest_AB = (1 - r_AB.square() / 4).clamp(min=1e-6)  # r = 2 would have infinite weight
    log_AB = (2 - dim) * r_AB.log() - (dim - 3) / 2 * rest_AB.log()
    return log_AB.masked_fill(~allowed, -torch.inf).softmax(dim=1)


def without_positives(triplets: Triplets, share: float) -> Triplets:
    """Regularisation of R-Margin (Roth et al., ICML 2020): (a, p, n) becomes (a, a, p) with probability ``share``.

    The loss then pushes a sample of the anchor's own class away, so that classes do not collapse.
    """
    anchor_T, positive_T, negative_T = triplets
    flipped_T = torch.rand(len(anchor_T), device=anchor_T.device) < share
    return anchor_T, torch.where(flipped_T, anchor_T, positive_T), torch.where(flipped_T, positive_T, negative_T)


def _candidates(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Anchors [A] that have a positive and a negative; distances to all, masks of positives and negatives [A, B]."""
    positive_BB, negative_BB = _pairs(labels)
    anchor_A = (positive_BB.any(dim=1) & negative_BB.any(dim=1)).nonzero()[:, 0]
    z_BD = embeddings.detach()
    cosine_AB = (z_BD[anchor_A] @ z_BD.T).float()
    distance_AB = (2 - 2 * cosine_AB).clamp(min=0).sqrt()
    return anchor_A, distance_AB, positive_BB[anchor_A], negative_BB[anchor_A]


def _draw(weights_AB: Tensor) -> Tensor:
    """[A] one column of each row, with probabilities proportional to the weights."""
    if len(weights_AB) == 0:
        return torch.empty(0, dtype=torch.long, device=weights_AB.device)
    return torch.multinomial(weights_AB.float(), 1)[:, 0]


def _draw_among(preferred_AB: Tensor, allowed_AB: Tensor) -> Tensor:
    """[A] a random preferred column of each row, or an allowed one where no column is preferred."""
    return _draw(torch.where(preferred_AB.any(dim=1, keepdim=True), preferred_AB, allowed_AB))
