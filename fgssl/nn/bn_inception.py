"""BN-Inception (Ioffe & Szegedy, ICML 2015, Fig. 5), the "IBN" of the metric-learning tables, as a timm model.

Importing this module makes ``timm.create_model("bn_inception")`` known. Modules are named as in Cadene's
``pretrainedmodels`` (``inception_3a_3x3_reduce``, ``inception_3a_3x3_reduce_bn``, ``last_linear``), so that the
ImageNet weights that the metric-learning codes start from load as they are. Those weights are for blue, green, red in
0 to 255 minus (104, 117, 128). This network takes red, green, blue, normalised by ``MEAN`` and ``STD``, and reverses
the channels itself.
"""

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from fgssl.errors import UserError

MEAN = (128 / 255, 117 / 255, 104 / 255)  # red, green, blue
STD = (1 / 255, 1 / 255, 1 / 255)

# Output channels by block: 1x1, 3x3 reduce, 3x3, double 3x3 reduce, double 3x3, pool projection. A block without 1x1
# and projection halves the map and passes on its pooled input. The branches of 4c to 4e sum to other totals than Fig. 5
# prints; the sums are what the distributed weights have.
BLOCKS: dict[str, tuple[int | None, int, int, int, int, int | None]] = {
    "3a": (64, 64, 64, 64, 96, 32),
    "3b": (64, 64, 96, 64, 96, 64),
    "3c": (None, 128, 160, 64, 96, None),
    "4a": (224, 64, 96, 96, 128, 128),
    "4b": (192, 96, 128, 96, 128, 128),
    "4c": (160, 128, 160, 128, 160, 128),
    "4d": (96, 128, 192, 160, 192, 128),
    "4e": (None, 128, 192, 192, 256, None),
    "5a": (352, 192, 320, 160, 224, 128),
    "5b": (352, 192, 320, 192, 224, 128),
}
MAX_POOLED = "5b"  # max-pools before its projection; the other blocks average
STRIDE = 32


class BNInception(nn.Module):
    """Images [B, 3, H, W] with sides in multiples of 32 px to features [B, 1024], or to logits [B, num_classes].

    Args:
        num_classes: outputs of the classifier; 0: none.
        in_chans: number of image channels; only 3.
        global_pool: ``avg``; ``""`` keeps the map.
    """

    num_features = head_hidden_size = 1024
    feature_info = [{"num_chs": 1024, "reduction": STRIDE, "module": "inception_5b"}]

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, global_pool: str = "avg"):
        super().__init__()
        if in_chans != 3:
            raise ValueError("bn_inception takes images of 3 channels")
        self.grad_checkpointing = False
        self._add("conv1_7x7_s2", 3, 64, kernel=7, stride=2)
        self._add("conv2_3x3_reduce", 64, 64, kernel=1)
        self._add("conv2_3x3", 64, 192, kernel=3)
        channels = 192
        for block in BLOCKS:
            channels = self._add_block(block, channels)
        self.reset_classifier(num_classes, global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _add(self, name: str, inputs: int, outputs: int, *, kernel: int, stride: int = 1) -> None:
        """Add a convolution with bias and its BatchNorm."""
        self.add_module(name, nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2))
        self.add_module(f"{name}_bn", nn.BatchNorm2d(outputs))

    def _add_block(self, block: str, inputs: int) -> int:
        """Add the convolutions of one Inception block; returns its number of output channels."""
        one, reduce, three, double_reduce, double, pooled = BLOCKS[block]
        prefix, stride = f"inception_{block}", 1 if one else 2
        if one:
            self._add(f"{prefix}_1x1", inputs, one, kernel=1)
        self._add(f"{prefix}_3x3_reduce", inputs, reduce, kernel=1)
        self._add(f"{prefix}_3x3", reduce, three, kernel=3, stride=stride)
        self._add(f"{prefix}_double_3x3_reduce", inputs, double_reduce, kernel=1)
        self._add(f"{prefix}_double_3x3_1", double_reduce, double, kernel=3)
        self._add(f"{prefix}_double_3x3_2", double, double, kernel=3, stride=stride)
        if pooled:
            self._add(f"{prefix}_pool_proj", inputs, pooled, kernel=1)
        return (one or 0) + three + double + (pooled or inputs)

    def _convolve(self, x: Tensor, *names: str) -> Tensor:
        """Convolution, BatchNorm and ReLU of each name in turn."""
        for name in names:
            x = F.relu(self.get_submodule(f"{name}_bn")(self.get_submodule(name)(x)))
        return x

    def _block(self, x: Tensor, block: str) -> Tensor:
        prefix, halves = f"inception_{block}", BLOCKS[block][0] is None
        branches = [] if halves else [self._convolve(x, f"{prefix}_1x1")]
        branches.append(self._convolve(x, f"{prefix}_3x3_reduce", f"{prefix}_3x3"))
        double = (f"{prefix}_double_3x3_reduce", f"{prefix}_double_3x3_1", f"{prefix}_double_3x3_2")
        branches.append(self._convolve(x, *double))
        if halves:
            return torch.cat([*branches, _halved(x)], dim=1)
        pool = F.max_pool2d if block == MAX_POOLED else F.avg_pool2d
        return torch.cat([*branches, self._convolve(pool(x, 3, 1, 1), f"{prefix}_pool_proj")], dim=1)

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] images to the map [B, 1024, H / 32, W / 32]."""
        if x.shape[2] % STRIDE or x.shape[3] % STRIDE:
            size = f"{x.shape[2]} x {x.shape[3]}"
            raise UserError(f"bn_inception takes images whose sides are multiples of {STRIDE} px, not {size}.")
        x = self._convolve(x.flip(1), "conv1_7x7_s2")  # blue, green, red, which the weights are for
        x = self._convolve(_halved(x), "conv2_3x3_reduce", "conv2_3x3")
        x = _halved(x)
        for block in BLOCKS:
            x = self._block(x, block)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        return x if pre_logits else self.last_linear(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.last_linear

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        self.num_classes = num_classes
        self.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1)) if global_pool else nn.Identity()
        self.last_linear = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()


def _halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2, ceil_mode=True)


default_cfgs = generate_default_cfgs(
    {
        "bn_inception": {
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "mean": MEAN,
            "std": STD,
            "crop_pct": 0.875,
            "interpolation": "bilinear",
            "first_conv": "conv1_7x7_s2",
            "classifier": "last_linear",
            "num_classes": 1000,
        }
    }
)


@register_model
def bn_inception(pretrained: bool = False, **options: Any) -> BNInception:
    """BN-Inception. Its ImageNet weights are a file that the user gives.

    Raises:
        UserError: ``pretrained`` is asked for: there is nothing to download.
    """
    if pretrained:
        raise UserError(
            "give bn_inception's ImageNet weights as a file: --model.backbone.weights bn_inception-52deb4733.pth, as "
            "the package pretrainedmodels distributes it"
        )
    return build_model_with_cfg(BNInception, "bn_inception", pretrained=False, **options)
