"""What the probe classifies: widths, pooling and normalisation of the last blocks."""

from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch

from fgssl.data.datamodule import DataModule
from fgssl.data.datasets.digits import Digits
from fgssl.errors import UserError
from fgssl.evaluation.embedding import Embeddings
from fgssl.evaluation.linear_probe import Features, block_features, feature_width, with_features
from fgssl.nn.backbones import Backbone

SWIN = Backbone(
    "swin_tiny_patch4_window7_224",
    options={"img_size": 32, "window_size": 2, "embed_dim": 8, "depths": [1, 1, 3, 2], "num_heads": [1, 1, 2, 2]},
)
VIT = Backbone("vit_tiny_patch16_224", options={"img_size": 32, "depth": 5, "embed_dim": 12})


def network(backbone: Backbone):
    torch.manual_seed(0)
    return backbone.build().eval()


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "width"),
    [("swin_tiny_patch4_window7_224", 384 + 384 + 768 + 768), ("resnet50", 1024 + 3 * 2048), ("resnet18", 1536)],
)
def test_published_widths_of_the_last_four_blocks(name, width):
    built = Backbone(name).build()
    assert feature_width(built, 4) == width
    assert feature_width(built, 1) == built.num_features


def test_swin_follows_esvit():
    """Mean over the tokens of each block; final normalisation for blocks of the last stage only."""
    swin = network(SWIN)
    expected = []
    with torch.no_grad():
        x = swin.patch_embed(images())
        for number, stage in enumerate(swin.layers):
            x = stage.downsample(x)
            for block in stage.blocks:
                x = block(x)
                expected.append((swin.norm(x) if number == 3 else x).mean(dim=(1, 2)))
        found = block_features(swin, images(), 4)
    torch.testing.assert_close(found, torch.cat(expected[-4:], dim=1))
    assert found.shape[1] == feature_width(swin, 4) == 32 + 32 + 64 + 64


def test_vit_gives_the_normalised_class_tokens():
    vit = network(VIT)
    with torch.no_grad():
        _, layers = vit.forward_intermediates(images(), indices=4, norm=True, return_prefix_tokens=True)
        found = block_features(vit, images(), 4)
    torch.testing.assert_close(found, torch.cat([prefix[:, 0] for _, prefix in layers], dim=1))


@pytest.mark.parametrize("pooling", [None, "avg+max"])
def test_the_last_part_is_the_networks_own_feature(pooling):
    resnet = network(Backbone("resnet18", pooling=pooling, options={"layers": [1, 1, 1, 2], "channels": [4, 4, 8, 8]}))
    with torch.no_grad():
        own = resnet(images())
        found = block_features(resnet, images(), 4)
    assert found.shape[1] == feature_width(resnet, 4) == 4 + 8 + 8 + 8
    assert found[:, -8:].equal(own)
    assert block_features(resnet, images(), 1).equal(own)
    assert not any(module._forward_hooks for module in resnet.modules())


def test_networks_whose_feature_is_not_their_last_blocks_are_refused():
    for name, options, said in (
        ("efficientnet_lite0", {}, "does not come from its last block alone"),
        ("resnet18", {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}, "has 4 accessible blocks"),
        ("pit_ti_224", {}, "has 0 accessible blocks"),
    ):
        built = timm.create_model(name, num_classes=0, **options)
        with pytest.raises(UserError, match=f"{said}.*--blocks 1"):
            feature_width(built, 5)


def digits() -> DataModule:
    return DataModule(Digits(), batch_size=8, num_workers=0)


def test_features_come_in_the_order_of_the_images():
    data = digits()
    rows = data.parts.train
    computed = Embeddings(torch.from_numpy(rows)[:, None].float(), torch.zeros(len(rows)), torch.from_numpy(rows))
    loader = data.train_loader(epoch=2, start_batch=3)
    for ours, theirs, _ in zip(with_features(loader, computed), data.train_loader(2, 3), range(4), strict=False):
        for name in ("fine", "coarse", "index", "draw"):
            assert getattr(ours, name).equal(getattr(theirs, name)), name
        assert ours.views[0][:, 0].long().equal(theirs.index)


def test_the_next_row_takes_the_place_of_one_that_could_not_be_read():
    images = SimpleNamespace(rows=np.array([1, 4, 6]), index=Digits().index())
    features = Features(images, Embeddings(torch.tensor([[1.0], [6.0]]), torch.zeros(2), torch.tensor([1, 6])))
    batch = features[np.array([[0, 9], [1, 9], [2, 9]])]
    assert batch.index.tolist() == [1, 6, 6]
    assert batch.views[0].tolist() == [[1.0], [6.0], [6.0]]
    assert batch.fine.tolist() == [images.index.fine[row] for row in (1, 6, 6)]
