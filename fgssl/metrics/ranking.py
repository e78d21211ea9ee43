"""Exact ranking by cosine similarity: the same order for any block size, number of processes and device.

Shapes: Q queries, B queries of a block, G gallery rows, N rows, D dimensions.

A floating-point dot product depends on the order of summation, so the order of near-equal neighbours could differ
between devices or block sizes. Here embeddings are rounded to integers, stored as float64 for fast matrix products,
and small enough that every dot product is exact. Ties are broken by row.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

MAX_ROWS = 2**22  # a key has 53 bits: 22 for the gallery row, 31 for the similarity
BLOCK = 2**24  # keys per block: 128 MiB


def fixed_point(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Round embeddings to integer vectors of the same direction, whose dot products are exact.

    Args:
        embeddings: [N, D] finite, of any norm. A row of zeros has similarity 0 to every row.

    Returns:
        Vectors [N, D]: 26-bit integers stored as float64, each row of norm 0.7 to 1.4 times 2^26, with the cosines of
        the embeddings to about 1e-8 (float32 precision); and the inverse norms of the vectors [N].

    Raises:
        ValueError: more than 2^22 rows.
    """
    if len(embeddings) > MAX_ROWS:
        raise ValueError(f"{len(embeddings)} embeddings; at most {MAX_ROWS} can be ranked")
    if embeddings.device.type == "mps":  # has no float64
        embeddings = embeddings.cpu()
    x_ND = embeddings.detach().double()
    length_N1 = x_ND.norm(dim=1, keepdim=True)
    # Scaling by a power of two is exact. Norms below 1.41 keep dot products below 2^53, the range of exact float64
    # integers; the factor 0.7 keeps unit-norm rows, the usual case, away from a change of the power of two.
    length_N1 = (length_N1 / 0.7).clamp(min=torch.finfo(torch.float64).tiny)
    power_N1 = length_N1 / torch.frexp(length_N1).mantissa
    vectors_ND = (x_ND / power_N1).mul_(2**27).round_()
    return vectors_ND, 1 / vectors_ND.square().sum(dim=1).clamp(min=1).sqrt()


def key_blocks(
    queries_QD: Tensor, gallery_GD: Tensor, inverse_length_G: Tensor, rows: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Sort keys of all gallery rows, one block of queries at a time. Nearer rows have higher keys; keys are unique.

    Args:
        queries_QD: vectors of ``fixed_point``.
        gallery_GD: vectors of ``fixed_point``.
        inverse_length_G: inverse norms of the gallery vectors.
        rows: query rows, in the order of the blocks.

    Yields:
        Query rows of the block [B] and their keys [B, G] in float64. The next block overwrites the keys.
    """
    row_G = torch.arange(len(gallery_GD), device=gallery_GD.device)
    at_once = max(64, BLOCK // len(gallery_GD) // 64 * 64)  # matrix products are fastest for multiples of 64
    memory = gallery_GD.new_empty(min(at_once, len(rows)), len(gallery_GD))  # allocating per block is a fifth slower
    for block in rows.split(at_once):
        dots_BG = torch.mm(queries_QD[block], gallery_GD.T, out=memory[: len(block)])
        yield block, keys_from_dots(dots_BG, inverse_length_G, row_G)


def keys_from_dots(dots: Tensor, inverse_length: Tensor, row: Tensor) -> Tensor:
    """Convert exact dot products to sort keys, in place.

    A key is the cosine, rounded to multiples of 2^-30 so that exact ties remain ties, times the norm of the query,
    minus row / 2^22, which puts the lower row first among ties.

    Args:
        dots: [..., G] dot products; overwritten.
        inverse_length: [G] inverse norms of the gallery vectors.
        row: [G] gallery rows.

    Returns:
        [..., G] keys.
    """
    return dots.mul_(inverse_length * 2**4).round_().sub_(row / MAX_ROWS)  # 2^26 (norm of the query) x 2^4 = 2^30


def cosine(keys: Tensor, inverse_length: Tensor) -> Tensor:
    """Cosine similarities from keys, to 2^-30; ``inverse_length`` holds the inverse norms of the queries."""
    return keys.ceil() / 2**4 * inverse_length
