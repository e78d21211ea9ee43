"""Fixed positions, and which tokens are asked, against golden numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

from fgssl.nn.backbones import Backbone
from fgssl.nn.queries import window_count, window_tokens
from fgssl.nn.sincos import fix_positions, sincos_positions

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "flsl.json").read_text())
GRIDS, LARGE = GOLDEN["query_grids"], GOLDEN["sincos_D384_G14"]
VIT = {"class_token": False, "global_pool": "avg", "fc_norm": False, "dynamic_img_size": True}
VIT |= {"img_size": 12, "patch_size": 4, "depth": 1, "embed_dim": 8, "num_heads": 2}


def tokens(grid, window, *draws, corner=(False, False)) -> list[int]:
    (row,) = window_tokens(grid, window, np.array([draws]), np.array([corner])).tolist()
    return row


def test_sincos_positions_are_golden():
    expected = torch.tensor(GOLDEN["sincos_D8_G3"], dtype=torch.float64)
    torch.testing.assert_close(sincos_positions(3, 3, 8), expected, rtol=1e-6, atol=1e-12)
    large = sincos_positions(14, 14, 384)
    assert list(large.shape) == LARGE["shape"]
    assert large.sum().item() == pytest.approx(LARGE["sum"], rel=1e-6)
    assert large[1, :4].tolist() == pytest.approx(LARGE["row1_first4"], rel=1e-6)
    assert large[14, 192:196].tolist() == pytest.approx(LARGE["row14_cols_192_196"], rel=1e-6)


def test_sincos_positions_equal_timms_with_swapped_axes():
    theirs = build_sincos2d_pos_embed([3, 5], 16, interleave_sin_cos=True).roll(8, dims=1)
    torch.testing.assert_close(sincos_positions(3, 5, 16).float(), theirs, rtol=1e-5, atol=1e-6)


def test_fix_positions_of_a_vit():
    network = Backbone("vit_tiny_patch16_224", options=VIT).build()
    fix_positions(network)
    assert not network.pos_embed.requires_grad
    torch.testing.assert_close(network.pos_embed[0], sincos_positions(3, 3, 8).float())
    images = torch.randn(2, 3, 20, 8)
    tokens_BND = network.forward_features(images)  # another size: the positions are interpolated
    assert tokens_BND.shape == (2, 5 * 2, 8)
    torch.testing.assert_close(network(images), tokens_BND.mean(dim=1))
    torch.testing.assert_close(tokens_BND.mean(dim=2), torch.zeros(2, 10), atol=1e-5, rtol=0)  # LayerNorm is the last


@pytest.mark.parametrize(("window", "count"), [(2, 49), (3, 16), (4, 9)])
def test_window_tokens_lie_in_windows_of_their_own(window, count):
    assert window_count((14, 14), window) == count
    draws = np.random.default_rng(0).random((3, count))
    found = window_tokens((14, 14), window, draws, np.zeros((3, 2), bool))
    assert found.shape == (3, count)
    places = {(token // 14 // window, token % 14 // window) for token in found[0].tolist()}
    assert len(places) == count  # each in a window of its own
    assert not torch.equal(found[0], found[1])
    assert window_count((14, 14), 15) == 0


def test_window_tokens_are_golden():
    assert tokens((14, 14), 2, *[0.0] * 49)[:8] == GRIDS["14x14_w2_first8"]
    assert tokens((14, 14), 3, *[0.0] * 16) == GRIDS["14x14_w3_corner00"]
    assert tokens((14, 14), 3, *[0.0] * 16, corner=(True, True)) == GRIDS["14x14_w3_corner11"]
    assert tokens((6, 6), 2, *[0.0] * 9) == GRIDS["6x6_w2"]
    assert sorted(tokens((4, 4), 2, 0.75, 0.0, 0.25, 0.5)) == GRIDS["4x4_w2_offsets_3_0_1_2"]


def test_every_place_of_a_window_is_drawn_equally_often():
    draws = np.random.default_rng(0).random((400, 1))
    seen, counts = window_tokens((2, 2), 2, draws, np.zeros((400, 2), bool)).unique(return_counts=True)
    assert seen.tolist() == [0, 1, 2, 3]
    assert counts.min() > 70


@pytest.mark.parametrize("window", [2, 3, 4, 5])
@pytest.mark.parametrize("grid", [(14, 14), (6, 6), (7, 10)])
def test_every_token_of_a_view_can_be_a_query(grid, window):
    generator = np.random.default_rng(0)
    draws, corners = generator.random((2000, window_count(grid, window))), generator.random((2000, 2)) < 0.5
    found = window_tokens(grid, window, draws, corners)
    assert found.unique().tolist() == list(range(grid[0] * grid[1]))
    assert all(len(set(row)) == len(row) for row in found[:20].tolist())


def test_each_axis_of_a_grid_has_its_own_corner():
    assert tokens((3, 5), 2, 0.0, 0.0) == [0, 2]
    assert tokens((3, 5), 2, 0.0, 0.0, corner=(True, False)) == [5, 7]
    assert tokens((3, 5), 2, 0.0, 0.0, corner=(False, True)) == [1, 3]
    assert tokens((4, 4), 2, *[0.0] * 4, corner=(True, True)) == [0, 2, 8, 10]
