"""Metric-learning losses and triplet selection of OBD-SD's tables.

Only what differs from pytorch-metric-learning is here: which terms are skipped, what sums are divided by, how triplets
are drawn. Shapes: B batch, T triplets, D embedding, C classes.

Triplets are three [T] tensors of rows (anchor, positive, negative), as pytorch-metric-learning's miners give them. The
samplers here give one for each of the B rows, so that no step waits for the device to count them. A row that has no
triplet is three times the same; ``margin_loss`` leaves it out, and ``without_padding`` removes it for other losses.
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
        triplets: anchors, positives and negatives [T]; those whose anchor is the negative count for nothing.
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
    is_triplet_T = anchor_T != negative_T
    pull_T, push_T = pull_T * is_triplet_T, push_T * is_triplet_T
    active = torch.stack([pull_T > 0, push_T > 0])
    count = active.any(dim=0).sum() if average == "triplets" else active.sum()
    return (pull_T + push_T).sum() / count.clamp(min=1)


def distance(x_TD: Tensor, y_TD: Tensor) -> Tensor:
    """[T] Euclidean distances sqrt(square + 1e-8); the gradient is finite at 0."""
    return ((x_TD - y_TD).square().sum(dim=-1) + 1e-8).sqrt()


# ---- triplets, drawn by torch's generator ---------------------------------------------------------------------------


def random_triplets(embeddings: Tensor, labels: Tensor) -> Triplets:
    """B different triplets out of all triplets of the batch, all equally likely; all of them where there are fewer.

    As in the released code: an anchor may come several times or not at all.
    """
    batch = len(labels)
    positive_BB, negative_BB = _pairs(labels)
    each_P = (positive_BB * negative_BB.sum(dim=1, keepdim=True)).flatten()  # triplets of each of B x B pairs
    last_P = each_P.cumsum(dim=0)
    drawn_B = _different_numbers(batch, last_P[-1])
    pair_B = torch.searchsorted(last_P, drawn_B, right=True).clamp(max=batch * batch - 1)
    anchor_B, positive_B = pair_B // batch, pair_B % batch
    number_B = (drawn_B - (last_P - each_P)[pair_B]).clamp(max=batch - 1)  # of the anchor's negatives
    negatives_first_BB = negative_BB.long().argsort(dim=1, descending=True, stable=True)
    negative_B = negatives_first_BB[anchor_B, number_B]
    return _padded(drawn_B < last_P[-1], anchor_B, positive_B, negative_B)


def _different_numbers(count: int, total: Tensor) -> Tensor:
    """[count] different random whole numbers below ``total``; where there are fewer, then others from ``total`` on.

    The first different ones of many independent numbers, and of 0 to ``count`` - 1 for a small ``total``.
    """
    many = torch.rand(8 * count, dtype=torch.float64, device=total.device) * total
    candidates_M = torch.cat([many.long(), torch.arange(count, device=total.device)])
    sorted_M, order_M = candidates_M.sort(stable=True)
    changes_M = torch.ones_like(sorted_M)
    changes_M[1:] = sorted_M[1:] != sorted_M[:-1]
    seen_M = torch.empty_like(changes_M).scatter_(0, order_M, changes_M).cumsum(dim=0)  # different ones up to here
    return candidates_M[torch.searchsorted(seen_M, torch.arange(1, count + 1, device=total.device))]


def semi_hard_triplets(embeddings: Tensor, labels: Tensor, *, margin: float = 0.2) -> Triplets:
    """A random positive; a negative farther by less than ``margin``, or any if there is none (Schroff et al., 2015)."""
    distance_BB, positive_BB, negative_BB = _candidates(embeddings, labels)
    chosen_B = _draw(positive_BB)
    farther_BB = distance_BB - distance_BB.gather(1, chosen_B[:, None])
    semi_hard_BB = negative_BB & (farther_BB > 0) & (farther_BB < margin)
    return _of_each_row(positive_BB, negative_BB, chosen_B, _draw_among(semi_hard_BB, negative_BB))


def soft_hard_triplets(embeddings: Tensor, labels: Tensor) -> Triplets:
    """A positive farther than the nearest negative, a negative nearer than the farthest positive (MIC, ICCV 2019).

    Any positive or negative where there is none such.
    """
    distance_BB, positive_BB, negative_BB = _candidates(embeddings, labels)
    farthest_B1 = distance_BB.masked_fill(~positive_BB, -torch.inf).amax(dim=1, keepdim=True)
    nearest_B1 = distance_BB.masked_fill(~negative_BB, torch.inf).amin(dim=1, keepdim=True)
    positive_B = _draw_among(positive_BB & (distance_BB > nearest_B1), positive_BB)
    negative_B = _draw_among(negative_BB & (distance_BB < farthest_B1), negative_BB)
    return _of_each_row(positive_BB, negative_BB, positive_B, negative_B)


def distance_weighted_triplets(embeddings: Tensor, labels: Tensor, *, cutoff: float = 0.5) -> Triplets:
    """A random positive; a negative with the probabilities of :func:`inverse_density` (Wu et al., ICCV 2017)."""
    distance_BB, positive_BB, negative_BB = _candidates(embeddings, labels)
    weight_BB = inverse_density(distance_BB, negative_BB, dim=embeddings.shape[1], cutoff=cutoff)
    return _of_each_row(positive_BB, negative_BB, _draw(positive_BB), _draw(weight_BB))


def without_padding(triplets: Triplets) -> Triplets:
    """The triplets without the rows that have none. Waits for the device."""
    anchor_T, positive_T, negative_T = triplets
    found_T = anchor_T != negative_T
    return anchor_T[found_T], positive_T[found_T], negative_T[found_T]


def inverse_density(distances: Tensor, allowed: Tensor, *, dim: int, cutoff: float = 0.5) -> Tensor:
    """Probabilities inverse to the density of the distance r between random points on a sphere.

    exp((2 - D) ln r - (D - 3) / 2 ln(1 - r^2 / 4)), normalised over the allowed candidates.

    Args:
        distances: [A, B] distances r of A anchors to B candidates, unit vectors.
        allowed: [A, B] bool; a row without any gives NaN.
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


