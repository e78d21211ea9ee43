"""The fixed-point vectors keep the cosines, and their dot products are exact."""

import torch
import torch.nn.functional as F

from fgssl.metrics.ranking import Rows, cosine, keys_of, keys_of_pairs


def test_fixed_point_dot_products_are_exact_in_any_order():
    x_ND = Rows(torch.randn(50, 512)).vectors(torch.arange(50))
    dots = x_ND @ x_ND.T
    assert all(dots[0, j] == sum(int(a) * int(b) for a, b in zip(x_ND[0], x_ND[j], strict=True)) for j in range(50))
    assert dots.max() < 2**53


def test_keys_keep_the_cosines():
    z = torch.randn(40, 64, dtype=torch.float64) * 10.0 ** torch.randint(-20, 20, (40, 1))
    rows, every = Rows(z), torch.arange(40)
    got = cosine(keys_of(rows, every, rows), rows.inverse_length_N[:, None])
    expected = F.normalize(z, eps=0) @ F.normalize(z, eps=0).T
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-7)
    (unit_ND,) = rows.units
    torch.testing.assert_close(unit_ND @ unit_ND.T, expected.float(), rtol=0, atol=1e-6)


def test_unit_vectors_are_stored_by_columns():
    z_ND = torch.randn(7, 300)
    units = Rows(z_ND).units
    assert [unit_NC.shape[1] for unit_NC in units] == [128, 128, 44]
    assert all(unit_NC.is_contiguous() for unit_NC in units)  # BLAS copies others
    torch.testing.assert_close(torch.cat(units, dim=1), F.normalize(z_ND))
    assert torch.equal(Rows(z_ND, chunk=300).units[0], torch.cat(units, dim=1))


def test_keys_of_equal_rows_decrease_with_the_row():
    rows, every = Rows(torch.ones(300, 3)), torch.arange(300)
    keys_NN = keys_of(rows, every, rows)
    assert (keys_NN.diff(dim=1) < 0).all()
    assert torch.equal(keys_of(rows, every, rows, every.flip(0)), keys_NN.flip(1))
    assert torch.equal(keys_of_pairs(rows, every, rows, every.flip(0)), keys_NN[every, every.flip(0)])
