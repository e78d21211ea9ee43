"""trainer.sync_batchnorm: the networks of timm compute the same function before, with and after it."""

import copy
import sys

import pytest
import timm
import torch
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from fgssl.cli.main import main
from fgssl.nn.sync_batch_norm import SyncBatchNorm
from tests.methods.runs import PATIENCE, arguments, assert_same_state, results, state
from tests.warm import CONTEXT

FAMILIES: dict[str, dict] = {  # network with BatchNormAct2d -> options that make it small
    "regnety_002": {},
    "efficientnet_lite0": {},
    "densenet121": {"growth_rate": 4, "block_config": (1, 1, 1, 1)},
    "inception_v3": {},
    "resnetv2_50": {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32), "stem_chs": 8},
    "mobilenetv3_small_050": {},
}
IMAGES = torch.randn(4, 3, 112, 80, generator=torch.Generator().manual_seed(0))


def outputs(network: nn.Module) -> list[torch.Tensor]:
    """In training mode, in which the running statistics change, then in evaluation mode."""
    with torch.no_grad():
        torch.manual_seed(0)  # of dropout
        return [network.train()(IMAGES), network.eval()(IMAGES)]


@pytest.mark.parametrize("name", FAMILIES)
def test_synchronised_network_computes_the_same_and_so_does_the_reverted_one(name):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0, **FAMILIES[name])
    kinds = {part: type(module) for part, module in network.named_modules()}
    assert BatchNormAct2d in kinds.values()
    plain, plugin = copy.deepcopy(network), SyncBatchNorm()

    synchronised = plugin.apply(network)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synchronised.modules())
    assert not any(isinstance(module, BatchNormAct2d) for module in synchronised.modules())
    for ours, theirs in zip(outputs(synchronised), outputs(plain), strict=True):
        assert torch.equal(ours, theirs)

    reverted = plugin.revert(synchronised)
    assert {part: type(module) for part, module in reverted.named_modules()} == kinds
    assert_same_state(reverted.state_dict(), plain.state_dict())
    for ours, theirs in zip(outputs(reverted), outputs(plain), strict=True):
        assert torch.equal(ours, theirs)


def test_torchs_conversion_computes_another_function():
    """The reason for the plugin; once this fails, the plugin is not needed any more."""
    network = timm.create_model("mobilenetv3_small_050", num_classes=0).eval()
    before = network(IMAGES)
    after = TorchSyncBatchNorm().apply(network).eval()(IMAGES)
    assert not torch.allclose(before, after)


def test_revert_keeps_parameters_that_were_frozen_and_modes():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    network[1].requires_grad_(False).eval()
    plugin = SyncBatchNorm()
    weights = dict(network.named_parameters())
    reverted = plugin.revert(plugin.apply(network))
    assert [module.training for module in reverted] == [True, False, True]
    assert all(weight is weights[name] for name, weight in reverted.named_parameters())
    assert not reverted[1].weight.requires_grad


def main_on_the_cpu(line: list[str]) -> None:
    """``fgssl``, where the synchronised layers do without a GPU."""
    nn.SyncBatchNorm.forward = lambda self, x: _BatchNorm.forward(self, x)  # torch's refuses the CPU
    DistributedDataParallel._passing_sync_batchnorm_handle = lambda self, module: None  # so does DDP
    sys.exit(main(line))


@pytest.mark.ddp
def test_run_with_sync_batchnorm_trains_and_tests_as_without_where_there_is_one_process(tmp_path):
    options = "{layers: [1, 1, 1, 1], channels: [16, 16, 32, 32], stem_chs: 8}"
    network = ("--model.backbone", f"{{name: resnetv2_50, small_input: false, options: {options}}}")
    flags = (*network, "--trainer.strategy", "ddp", "--trainer.max_epochs", "1")
    runs = []
    for synchronised in ("false", "true"):
        line = arguments("maskcon", tmp_path, synchronised, *flags, "--trainer.sync_batchnorm", synchronised)
        process = CONTEXT.Process(target=main_on_the_cpu, args=(line,))
        process.start()
        process.join(PATIENCE)
        assert process.exitcode == 0
        runs.append(tmp_path / "maskcon" / synchronised)
    without, ours = runs
    assert_same_state(state(ours), state(without))
    assert results(ours)["metrics"]["test/recall@1"] == results(without)["metrics"]["test/recall@1"]
