"""The fixed-point vectors keep the cosines, and their dot products are exact."""

import torch
import torch.nn.functional as F

from fgssl.metrics.ranking import cosine, fixed_point, key_blocks


def test_fixed_point_dot_products_are_exact_in_any_order():
    x_ND, _ = fixed_point(torch.randn(50, 512))
    dots = x_ND @ x_ND.T
    assert all(dots[0, j] == sum(int(a) * int(b) for a, b in zip(x_ND[0], x_ND[j], strict=True)) for j in range(50))
    assert dots.max() < 2**53


def test_fixed_point_keeps_the_cosines():
    z = torch.randn(40, 64, dtype=torch.float64) * 10.0 ** torch.randint(-20, 20, (40, 1))
    x_ND, inverse_length_N = fixed_point(z)
    ((_, keys_NN),) = key_blocks(x_ND, x_ND, inverse_length_N, torch.arange(40))
    got = cosine(keys_NN, inverse_length_N[:, None])
    torch.testing.assert_close(got, F.normalize(z, eps=0) @ F.normalize(z, eps=0).T, rtol=0, atol=1e-7)


def test_keys_of_equal_rows_decrease_with_the_row():
    x_ND, inverse_length_N = fixed_point(torch.ones(300, 3))
    ((_, keys_NN),) = key_blocks(x_ND, x_ND, inverse_length_N, torch.arange(300))
    assert (keys_NN.diff(dim=1) < 0).all()
