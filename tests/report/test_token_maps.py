"""Maps of tokens against slow loops, on networks with and without class token."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from fgssl.errors import UserError
from fgssl.nn.backbones import Backbone
from fgssl.report.token_maps import attention_maps, depth_of, query_patches, similarity_maps, token_layouts
from tests.tiny import BACKBONE

SMALL = {"img_size": 12, "patch_size": 4, "depth": 2, "embed_dim": 8, "num_heads": 2}
PLAIN = {"class_token": False, "global_pool": "avg", "fc_norm": False, "dynamic_img_size": True}


@pytest.fixture(params=[{}, PLAIN], ids=["class_token", "plain"])
def network(request):
    torch.manual_seed(0)
    return Backbone("vit_tiny_patch16_224", options=SMALL | request.param).build().eval()


IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def test_similarity_is_the_sum_of_all_cosines_over_the_largest(network):
    maps = similarity_maps(network, IMAGES)
    assert list(maps) == [0, 1, 2]
    with torch.no_grad():
        last = network.forward_features(IMAGES)[:, network.num_prefix_tokens :]
    for tokens_ND, found_HW in zip(last, maps[2], strict=True):
        sums = torch.stack([cosine_similarity(token[None], tokens_ND).sum() for token in tokens_ND]).view(3, 3)
        torch.testing.assert_close(found_HW, (sums / sums.max()).clamp(min=0))
        assert found_HW.max() == 1
    assert not torch.allclose(maps[1], maps[2])


def test_the_first_layer_is_the_projection_of_the_patches(network):
    """Two halves of one colour each, of three rows: the larger half is the brighter."""
    images = torch.full((1, 3, 12, 12), 2.0)
    images[:, :, :4] = -2.0
    with torch.no_grad():
        network.patch_embed.proj.bias.zero_()  # without it the halves are opposite
    found_HW = similarity_maps(network, images)[0][0]
    torch.testing.assert_close(found_HW, torch.tensor([[0.0] * 3, [1.0] * 3, [1.0] * 3]))


def test_attention_is_that_of_the_last_block(network):
    queries = [0, 4, 7]
    found = attention_maps(network, IMAGES, queries)
    assert found.shape == (2, 3, 2, 3, 3)
    attention, prefix = network.blocks[-1].attn, network.num_prefix_tokens
    inside = []
    handle = attention.register_forward_pre_hook(lambda _, inputs: inside.append(inputs[0]))
    with torch.no_grad():
        network.forward_features(IMAGES)
        handle.remove()
        q, k, _ = attention.qkv(inside[0]).view(2, -1, 3, 2, 4).unbind(dim=2)
        for image in range(2):
            for place, query in enumerate(queries):
                for head in range(2):
                    weights = torch.softmax(k[image, :, head] @ q[image, prefix + query, head] / 4**0.5, dim=0)
                    torch.testing.assert_close(found[image, place, head], weights[prefix:].view(3, 3))
    if not prefix:
        torch.testing.assert_close(found.sum(dim=(3, 4)), torch.ones(2, 3, 2))


def test_a_deep_network_shows_five_layers():
    network = Backbone("vit_tiny_patch16_224", options=SMALL | {"depth": 12}).build()
    assert list(similarity_maps(network, IMAGES)) == [0, 3, 6, 9, 12]
    assert query_patches((8, 8)) == [4 * 8 + 4, 1 * 8 + 1, 6 * 8 + 6]


def test_other_networks_are_refused():
    for draw in (similarity_maps, lambda *given: attention_maps(*given, [0])):
        with pytest.raises(UserError, match="ResNet is none"):
            draw(BACKBONE.build(), IMAGES)
    with pytest.raises(UserError, match="ViTs"):
        depth_of(torch.nn.Identity())


def test_layouts_keep_alike_patches_together():
    """The upper half is grey of one brightness, the lower one of another: two groups in each layer."""
    torch.manual_seed(0)
    network = Backbone("vit_tiny_patch16_224", options=SMALL | PLAIN | {"img_size": 24}).build().eval()
    images = torch.full((1, 3, 24, 24), 2.0) + 0.01 * torch.randn(1, 3, 24, 24)
    images[:, :, :12] -= 4.0
    (layers,) = token_layouts(network, images)
    assert list(layers) == [0, 1, 2]
    places = torch.from_numpy(layers[0])
    assert places.shape == (6, 6, 2)
    upper, lower = places[:3].reshape(-1, 2), places[3:].reshape(-1, 2)
    across = torch.cdist(upper, lower).min(dim=1).values
    within = torch.cdist(upper, upper).fill_diagonal_(torch.inf).min(dim=1).values
    assert (within < across).all()
    again = token_layouts(network, images)[0]
    assert (again[2] == layers[2]).all()