def _candidates(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, B] distances, masks of positives and of negatives."""
    z_BD = embeddings.detach()
    cosine_BB = (z_BD @ z_BD.T).float()
    return (2 - 2 * cosine_BB).clamp(min=0).sqrt(), *_pairs(labels)


def _of_each_row(positive_BB: Tensor, negative_BB: Tensor, positive_B: Tensor, negative_B: Tensor) -> Triplets:
    """A triplet for each row as anchor; padded where it has no positive or no negative."""
    used_B = positive_BB.any(dim=1) & negative_BB.any(dim=1)
    return _padded(used_B, torch.arange(len(used_B), device=used_B.device), positive_B, negative_B)


def _padded(used_B: Tensor, *columns_B: Tensor) -> Triplets:
    """The triplets where ``used_B``, and three times the row elsewhere."""
    row_B = torch.arange(len(used_B), device=used_B.device)
    anchor_B, positive_B, negative_B = (torch.where(used_B, column, row_B) for column in columns_B)
    return anchor_B, positive_B, negative_B


def _draw(weights_BB: Tensor) -> Tensor:
    """[B] one column of each row, with probabilities proportional to the weights; any where all are 0.

    ``torch.multinomial`` computes the same, and waits for the device to check the weights.
    """
    weights_BB = weights_BB.float()
    return (weights_BB / torch.empty_like(weights_BB).exponential_()).argmax(dim=1)


def _draw_among(preferred_BB: Tensor, allowed_BB: Tensor) -> Tensor:
    """[B] a random preferred column of each row, or an allowed one where no column is preferred."""
    return _draw(torch.where(preferred_BB.any(dim=1, keepdim=True), preferred_BB, allowed_BB))
