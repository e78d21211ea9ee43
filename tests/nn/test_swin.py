"""Swin on maps that are no multiple of the window, against an independent reference."""

import copy
import math

import pytest
import timm
import torch
from torch.nn import functional as F

from fgssl.nn.backbones import Backbone
from fgssl.nn.swin import SwinBlock
from fgssl.nn.teacher import teacher_of

NAME = "swin_tiny_patch4_window7_224"
OPTIONS = {"embed_dim": 12, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4), "strict_img_size": False}


def network_of(name: str = NAME, **options):
    """A narrow Swin in float64 whose position biases are large enough to show."""
    torch.manual_seed(0)
    network = Backbone(name, options=OPTIONS | options).build().double()
    with torch.no_grad():
        for parameter_name, weight in network.named_parameters():
            if "relative_position_bias_table" in parameter_name or "norm" in parameter_name:
                weight += torch.randn_like(weight)
    return network.eval()


def images_of(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# ---- the reference: pad, roll, windows, as the original Swin and EsViT -----------------------------------------------


def reference_features(network, images: torch.Tensor) -> torch.Tensor:
    """Feature map [B, H, W, C] after the last normalisation, from the network's parameters alone."""
    embed = network.patch_embed
    x = F.conv2d(images, embed.proj.weight, embed.proj.bias, stride=embed.proj.stride).permute(0, 2, 3, 1)
    x = layer_norm(embed.norm, x)
    for stage in network.layers:
        if hasattr(stage.downsample, "reduction"):
            x = reference_merging(stage.downsample, x)
        for block in stage.blocks:
            x = reference_block(block, x)
    return layer_norm(network.norm, x)


def layer_norm(norm, x):
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def linear(layer, x):
    return F.linear(x, layer.weight, layer.bias)


def reference_merging(merging, x):
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    return linear(merging.reduction, layer_norm(merging.norm, torch.cat(corners, dim=-1)))


def reference_block(block, x):
    (window, _), (shift, _) = block.window_size, block.shift_size
    batch, height, width, channels = x.shape
    rows, columns = (math.ceil(side / window) * window for side in (height, width))
    padded = x.new_zeros(batch, rows, columns, channels)
    padded[:, :height, :width] = layer_norm(block.norm1, x)
    rolled = padded.roll((-shift, -shift), (1, 2))
    # the band of a rolled row: 0 before the last window, 1 and 2 what is whole and what wrapped round within it
    bands = [
        torch.tensor([0 if i < side - window else 1 if i < side - shift else 2 for i in range(side)])
        for side in (rows, columns)
    ]
    regions = 3 * bands[0][:, None] + bands[1][None]
    out = torch.empty_like(rolled)
    for top in range(0, rows, window):
        for left in range(0, columns, window):
            place = (slice(top, top + window), slice(left, left + window))
            region = regions[place].flatten() if shift else torch.zeros(window * window)
            apart = region[:, None] != region[None]
            tokens = rolled[:, place[0], place[1]].reshape(batch, window * window, channels)
            out[:, place[0], place[1]] = attention(block.attn, tokens, apart).view(batch, window, window, channels)
    x = x + out.roll((shift, shift), (1, 2))[:, :height, :width]
    return x + linear(block.mlp.fc2, F.gelu(linear(block.mlp.fc1, layer_norm(block.norm2, x))))


def attention(layer, tokens, apart):
    batch, count, channels = tokens.shape
    side, heads = math.isqrt(count), layer.num_heads
    q, k, v = linear(layer.qkv, tokens).view(batch, count, 3, heads, -1).unbind(2)
    logits = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1])
    row, column = torch.arange(count) // side, torch.arange(count) % side
    offset = (row[:, None] - row + side - 1) * (2 * side - 1) + column[:, None] - column + side - 1
    logits = logits + layer.relative_position_bias_table[offset].permute(2, 0, 1)
    logits = logits - 100.0 * apart
    mixed = torch.einsum("bhij,bjhd->bihd", logits.softmax(-1), v).reshape(batch, count, -1)
    return linear(layer.proj, mixed)


# ---- the tests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 96, 100, 224])
def test_features_and_gradients_are_the_references(size):
    network, images = network_of(), images_of(size)
    ours, reference = network.forward_features(images), reference_features(network, images)
    torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-9)
    weights = list(network.parameters())
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = [torch.autograd.grad((features * direction).sum(), weights) for features in (ours, reference)]
    for our_gradient, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(our_gradient, theirs, rtol=1e-8, atol=1e-8)


def test_window_14_is_the_references():
    """The released CMD run's window: 96 px have 24, 12, 6 and 3 places."""
    network, images = network_of(window_size=14), images_of(96)
    torch.testing.assert_close(
        network.forward_features(images), reference_features(network, images), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(("name", "size"), [(NAME, 224), ("swinv2_tiny_window8_256", 256)])
def test_whole_windows_are_left_as_they_were(name, size):
    ours, images = network_of(name), images_of(size)
    theirs = timm.create_model(name, num_classes=0, **OPTIONS).double().eval()
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(images), theirs(images))


def test_swin_v2_pads_before_it_rolls():
    """14 places with window 8: the same as padding to 16 by hand."""
    block = network_of("swinv2_tiny_window8_256").layers[1].blocks[1]
    x = torch.randn(2, 14, 14, 24, dtype=torch.float64)
    assert any(block.shift_size)
    by_hand = block._attn(F.pad(x, (0, 0, 0, 2, 0, 2)))[:, :14, :14]
    torch.testing.assert_close(block._attn(x), by_hand, rtol=1e-9, atol=1e-12)


def test_a_copy_has_its_own_weights():
    """A teacher's blocks use the teacher's parameters, and the names in a checkpoint are timm's."""
    network, images = network_of(), images_of(96)
    copied = copy.deepcopy(network)
    teacher = teacher_of(network)
    before = network(images)
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
    assert torch.equal(copied(images), before)
    assert torch.equal(teacher(images), before)
    assert sum(isinstance(module, SwinBlock) for module in copied.modules()) == 8
    assert list(network.state_dict()) == list(timm.create_model(NAME, num_classes=0, **OPTIONS).state_dict())
