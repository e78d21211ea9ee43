"""MAE: masked autoencoder."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from fgssl.callbacks.reconstructions import Reconstructions
from fgssl.data.batch import Batch, to_device
from fgssl.data.draws import uniform
from fgssl.data.views import Crop
from fgssl.errors import UserError, at_least
from fgssl.losses.mae import patch_statistics, patchify, reconstruction_loss, unpatchify
from fgssl.methods.base import Method, StepResult
from fgssl.nn.backbones import Backbone
from fgssl.nn.sincos import fix_positions


class MAE(Method):
    """Masked autoencoder (He et al., CVPR 2022).

    A ViT sees a random quarter of the patches of an image; a decoder of a few blocks predicts the pixels of the other
    patches. Evaluation, export and fine-tuning use the ViT alone, on all patches. ``batch.views = [view]``.

    The mask of an image is a function of the seed and the sample: it does not depend on the number of processes, and is
    the same after a resume. ``train/loss`` of about 1 with normalised pixels is that of predicting each patch's mean.

    Shapes: B batch, N patches of an image, V visible, M hidden, D channels, P values of a patch.

    Args:
        backbone: a timm ViT. Its position embeddings are fixed sines and cosines and its layers start as in MAE's code,
            unless ``pretrained``. The paper's are ViT-B/16, ViT-L/16 and ViT-H/14; their class token is the feature of
            the linear probe. ``options: {global_pool: avg, fc_norm: false}`` takes the mean of the patches' tokens.
        mask_ratio: share of the patches that are hidden, between 0 and 1. N times 1 - ``mask_ratio``, rounded down, are
            visible.
        normalise_pixels: predict patches of mean 0 and variance 1 (Table 1d); false: the normalised image's pixels.
        decoder_dim: width of the decoder.
        decoder_depth: number of blocks of the decoder.
        decoder_heads: attention heads of a block of the decoder.
        optim: optimiser and learning rate schedule.
    """

    default_views = {"class_path": "SingleView", "init_args": {"scale": [0.2, 1.0], "resample": "bicubic"}}
    views_needed = (1, 1)

    def __init__(
        self,
        backbone: Backbone = Backbone("vit_base_patch16_224"),
        mask_ratio: float = 0.75,
        normalise_pixels: bool = True,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        **base,
    ):
        from fgssl.nn.pixel_decoder import PixelDecoder  # imports timm, which takes seconds

        super().__init__(**base)
        at_least(1, decoder_depth=decoder_depth, decoder_heads=decoder_heads)
        if decoder_dim < 4 or decoder_dim % 4 or decoder_dim % decoder_heads:
            raise UserError(
                f"model.decoder_dim is {decoder_dim}; it must be a multiple of 4 and of model.decoder_heads, "
                f"{decoder_heads}."
            )
        self.encoder = backbone.build()
        check_vit(self.encoder, backbone.name)
        self.patch, self.grid = self.encoder.patch_embed.patch_size, self.encoder.patch_embed.grid_size
        self.image_size = (self.grid[0] * self.patch[0], self.grid[1] * self.patch[1])  # height and width, px
        self.patches = self.grid[0] * self.grid[1]
        at_least(0, mask_ratio=mask_ratio)
        self.visible = int(self.patches * (1 - mask_ratio) + 1e-6)  # 100 x (1 - 0.9) is a little below 10
        if not 0 < self.visible < self.patches:
            raise UserError(
                f"model.mask_ratio is {mask_ratio}: of {self.patches} patches, {self.visible} would be visible. At "
                "least one must be, and at least one hidden."
            )
        self.normalise_pixels = normalise_pixels
        values = 3 * self.patch[0] * self.patch[1]
        width = self.encoder.num_features
        self.decoder = PixelDecoder(width, self.grid, values, decoder_dim, decoder_depth, decoder_heads)
        initialise(self.decoder)
        if not (backbone.pretrained or backbone.weights):
            initialise(self.encoder)
            fix_positions(self.encoder)
            if self.encoder.cls_token is not None:
                nn.init.normal_(self.encoder.cls_token, std=0.02)
        self._seed = 0

    def embed(self, images: Tensor) -> Tensor:
        return self.encoder(images)

    def step(self, batch: Batch) -> StepResult:
        (images,) = batch.views
        # The data module draws the view from the streams 0 and 1.
        visible_BV, masked_BM = self.masks(batch.draw.cpu().numpy(), 2, images.device)
        predicted_BMP = self.predict(images, visible_BV, masked_BM)
        patches_BNP = patchify(images, self.patch)
        loss = reconstruction_loss(predicted_BMP, patches_BNP, masked_BM, normalise=self.normalise_pixels)
        return StepResult(loss)

    def masks(self, draws: np.ndarray, stream: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Numbers of the visible patches [B, V] and of the hidden ones [B, M], a random order of all N for each image.

        Args:
            draws: [B] int64 serial numbers of the samples.
            stream: number of the stream of random numbers, see ``data.draws.uniform``.
            device: device of the result.
        """
        order_BN = uniform(self._seed, draws, stream, self.patches).argsort(axis=1)
        visible_BV, masked_BM = to_device(torch.from_numpy(order_BN), device).tensor_split([self.visible], dim=1)
        return visible_BV, masked_BM

    def predict(self, images: Tensor, visible_BV: Tensor, masked_BM: Tensor) -> Tensor:
        """Predicted values [B, M, P] of the hidden patches of images [B, 3, H, W]."""
        return self.decoder(self.encode(images, visible_BV), visible_BV, masked_BM)

    def encode(self, images: Tensor, visible_BV: Tensor) -> Tensor:
        """Tokens of the ViT, [B, class and register tokens + V, D]: its blocks see the visible patches alone."""
        vit = self.encoder
        tokens_BND = vit._pos_embed(vit.patch_embed(images))
        prefix_BD, patches_BND = tokens_BND.tensor_split([vit.num_prefix_tokens], dim=1)
        seen_BVD = patches_BND.take_along_dim(visible_BV[..., None], dim=1)
        return vit.norm(vit.blocks(vit.norm_pre(torch.cat([prefix_BD, seen_BVD], dim=1))))

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images whose hidden patches are predicted, for pictures.

        With ``normalise_pixels`` the prediction has the mean and the deviation of the true patch, which the decoder
        does not know.

        Args:
            images: [B, 3, H, W], normalised.

        Returns:
            [B, 3, H, W] the images with predicted hidden patches, and [B, 1, H, W] bool, whether a pixel was hidden.
        """
        visible_BV, masked_BM = self.masks(np.arange(len(images)), 0, images.device)
        predicted_BMP = self.predict(images, visible_BV, masked_BM).to(images.dtype)
        patches_BNP = patchify(images, self.patch)
        if self.normalise_pixels:
            mean_BM1, deviation_BM1 = patch_statistics(patches_BNP.take_along_dim(masked_BM[..., None], dim=1))
            predicted_BMP = mean_BM1 + deviation_BM1 * predicted_BMP
        painted_BNP = patches_BNP.scatter(1, masked_BM[..., None].expand_as(predicted_BMP), predicted_BMP)
        hidden_BNP = torch.zeros_like(patches_BNP, dtype=torch.bool)
        hidden_BNP = hidden_BNP.scatter(1, masked_BM[..., None].expand_as(predicted_BMP), True)
        painted, hidden = (unpatchify(x, self.patch, self.grid) for x in (painted_BNP, hidden_BNP))
        return painted, hidden[:, :1]

    def check_views(self, crops: list[Crop]) -> None:
        """Refuse views of another size than the grid of the positions."""
        super().check_views(crops)
        size = crops[0].size
        if self.image_size != (size, size):
            height, width = self.image_size
            raise UserError(
                f"data.views gives images of {size} px, but the positions of model.backbone are those of {height} x "
                f"{width} px: set --model.backbone.options.img_size {size}."
            )

    def configure_callbacks(self) -> list:
        own: list[Callback] = super().configure_callbacks()
        given = getattr(self._trainer, "callbacks", [])
        return own if any(isinstance(c, Reconstructions) for c in given) else [*own, Reconstructions()]


def initialise(network: nn.Module) -> None:
    """Start a network's linear layers, and the projection of patches as one, as in MAE's code: Xavier, biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))  # a view: the weight itself
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_vit(network: Any, name: str) -> None:
    """Refuse a network that is no plain ViT of timm with a LayerNorm on its tokens."""
    plain = all(hasattr(network, part) for part in ("_pos_embed", "blocks", "norm_pre", "num_prefix_tokens"))
    if not plain or getattr(network, "pos_embed", None) is None:
        raise UserError(
            f"model.backbone: '{name}' is no plain ViT. MAE drops tokens, which needs one of timm's vit_..., such as "
            "vit_base_patch16_224; a ResNet or Swin cannot leave patches out."
        )
    if isinstance(network.norm, nn.Identity):
        raise UserError(
            f"model.backbone: '{name}' with its options has no LayerNorm on its tokens. Set --model.backbone.options "
            "'{global_pool: avg, fc_norm: false}'."
        )
