"""``trainer.sync_batchnorm`` for the networks of timm."""

from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fgssl.nn.batch_norm import keeps_statistics


class SyncBatchNorm(TorchSyncBatchNorm):
    """Lightning's plugin of ``Trainer(sync_batchnorm=True)`` with timm's conversion.

    torch's conversion, Lightning's default, replaces timm's ``BatchNormAct2d`` (BatchNorm followed by an activation) by
    a BatchNorm without activation: RegNetY, EfficientNet, DenseNet, Inception, ResNetV2, MobileNetV3 and others then
    compute another function.
    """

    def __init__(self) -> None:
        self._replaced: dict[str, nn.Module] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace each BatchNorm by one with the statistics of the batches of all processes; weights are shared.

        Those that keep their statistics stay.
        """
        layers = {name: part for name, part in model.named_modules() if isinstance(part, _BatchNorm)}
        model = convert_sync_batchnorm(model)
        for name, layer in layers.items():
            if keeps_statistics(layer):
                model.set_submodule(name, layer)
            else:
                self._replaced[name] = layer
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the replaced layers back, with the weights and statistics of the synchronised ones."""
        for name, layer in self._replaced.items():
            synchronised = model.get_submodule(name)
            # The same tensors: those of the replaced layer may still lie on the CPU.
            layer._parameters, layer._buffers = synchronised._parameters, synchronised._buffers
            layer.train(synchronised.training)
            model.set_submodule(name, layer)
        self._replaced = {}
        return model
