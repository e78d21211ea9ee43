"""Exact cosine ranking: the same order for any block size, number of ranks and device, ties broken by row.

Shapes: Q queries, B queries of a block, G gallery rows, N rows, D dimensions.

A float dot product depends on the order of summation, so tied neighbours come out in a different order on another
device or in another block. Here the embeddings are integers (held in float64, for the speed of its matrix product)
small enough that every dot product is exact: no order of summation can change it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

MAX_ROWS = 2**22  # the row of a gallery item takes 22 of the 53 bits of a key, its similarity the other 31
BLOCK = 2**24  # keys in memory at once: 128 MiB


def fixed_point(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Integer vectors along the embeddings, with exact dot products.

    Args:
        embeddings: [N, D] finite, of any length; a row of zeros has similarity 0 with everything.

    Returns:
        vectors [N, D], integers of 26 bits held in float64, each row 2^26 x (0.7 to 1.4) long: cosines between them
        are those of the embeddings to about 1e-8, the precision of float32 input. Their inverse lengths [N].

    Raises:
        ValueError: more rows than a key can tell apart.
    """
    if len(embeddings) > MAX_ROWS:
        raise ValueError(f"{len(embeddings)} embeddings, at most {MAX_ROWS} can be ranked")
    if embeddings.device.type == "mps":  # has no float64
        embeddings = embeddings.cpu()
    x_ND = embeddings.detach().double()
    length_N1 = x_ND.norm(dim=1, keepdim=True)
    # A power of two scales without rounding. 1.4 x 1.4 < 2 keeps dot products below 2^53, where float64 integers end;
    # 0.7 keeps rows of unit length, the usual ones, away from the edge where a rounding would change the power.
    length_N1 = (length_N1 / 0.7).clamp(min=torch.finfo(torch.float64).tiny)
    power_N1 = length_N1 / torch.frexp(length_N1).mantissa
    vectors_ND = (x_ND / power_N1).mul_(2**27).round_()
    return vectors_ND, 1 / vectors_ND.square().sum(dim=1).clamp(min=1).sqrt()


def key_blocks(
    queries_QD: Tensor, gallery_GD: Tensor, inverse_length_G: Tensor, rows: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Go through query rows in blocks, with a key for each gallery row: the higher, the nearer, and no two the same.

    Args:
        queries_QD: vectors of ``fixed_point``.
        gallery_GD, inverse_length_G: both results of ``fixed_point``.
        rows: which queries, in which order.

    Yields:
        rows of a block [B] and their keys [B, G] float64, in memory that the next block overwrites.
    """
    row_G = torch.arange(len(gallery_GD), device=gallery_GD.device)
    at_once = max(64, BLOCK // len(gallery_GD) // 64 * 64)  # multiples of 64 make the quickest products
    memory = gallery_GD.new_empty(min(at_once, len(rows)), len(gallery_GD))  # new memory a block costs a fifth more
    for block in rows.split(at_once):
        dots_BG = torch.mm(queries_QD[block], gallery_GD.T, out=memory[: len(block)])
        yield block, keys_from_dots(dots_BG, inverse_length_G, row_G)


def keys_from_dots(dots: Tensor, inverse_length: Tensor, row: Tensor) -> Tensor:
    """Turn exact dot products into keys, in place; ``inverse_length`` and ``row`` are those of the gallery items.

    A key is the cosine in steps of 2^-30 (so that what is tied in exact arithmetic stays tied), times the query's
    length, which does not change its order, minus row / 2^22: of tied items the lower row comes first.
    """
    return dots.mul_(inverse_length * 2**4).round_().sub_(row / MAX_ROWS)  # 2^26 (query's length) x 2^4 = 2^30


def cosine(keys: Tensor, inverse_length: Tensor) -> Tensor:
    """Cosine similarities of keys, to 2^-30; ``inverse_length`` is that of the queries."""
    return keys.ceil() / 2**4 * inverse_length
