"""ViTDet's backbone: the weights of a plain ViT give its outputs, windows attend as a plain loop does."""

import pytest
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from fgssl.errors import UserError
from fgssl.nn.backbones import Backbone
from fgssl.nn.vitdet import default_cfgs
from fgssl.nn.weights import load_weights

SHAPE = {"embed_dim": 16, "depth": 4, "num_heads": 2, "img_size": 64}
WITHOUT_CLASS = {"class_token": False, "global_pool": "avg", "fc_norm": False}  # FLSL's


def plain_vit(**options):
    """A plain ViT of random weights whose positions are interpolated to any image."""
    network = Backbone("vit_base_patch16_224", options=SHAPE | {"dynamic_img_size": True} | options).build()
    return randomised(network)


def windowed_vit(**options):
    return Backbone("vitdet_base_patch16", options=SHAPE | options).build().double().eval()


def randomised(network):
    torch.manual_seed(0)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return network.double().eval()


def saved(network, folder) -> str:
    torch.save(network.state_dict(), folder / "plain.pth")
    return str(folder / "plain.pth")


@pytest.mark.parametrize("size", [(64, 64), (64, 96)], ids=str)
def test_converted_weights_give_the_plain_vits_outputs_where_all_blocks_are_global(size, tmp_path):
    """And the tables of relative positions are 0, as they start."""
    plain, network = plain_vit(**WITHOUT_CLASS), windowed_vit(window_size=0)
    said = load_weights(network, saved(plain, tmp_path))
    assert said.startswith(f"{tmp_path}/plain.pth: 53 weights")
    assert "begin anew: blocks.0.attn.rel_pos_h, blocks.0.attn.rel_pos_w and 6 more" in said
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    grid = size[0] // 16, size[1] // 16
    torch.testing.assert_close(
        network.forward_features(images), plain.forward_features(images).transpose(1, 2).unflatten(2, grid)
    )
    torch.testing.assert_close(network(images), plain(images))
    ours, theirs = (
        one.forward_intermediates(images, indices=[1, 3], intermediates_only=True) for one in (network, plain)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("options", "left_out"),
    [
        ({}, "cls_token"),
        ({"class_token": True, "reg_tokens": 4}, "cls_token, reg_token"),
        ({"class_token": False, "global_pool": "avg"}, "fc_norm.weight, fc_norm.bias"),
    ],
    ids=["class_token", "register_tokens", "fc_norm"],
)
def test_patches_keep_their_positions_and_what_has_no_counterpart_is_said(options, left_out, tmp_path):
    plain, network = plain_vit(**options), windowed_vit()
    assert f"left out: {left_out};" in load_weights(network, saved(plain, tmp_path))
    patches = plain.pos_embed[:, 1:] if plain.pos_embed.shape[1] == 17 else plain.pos_embed[:, -16:]
    torch.testing.assert_close(network.pos_embed.flatten(1, 2), patches, rtol=0, atol=0)
    assert network.blocks[2].attn.qkv.weight.equal(plain.blocks[2].attn.qkv.weight)
    assert not network.blocks[2].attn.rel_pos_h.any()


def test_positions_of_a_smaller_image_are_interpolated(tmp_path):
    plain = plain_vit(img_size=32)
    column = torch.tensor([1.0, 3.0], dtype=torch.float64)
    with torch.no_grad():  # 1 on the left half, 3 on the right
        plain.pos_embed[0, 1:] = column.repeat(2)[:, None]
    network = windowed_vit()
    assert "interpolated: pos_embed" in load_weights(network, saved(plain, tmp_path))
    assert network.pos_embed.shape == (1, 4, 4, 16)
    rows = network.pos_embed[0, :, :, 0]
    torch.testing.assert_close(rows[:1].expand(4, 4), rows, rtol=0, atol=1e-5)  # in float32
    assert (rows[0].diff() > 0).all()
    assert rows[0].mean().item() == pytest.approx(2, abs=1e-5)


def test_own_weights_are_taken_as_they_are_and_others_refused(tmp_path):
    network, same = randomised(windowed_vit()), windowed_vit()
    assert "begin anew" not in load_weights(same, saved(network, tmp_path))
    assert all(weight.equal(same.get_parameter(name)) for name, weight in network.named_parameters())
    with pytest.raises(UserError, match=r"of another network .* blocks\.0\.attn\.rel_pos_h is \(27, 8\) there"):
        load_weights(windowed_vit(window_size=7), saved(network, tmp_path))
    with pytest.raises(UserError, match="is of another network"):
        load_weights(windowed_vit(depth=5), saved(plain_vit(), tmp_path))
    with pytest.raises(UserError, match="give those of a plain ViT"):
        Backbone("vitdet_base_patch16", pretrained=True).build()


def test_windows_attend_as_a_plain_loop_does():
    """3 x 5 tokens in windows of 2: the tokens of the last row and column are padded with zeros after the norm."""
    block = randomised(windowed_vit(window_size=2, depth=1, global_attn_indexes=())).blocks[0]
    tokens_HWC = torch.randn(3, 5, 16, dtype=torch.float64)
    with torch.no_grad():
        x_HWC = tokens_HWC + attended(block.attn, block.norm1(tokens_HWC), window=2)
        expected_HWC = x_HWC + block.mlp(block.norm2(x_HWC))
        torch.testing.assert_close(block(tokens_HWC[None])[0], expected_HWC)


def test_global_blocks_attend_with_relative_positions_as_a_plain_loop_does():
    network = randomised(windowed_vit(window_size=2, depth=2, global_attn_indexes=(1,)))
    attention, normal_HWC = network.blocks[1].attn, torch.randn(4, 4, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(attention(normal_HWC[None])[0], attended(attention, normal_HWC, window=4))


def attended(attention, tokens_HWC: torch.Tensor, window: int) -> torch.Tensor:
    """Eq. of ViTDet's attention, one query, one head at a time; the bias is q . (R_h[dy] + R_w[dx]), q not scaled."""
    height, width, dim = tokens_HWC.shape
    heads = attention.num_heads
    result = torch.zeros_like(tokens_HWC)
    for y in range(height):
        for x in range(width):
            top, left = y // window * window, x // window * window
            keys = [(a, b) for a in range(top, top + window) for b in range(left, left + window)]
            seen = [tokens_HWC[a, b] if a < height and b < width else tokens_HWC.new_zeros(dim) for a, b in keys]
            _, k, v = attention.qkv(torch.stack(seen)).view(len(keys), 3, heads, -1).unbind(1)
            q = attention.qkv(tokens_HWC[y, x]).view(3, heads, -1)[0]
            outputs = []
            for head in range(heads):
                scores = []
                for n, (a, b) in enumerate(keys):
                    table = attention.rel_pos_h[y - a + window - 1] + attention.rel_pos_w[x - b + window - 1]
                    scores.append(q[head] @ k[n, head] / (dim // heads) ** 0.5 + q[head] @ table)
                outputs.append(torch.stack(scores).softmax(0) @ v[:, head])
            result[y, x] = attention.proj(torch.cat(outputs))
    return result


def test_images_are_normalised_as_timms_plain_vits():
    ours = default_cfgs["vitdet_base_patch16"].default
    assert (ours.mean, ours.std) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
