"""From an image to the input of a network, as evaluation does it."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fgssl.data.augment import IMAGENET_MEAN, IMAGENET_STD, Channels, normalise
from fgssl.data.images import DAMAGED, read_image, to_rgb
from fgssl.data.normalisation import Trained, normalisation
from fgssl.data.views import EvalView
from fgssl.errors import UserError

Picture = str | Path | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True)
class Preprocessing:
    """Resizing, central crop and normalisation of an image.

    Args:
        size: side of the network's input, px.
        resize: length to which the shorter side is resized before the central crop, px; None: the whole image is
            resized to ``size`` x ``size``.
        resample: interpolation of the resizing, with antialiasing.
        mean: channel means, 0 to 1.
        std: channel standard deviations.
    """

    size: int = 224
    resize: int | None = None
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """Preprocessing of the plain values of ``to_dict``."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    @classmethod
    def of_timm(cls, trained: Any, of_weights: Trained | None = None) -> "Preprocessing":
        """Preprocessing that timm's configuration of a network describes.

        Args:
            trained: ``timm.get_pretrained_cfg(name)``.
            of_weights: mean and standard deviation of other weights than timm's.
        """
        size, mean_std = trained.input_size[-1], of_weights or (trained.mean, trained.std)
        resize = None if trained.crop_mode == "squash" else math.floor(size / (trained.crop_pct or 1))
        resample: Any = "bilinear" if trained.interpolation == "bilinear" else "bicubic"  # timm's default
        return cls(size, resize, resample, *normalisation(None, None, mean_std))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON file or a checkpoint."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    def __call__(self, picture: Picture) -> Tensor:
        """Input [3, size, size] float32 of one image.

        Args:
            picture: path of an image file, PIL image, [H, W, 3] uint8 array or [3, H, W] uint8 tensor.

        Raises:
            UserError: the file cannot be read, or ``picture`` is no image; the message names it.
        """
        view = EvalView(self.size, self.resize, self.resample)
        (cut_3SS,) = view.cut(to_tensor(picture), [], view.numbers(0, np.array([-1]))[0])
        return normalise(cut_3SS[None].float().div_(255), self.mean, self.std)[0]

    def timm_config(self) -> dict[str, Any]:
        """Values of ``pretrained_cfg`` in timm's config.json."""
        return {
            "input_size": [3, self.size, self.size], "mean": list(self.mean), "std": list(self.std),
            "interpolation": self.resample, "crop_pct": 1.0 if self.resize is None else self.size / self.resize,
            "crop_mode": "squash" if self.resize is None else "center",
        }  # fmt: skip

    def words(self) -> str:
        """One sentence for a model card."""
        way = f"{self.resample} interpolation with antialiasing"
        if self.resize is None:
            resized = f"resized as a whole to {self.size} x {self.size} px by {way}; the aspect ratio is not kept"
        else:
            resized = f"resized to a shorter side of {self.resize} px by {way}; central crop of {self.size} px"
        mean, std = ([round(value, 4) for value in values] for values in (self.mean, self.std))
        return (
            f"Images: RGB, 8 bits per channel, fully decoded (no JPEG draft mode), not rotated by EXIF; {resized}; "
            f"divided by 255, minus {mean}, divided by {std} per channel."
        )

    def code(self) -> list[str]:
        """Lines of Python that define ``preprocess``, with torchvision alone."""
        mode = f"v2.InterpolationMode.{self.resample.upper()}"
        side = f"({self.size}, {self.size})" if self.resize is None else str(self.resize)
        crop = [] if self.resize is None else [f"    v2.CenterCrop({self.size}),"]
        return [
            "import torch",
            "from torchvision.transforms import v2",
            "",
            "preprocess = v2.Compose([",
            "    v2.PILToTensor(),",
            f"    v2.Resize({side}, {mode}, antialias=True),",
            *crop,
            "    v2.ToDtype(torch.float32, scale=True),",
            f"    v2.Normalize({list(self.mean)}, {list(self.std)}),",
            "])",
        ]


def to_tensor(picture: Picture) -> Tensor:
    """[3, H, W] uint8 of an image; see ``Preprocessing.__call__``."""
    if isinstance(picture, str | Path):
        picture = read_image(picture)
    if isinstance(picture, Image.Image):
        try:
            picture = np.array(to_rgb(picture))
        except DAMAGED as error:  # an opened file is decoded here
            name = getattr(picture, "filename", "") or "an opened image"
            raise UserError(f"unreadable image: {name} ({error})") from error
    if isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8:
        picture = np.require(picture, requirements=["C", "W"])  # PyTorch warns of an array that it cannot write to
        return torch.from_numpy(picture).permute(2, 0, 1)
    if isinstance(picture, Tensor) and picture.ndim == 3 and picture.shape[0] == 3 and picture.dtype == torch.uint8:
        return picture.cpu()
    found = f"{picture.dtype} of shape {tuple(picture.shape)}" if hasattr(picture, "shape") else type(picture).__name__
    raise UserError(
        f"not an image: {found}. Give a path, a PIL image, a [H, W, 3] uint8 array or a [3, H, W] uint8 tensor."
    )
