"""MAE as a LightningModule: what its encoder and decoder see, its masks, its picture, and its start."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from fgssl.cli.compose import compose
from fgssl.cli.main import main
from fgssl.data.batch import Batch
from fgssl.data.views import Crop, PairViews, SingleView
from fgssl.errors import UserError
from fgssl.losses.mae import patchify
from fgssl.methods.mae import MAE
from fgssl.nn.backbones import Backbone
from fgssl.nn.sincos import sincos_positions
from fgssl.optim import Optim
from tests.methods.runs import ROOT, state

VIT = {"img_size": 16, "patch_size": 4, "depth": 2, "embed_dim": 16, "num_heads": 2}
AVERAGE = {"global_pool": "avg", "fc_norm": False}
POOLING = {"class token": {}, "mean": AVERAGE, "no class token": AVERAGE | {"class_token": False}}
ADAMW = Optim(name="adamw", lr=0.01, warmup=0)


def mae(vit=None, **options) -> MAE:
    torch.manual_seed(0)
    settings = {"decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 2, "optim": ADAMW}
    return MAE(Backbone("vit_tiny_patch16_224", options=VIT | (vit or {})), **(settings | options))


def batch_of(images: int = 3, size: int = 16, first_draw: int = 10) -> Batch:
    generator, rows = torch.Generator().manual_seed(1), torch.arange(images)
    return Batch([torch.randn(images, 3, size, size, generator=generator)], rows, rows, rows, first_draw + rows)


def as_in_the_paper(method: MAE, images: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Loss with the whole sequence put back into the order of the image, a mask of it, and a mean over the mask."""
    vit, decoder, losses = method.encoder, method.decoder, []
    for image, seen in zip(images, visible.tolist(), strict=True):
        tokens = F.conv2d(image[None], vit.patch_embed.proj.weight, vit.patch_embed.proj.bias, stride=4).flatten(2).mT
        positions, count = vit.pos_embed, tokens.shape[1]
        prefix = vit.num_prefix_tokens
        tokens = tokens + positions[:, prefix:]
        first = [vit.cls_token + positions[:, :1]] if prefix else []
        x = torch.cat([*first, *(tokens[:, [number]] for number in seen)], dim=1)
        for block in vit.blocks:
            x = block(x)
        x = decoder.embed(vit.norm(x))
        whole = decoder.mask_token_C.expand(1, count, -1).clone()
        for place, number in enumerate(seen):
            whole[:, number] = x[:, prefix + place]
        whole = whole + sincos_positions(4, 4, 16).float()[None]
        x = torch.cat([x[:, :prefix], whole], dim=1)  # the class token's position is 0
        for block in decoder.blocks:
            x = block(x)
        predicted = decoder.predict(decoder.norm(x))[0, prefix:]
        target = patchify(image[None], (4, 4))[0]
        target = (target - target.mean(dim=1, keepdim=True)) / (target.var(dim=1, keepdim=True) + 1e-6) ** 0.5
        hidden = torch.tensor([number not in seen for number in range(count)])
        losses.append((predicted - target).square().mean(dim=1)[hidden])
    return torch.cat(losses).mean()


