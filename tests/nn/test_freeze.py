"""``backbone.freeze``: the first stages of a network stay as they start."""

import copy

import pytest
import torch
from torch import nn

from fgssl.errors import UserError
from fgssl.nn.backbones import Backbone, Encoder
from fgssl.nn.batch_norm import batch_norms
from fgssl.nn.detectors import freeze_unused, intermediate_maps
from fgssl.nn.sync_batch_norm import SyncBatchNorm
from fgssl.nn.teacher import teacher_of
from fgssl.tasks import Finetune

RESNET = {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}
VIT = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 16, "num_heads": 2}
SWIN = {"img_size": 64, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "drop_path_rate": 0.0}
# network, options, size, stages with the stem, prefixes of what the first two stages hold
NETWORKS = {
    "resnet18": (RESNET, 32, 5, ("conv1", "bn1", "layer1")),
    "efficientnet_lite0": ({}, 32, 8, ("conv_stem", "bn1", "blocks.0")),
    "vit_tiny_patch16_224": (VIT, 32, 4, ("cls_token", "pos_embed", "patch_embed", "blocks.0")),
    "swin_tiny_patch4_window7_224": (SWIN, 64, 4, ("patch_embed", "layers.0")),
}


def build(name: str, freeze: int) -> nn.Module:
    torch.manual_seed(0)
    options = NETWORKS[name][0]
    return Backbone(name, options=options, freeze=freeze).build().train()


def step(network: nn.Module, size: int) -> None:
    """One optimiser step on noise, large enough to move every weight that it may."""
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1)) + 3
    trained = [p for p in network.parameters() if p.requires_grad]
    network(images).square().sum().backward()
    torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=0.1).step()


@pytest.mark.parametrize("name", NETWORKS)
def test_first_stages_stay_and_the_others_move(name):
    _, size, _, prefixes = NETWORKS[name]
    network = build(name, freeze=2)
    before = copy.deepcopy(network.state_dict())
    step(network, size)
    moved = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert not {key for key in moved if key.startswith(prefixes)}
    trained = {key for key, _ in build(name, freeze=0).named_parameters() if not key.startswith(prefixes)}
    assert trained <= moved | {key for key in trained if "relative_position" in key or before[key].eq(0).all()}


@pytest.mark.parametrize("name", NETWORKS)
def test_output_is_that_of_the_same_network_in_eval_mode(name):
    _, size, stages, _ = NETWORKS[name]
    images = torch.randn(2, 3, size, size)
    free, frozen = build(name, freeze=0).eval(), build(name, freeze=stages)  # all frozen, in training mode
    torch.testing.assert_close(frozen(images), free(images))
    assert not frozen(images).requires_grad  # no backward through what is frozen


def test_statistics_of_frozen_batch_norm_stay_also_with_an_ema_teacher():
    network = build("resnet18", freeze=2)
    encoder = Encoder(network, nn.Linear(8, 4))
    teacher = teacher_of(encoder)
    encoder.train(), teacher.train()
    before = {name: copy.deepcopy(of.backbone.state_dict()) for name, of in (("s", encoder), ("t", teacher))}
    encoder(torch.randn(4, 3, 32, 32) + 5), teacher(torch.randn(4, 3, 32, 32) - 5)
    for name, of in (("s", encoder), ("t", teacher)):
        after = of.backbone.state_dict()
        assert torch.equal(after["layer1.0.bn1.running_mean"], before[name]["layer1.0.bn1.running_mean"])
        assert not torch.equal(after["layer2.0.bn1.running_mean"], before[name]["layer2.0.bn1.running_mean"])


def test_weights_of_a_frozen_network_load_into_a_free_one(tmp_path):
    frozen = build("resnet18", freeze=3).eval()
    torch.save(frozen.state_dict(), tmp_path / "weights.pth")
    free = Backbone("resnet18", options=RESNET, weights=str(tmp_path / "weights.pth")).build().eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(free(images), frozen(images))


def test_more_stages_than_the_network_has_are_refused():
    with pytest.raises(UserError, match=r"model\.backbone\.freeze is 6; 'resnet18' has 5 stages"):
        build("resnet18", freeze=6)


def test_negative_number_of_stages_is_refused():
    with pytest.raises(UserError, match="freeze is -1"):
        Backbone(freeze=-1)


def test_network_of_unknown_stages_is_refused():
    with pytest.raises(UserError, match="stages of 'bn_inception' are not known"):
        Backbone("bn_inception", freeze=1).build()


def test_fine_tuning_does_not_train_frozen_stages():
    task = Finetune(backbone=Backbone("resnet18", options=RESNET, freeze=2), num_fine=3)
    frozen = {name for name, p in task.backbone.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, p in build("resnet18", freeze=2).named_parameters() if not p.requires_grad}


def test_detection_freezes_unused_weights_beside_frozen_stages():
    network = build("resnet18", freeze=2)
    freeze_unused(network, lambda images: intermediate_maps(network, images, [1, 2, 3]))
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"layer2", "layer3"}
    whole = build("resnet18", freeze=5)
    freeze_unused(whole, lambda images: intermediate_maps(whole, images, [1, 2, 3]))  # nothing is left to train


def test_freeze_statistics_normalises_in_training_as_in_evaluation_and_trains_scale_and_shift():
    torch.manual_seed(0)
    network = Backbone("efficientnet_lite0", freeze_statistics=True).build()
    for layer in batch_norms(network):  # statistics of other images than those of the test
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.5, 2)
    encoder = Encoder(network, nn.Identity())
    copies = {"student": encoder.train(), "teacher": teacher_of(encoder).train(), "evaluation": encoder}
    images = torch.randn(4, 3, 32, 32)
    before = copy.deepcopy(network.state_dict())
    outputs = {name: copied.features(images) for name, copied in copies.items() if name != "evaluation"}
    torch.testing.assert_close(outputs["student"], encoder.eval().features(images))
    torch.testing.assert_close(outputs["teacher"], outputs["student"])
    outputs["student"].square().sum().backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in batch_norms(network))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_freeze_statistics_needs_no_synchronised_batch_norm():
    kept = Backbone("resnet18", options=RESNET, freeze_statistics=True).build()
    model = nn.ModuleDict({"backbone": kept, "head": nn.BatchNorm1d(8)})
    plugin = SyncBatchNorm()
    model = plugin.apply(model)
    assert not any(isinstance(layer, nn.SyncBatchNorm) for layer in batch_norms(model["backbone"]))
    assert isinstance(model["head"], nn.SyncBatchNorm)
    assert isinstance(plugin.revert(model)["head"], nn.BatchNorm1d)


def test_freeze_statistics_of_a_network_without_batch_norm_is_refused():
    with pytest.raises(UserError, match=r"freeze_statistics: 'vit_tiny_patch16_224' has no BatchNorm"):
        Backbone("vit_tiny_patch16_224", options=VIT, freeze_statistics=True).build()