@pytest.mark.parametrize("pooling", POOLING)
def test_step_is_that_of_the_whole_sequence_with_a_mask(pooling):
    method, batch = mae(POOLING[pooling]).double(), batch_of()
    images = batch.views[0].double()
    visible, _ = method.masks(batch.draw.numpy(), 2, images.device)
    loss = method.step(batch._replace(views=[images])).loss
    torch.testing.assert_close(loss, as_in_the_paper(method, images, visible), rtol=1e-10, atol=1e-10)
    ours = torch.autograd.grad(loss, list(method.decoder.parameters()) + list(method.encoder.blocks.parameters()))
    theirs = torch.autograd.grad(
        as_in_the_paper(method, images, visible),
        list(method.decoder.parameters()) + list(method.encoder.blocks.parameters()),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_gradient_reaches_every_weight_that_trains():
    method = mae()
    method.step(batch_of()).loss.backward()
    for name, weight in method.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None, name
            assert bool((weight.grad != 0).any()), name
    assert not method.encoder.pos_embed.requires_grad


def test_prediction_does_not_depend_on_hidden_pixels():
    """By the encoder the hidden patches do not exist; visible ones matter."""
    method, batch = mae().eval(), batch_of()
    visible, masked = method.masks(batch.draw.numpy(), 2, torch.device("cpu"))
    images = batch.views[0]
    before = method.predict(images, visible, masked)

    def with_noise_in(numbers: torch.Tensor) -> torch.Tensor:
        changed = images.clone()
        for image, row in enumerate(numbers.tolist()):
            for number in row:
                y, x = 4 * (number // 4), 4 * (number % 4)
                changed[image, :, y : y + 4, x : x + 4] = 5.0
        return method.predict(changed, visible, masked)

    assert torch.equal(with_noise_in(masked), before)
    assert not torch.allclose(with_noise_in(visible[:, :1]), before)


def test_blocks_of_the_encoder_see_the_visible_patches_alone():
    method, batch, lengths = mae(), batch_of(), []
    for blocks in (method.encoder.blocks, method.decoder.blocks):
        blocks.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    method.step(batch)
    assert lengths == [1 + 4, 1 + 16]


# ---- masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 4), (0.5, 8), (0.9, 1), (0.6, 6), (0.8, 3), (0.9375, 1)])
def test_visible_patches_are_the_rest_rounded_down(ratio, visible):
    seen, hidden = mae(mask_ratio=ratio).masks(np.arange(5), 2, torch.device("cpu"))
    assert seen.shape == (5, visible)
    assert hidden.shape == (5, 16 - visible)
    both = torch.cat([seen, hidden], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(16).expand(5, 16))


def test_a_share_that_is_a_whole_number_of_patches_is_not_rounded():
    """100 x (1 - 0.9) is 9.999999999999998 in floating point."""
    assert mae({"img_size": 40}, mask_ratio=0.9).visible == 10


def test_every_patch_is_as_often_hidden_as_any_other_and_independently_of_its_neighbour():
    _, hidden = mae().masks(np.arange(20_000), 2, torch.device("cpu"))
    mask = torch.zeros(20_000, 16).scatter(1, hidden, 1.0)
    deviation = (0.75 * 0.25 / 20_000) ** 0.5
    assert (mask.mean(dim=0) - 0.75).abs().max() < 4.5 * deviation
    both = (mask.T @ mask / 20_000)[~torch.eye(16, dtype=torch.bool)]  # 12 of 16 without replacement: 12/16 x 11/15
    assert (both - 0.75 * 11 / 15).abs().max() < 5 * (0.55 * 0.45 / 20_000) ** 0.5


def test_masks_depend_on_seed_and_sample_only():
    method, cpu = mae(), torch.device("cpu")
    draws = np.arange(40) + 10
    _, hidden = method.masks(draws, 2, cpu)
    assert torch.equal(method.masks(draws, 2, cpu)[1], hidden)
    assert torch.equal(method.masks(draws[5:9], 2, cpu)[1], hidden[5:9])  # on another process, the same
    assert len({tuple(sorted(row)) for row in hidden.tolist()}) > 35
    method._seed = 1
    assert not torch.equal(method.masks(draws, 2, cpu)[1], hidden)


# ---- what it takes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio is 1.0: of 16 patches, 0 would be visible"),
        ({"mask_ratio": 0.0}, "16 would be visible"),
        ({"mask_ratio": float("nan")}, "mask_ratio is nan"),
        ({"decoder_dim": 18}, "decoder_dim is 18"),
        ({"decoder_heads": 3}, "multiple of 4 and of model.decoder_heads, 3"),
        ({"decoder_depth": 0}, "decoder_depth is 0"),
    ],
)
def test_impossible_options_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        mae(**options)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_networks_that_cannot_leave_patches_out_are_refused(name):
    with pytest.raises(UserError, match="no plain ViT"):
        MAE(Backbone(name))


def test_a_vit_without_a_layer_norm_on_its_tokens_is_refused():
    with pytest.raises(UserError, match="fc_norm: false"):
        mae({"global_pool": "avg"})


def test_views_of_another_size_or_number_are_refused():
    method = mae()
    method.check_views(SingleView(16).crops)
    with pytest.raises(UserError, match=r"images of 32 px.*16 x 16 px.*img_size 32"):
        method.check_views([Crop(32)])
    with pytest.raises(UserError, match="needs 1"):
        method.check_views(PairViews(size=16).crops)


def test_view_is_the_crop_and_flip_of_the_released_code():
    (crop,) = SingleView(**MAE.default_views["init_args"]).crops
    assert (tuple(crop.scale), crop.flip, crop.resample) == ((0.2, 1.0), 0.5, "bicubic")
    photometric = crop.photometric
    assert (photometric.jitter, photometric.grey, photometric.blur, photometric.solarise) == (0, 0, 0, 0)


# ---- where it starts ------------------------------------------------------------------------------------------------


def test_positions_are_fixed_sines_and_cosines_and_zero_for_the_class_token():
    network = mae().encoder
    assert torch.equal(network.pos_embed[0, 0], torch.zeros(16))
    torch.testing.assert_close(network.pos_embed[0, 1:], sincos_positions(4, 4, 16).float())
    assert not network.pos_embed.requires_grad


def test_layers_start_within_xaviers_bounds_with_zero_biases():
    method = mae({"embed_dim": 64, "num_heads": 4}, decoder_dim=32)
    for layer, inputs, outputs in (
        (method.encoder.patch_embed.proj, 48, 64),
        (method.encoder.blocks[0].attn.qkv, 64, 192),
        (method.decoder.predict, 32, 48),
    ):
        bound = (6 / (inputs + outputs)) ** 0.5
        assert 0.97 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()
    assert method.decoder.mask_token_C.std().item() == pytest.approx(0.02, rel=0.5)


def test_weights_that_are_given_stay(tmp_path):
    torch.manual_seed(3)
    given = timm.create_model("vit_tiny_patch16_224", num_classes=0, **VIT)
    torch.save(given.state_dict(), tmp_path / "vit.pth")
    method = MAE(
        Backbone("vit_tiny_patch16_224", options=VIT, weights=str(tmp_path / "vit.pth")),
        decoder_dim=16,
        decoder_depth=1,
        decoder_heads=2,
    )
    for name, value in given.state_dict().items():
        assert torch.equal(method.encoder.state_dict()[name], value), name


def test_optimiser_has_the_betas_and_decay_of_the_recipe():
    optim = Optim(**compose([ROOT / "experiments" / "rivals" / "mae_cub.yaml"])["model"]["init_args"]["optim"])
    method = mae()
    optimiser = optim.build(method, global_batch=4096)
    assert [group["betas"] for group in optimiser.param_groups] == [(0.9, 0.95)] * 2
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([2.4e-3] * 2)
    decay = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    assert decay[id(method.decoder.blocks[0].norm1.weight)] == decay[id(method.decoder.predict.bias)] == 0
    assert decay[id(method.encoder.patch_embed.proj.weight)] == decay[id(method.encoder.cls_token)] == 0.05
    assert id(method.encoder.pos_embed) not in decay


def test_networks_of_the_paper_have_their_size():
    """The released code's ViT-B/16 and decoder: 111.7 million weights that train."""
    with torch.device("meta"):
        method = MAE()
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)

    def blocks(count: int, width: int) -> int:
        """Matrices of attention (4) and MLP (8), their biases (9), and two LayerNorms (4)."""
        return count * (12 * width**2 + 13 * width)

    encoder = blocks(12, 768) + (768 * 768 + 768) + 768 + 2 * 768  # patches, class token, norm
    decoder = blocks(8, 512) + (768 * 512 + 512) + 512 + 2 * 512 + (512 * 768 + 768)
    assert trained == encoder + decoder == 111_655_680


# ---- a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    vit = json.dumps({**VIT, "img_size": 32, "patch_size": 8})
    line = [
        "fit", "--model", "MAE", "--model.backbone.name", "vit_tiny_patch16_224", "--model.backbone.options", vit,
        "--model.decoder_dim", "16", "--model.decoder_depth", "1", "--model.decoder_heads", "2",
        "--model.optim", "{name: adamw, lr: 2e-3, warmup: 1}", "--data.dataset", "Digits", "--data.num_workers", "0",
        "--data.views", "{size: 32}", "--data.protocol.label_fraction", "0.1", "--data.batch_size", "16",
        "--retrieval.grid", "0", "--trainer.accelerator", "cpu", "--trainer.devices", "1",
        "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false",
        "--trainer.enable_model_summary", "false", "--run.root", str(root), "--run.experiment", "mae",
        "--run.name", "first",
    ]  # fmt: skip
    assert main(line) == 0
    return root / "mae" / "first"


def test_a_run_draws_test_images_and_their_reconstruction(run):
    picture = Image.open(run / "reconstructions.jpg")
    assert picture.height > 2 * picture.width


def test_exported_vit_sees_all_patches(run, tmp_path):
    assert main(["export", "--ckpt_path", str(run), "--out", str(tmp_path / "out"), "--formats", "timm"]) == 0
    options = {**VIT, "img_size": 32, "patch_size": 8}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **options).eval()
    weights = load_file(tmp_path / "out" / "model.safetensors")
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == ([], [])
    for name, value in state(run).items():
        if name.startswith("encoder."):
            assert torch.equal(weights[name.removeprefix("encoder.")], value), name


def test_reconstruction_keeps_the_visible_pixels_and_the_statistics_of_the_hidden_patches():
    method, images = mae(), batch_of().views[0]
    painted, hidden = method.reconstruct(images)
    assert hidden.shape == (3, 1, 16, 16)
    assert hidden.float().mean() == 0.75
    visible = ~hidden.expand_as(images)
    assert torch.equal(painted[visible], images[visible])
    visible_BV, masked_BM = method.masks(np.arange(3), 0, images.device)
    predicted = method.predict(images, visible_BV, masked_BM)
    true = patchify(images, (4, 4)).take_along_dim(masked_BM[..., None], dim=1)
    expected = predicted * (true.var(dim=2, keepdim=True) + 1e-6).sqrt() + true.mean(dim=2, keepdim=True)
    ours = patchify(painted, (4, 4)).take_along_dim(masked_BM[..., None], dim=1)
    torch.testing.assert_close(ours, expected)
    plain, _ = mae(normalise_pixels=False).reconstruct(images)
    torch.testing.assert_close(patchify(plain, (4, 4)).take_along_dim(masked_BM[..., None], dim=1), predicted)
