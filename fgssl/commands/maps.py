"""``fgssl maps``: activations, GradCAM, attention and patch similarity of a network, drawn over given images."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fgssl.cli.command_parser import CommandParser
from fgssl.commands.networks import (
    add_network_flags,
    check_network_flags,
    network_configuration,
    parse_network,
    public_name,
    without_data,
)
from fgssl.errors import UserError

SIDE = 224  # px of a picture's image
RED = (214, 39, 40)


class Net(NamedTuple):
    """A network to draw maps of.

    Attributes:
        method: its method.
        backbone: the student's or the teacher's backbone.
        whose: which of the two.
    """

    method: Any
    backbone: Any
    whose: Literal["student", "teacher"]


class Panel(NamedTuple):
    """A picture beside the image.

    Attributes:
        title: text above the picture.
        heat_HW: [h, w] non-negative values of any scale, drawn over the image; None draws the image alone.
        marked_HW: [h, w] bool, patches to frame in red; None frames none.
    """

    title: str
    heat_HW: np.ndarray | None = None
    marked_HW: np.ndarray | None = None


def main(argv: list[str]) -> int:
    """Run ``fgssl maps <argv>``."""
    args = _parser().parse_args(argv)
    for image in args.images:
        if not Path(image).is_file():
            raise UserError(f"image not found: {image}")

    check_network_flags(args)
    asked = [args]
    if args.beside:
        asked.append(beside := parse_network(args.beside))
        beside.network = args.network if beside.ckpt_path or beside.weights else None
        beside.pretrained = args.pretrained

    import torch

    from fgssl.report.figures import QUERY, picture_rows

    torch.manual_seed(0)
    lines: list[list[tuple[np.ndarray, str, str]]] = []
    for number, flags in enumerate(asked):
        net, seen_B3SS, images_B3SS = load(flags, args.images)
        shown = [image.permute(1, 2, 0).numpy() for image in seen_B3SS]
        panels = KINDS[args.kind](net, images_B3SS)
        if not lines:
            lines = [[(s, Path(image).stem, QUERY)] for s, image in zip(shown, args.images, strict=True)]
        which = f"{'AB'[number]}: " if args.beside else ""
        for line, image, of_image in zip(lines, shown, panels, strict=True):
            line += [(paint(image, panel), which + panel.title, "black") for panel in of_image]
    names = [name_of(flags) for flags in asked]
    title = f"{args.kind}: {names[0]}" if len(names) == 1 else f"{args.kind}\nA: {names[0]}\nB: {names[1]}"
    picture_rows(lines, title, Path(args.out))
    print(f"picture: {args.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="fgssl maps", description="Draw maps of a network over given images.")
    first_lines = {name: (kind.__doc__ or "").split("\n")[0] for name, kind in KINDS.items()}
    kinds = "; ".join(f"{name}: {line.rstrip('.')}" for name, line in first_lines.items())
    parser.add_argument("kind", choices=tuple(KINDS), help=kinds)
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files, resized and cropped as in the run's evaluation"
    )
    add_network_flags(parser)
    parser.add_argument(
        "--beside",
        metavar="RUN|timm/NAME[=FILE]",
        help="second network, drawn to the right: run folder, .ckpt file, or public network, with FILE as weights",
    )
    parser.add_argument("--out", default="maps.png", metavar="FILE.png", help="picture to write; default maps.png")
    return parser


# ---- networks -------------------------------------------------------------------------------------------------------


def load(args: argparse.Namespace, images: list[str]) -> tuple[Net, Any, Any]:
    """A network, and image files as its evaluation sees them, [B, 3, S, S]: uint8 to show, and normalised."""
    from fgssl.commands.restore import look, restore

    config = network_configuration(args)
    if args.model:
        without_data(config)
    application = restore(config, [])
    return network_of(application.model, None if args.model else args.network), *look(application.datamodule, images)


def name_of(args: argparse.Namespace) -> str:
    """Name of a network under a picture."""
    return public_name(args) if args.model else Path(args.ckpt_path).name


def network_of(method: Any, whose: Literal["student", "teacher"] | None) -> Net:
    """The backbone of a method's student or teacher; by default of the network that the method evaluates.

    Raises:
        UserError: the method has no such network.
    """
    whose = whose or method.evaluates
    return Net(method, method.backbone_of(whose), whose)


# ---- kinds of maps: (network, [B, 3, S, S]) to the panels of each image ----------------------------------------------


def activated(net: Net, images: Any) -> list[list[Panel]]:
    """Activated instances of CMD (Fig. 7): patches whose most probable prototype is their image's.

    The first panel frames these patches; the others show the posterior of the image's three most probable prototypes
    over the patches.
    """
    import torch

    from fgssl.losses.cmd import bag_of
    from fgssl.nn.feature_map import last_features

    p_of = patch_posteriors(net)
    with torch.no_grad():
        _, map_BFHW = last_features(net.backbone, images)
        p_BTK = p_of(map_BFHW.flatten(2).transpose(1, 2))
    height, width = map_BFHW.shape[2:]
    share_B3, largest_B3 = bag_of(p_BTK).topk(min(3, p_BTK.shape[2]), dim=1)
    found = []
    for p_TK, shares, largest in zip(p_BTK, share_B3.tolist(), largest_B3.tolist(), strict=True):
        own = (p_TK.argmax(dim=1) == largest[0]).view(height, width).numpy()
        heats = [p_TK[:, k].view(height, width).numpy() for k in largest]
        titles = [f"k = {k}, {100 * share:.0f} %" for k, share in zip(largest, shares, strict=True)]
        found.append([Panel("activated", None, own), *(Panel(t, h) for t, h in zip(titles, heats, strict=True))])
    return found


def patch_posteriors(net: Net) -> Callable:
    """Function from patch features [B, T, F] to prototype posteriors [B, T, K].

    The region-level head; the image-level head of a method that has only that (DINO).

    Raises:
        UserError: the method has no such head.
    """
    from fgssl.losses.cmd import log_posterior, posterior

    method = net.method
    heads = getattr(getattr(method, net.whose, None), "heads", {})
    level = next((level for level in ("region", "image") if level in heads), None)
    if level is None:
        raise UserError(f"activated: {type(method).__name__} has no head that judges patches; CMD, EsViT and DINO do.")
    head, center = heads[level], method.centers[level].value
    if net.whose == "student":
        return lambda x: log_posterior(head(x), tau=method.tau_s).exp()
    return lambda x: posterior(head(x), center=center, tau=method.tau_t_end)


def gradcam(net: Net, images: Any) -> list[list[Panel]]:
    """GradCAM of the last features (CMD, Fig. 6).

    The score is the image-level head's logit of the image's most probable prototype. Without such a head it is half
    the squared length of the pooled feature.
    """
    import torch

    from fgssl.nn.feature_map import as_map

    images = images.clone().requires_grad_()  # a teacher's weights ask for no gradient, and the map's needs a graph
    raw = net.backbone.forward_features(images)
    pooled_BF = net.backbone.forward_head(raw, pre_logits=True)
    heads = getattr(getattr(net.method, net.whose, None), "heads", {})
    if "image" in heads:
        logits_BK = heads["image"](pooled_BF)
        likeliest_B1 = (logits_BK - net.method.centers["image"].value).argmax(dim=1, keepdim=True)
        score_B = logits_BK.gather(1, likeliest_B1)[:, 0]
    else:
        score_B = pooled_BF.square().sum(dim=1) / 2
    (gradient,) = torch.autograd.grad(score_B.sum(), raw)
    map_BFHW, gradient_BFHW = (as_map(net.backbone, x.detach(), images) for x in (raw, gradient))
    heat_BHW = (gradient_BFHW.mean(dim=(2, 3), keepdim=True) * map_BFHW).sum(dim=1).relu()
    return [[Panel("GradCAM", heat.numpy())] for heat in heat_BHW]


def similarity(net: Net, images: Any) -> list[list[Panel]]:
    """Aggregated similarity scores of a ViT's patches, layer by layer (FLSL, Fig. 3)."""
    from fgssl.report.token_maps import similarity_maps

    maps = similarity_maps(net.backbone, images)
    return [
        [Panel(f"layer {layer}", map_BHW[place].numpy()) for layer, map_BHW in maps.items()]
        for place in range(len(images))
    ]


def attention(net: Net, images: Any) -> list[list[Panel]]:
    """Attention of three patches in a ViT's last block, the patch framed (FLSL, Fig. 4a)."""
    from fgssl.nn.feature_map import token_grid
    from fgssl.report.token_maps import attention_maps, depth_of, query_patches

    depth_of(net.backbone)
    grid = token_grid(net.backbone, images.shape[-2:])
    queries = query_patches(grid)
    frames = [(np.arange(grid[0] * grid[1]) == query).reshape(grid) for query in queries]
    return [
        [Panel("attention", map_HW, frame) for map_HW, frame in zip(maps_QHW.numpy(), frames, strict=True)]
        for maps_QHW in attention_maps(net.backbone, images, queries)
    ]


KINDS: dict[str, Callable[[Net, Any], list[list[Panel]]]] = {
    "activated": activated,
    "attention": attention,
    "gradcam": gradcam,
    "similarity": similarity,
}


# ---- pictures -------------------------------------------------------------------------------------------------------


def paint(image_HW3: np.ndarray, panel: Panel) -> np.ndarray:
    """The image [SIDE, SIDE, 3] with a panel's heat, scaled to its maximum, and frames."""
    from matplotlib import colormaps
    from PIL import Image, ImageDraw

    image = Image.fromarray(image_HW3).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if panel.heat_HW is not None:
        heat = np.asarray(panel.heat_HW, dtype=np.float32)
        heat = heat / max(float(heat.max()), 1e-12)
        smooth = Image.fromarray(heat).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        colours = colormaps["jet"](np.asarray(smooth))[..., :3] * 255
        image = Image.fromarray((0.5 * np.asarray(image) + 0.5 * colours).astype(np.uint8))
    if panel.marked_HW is not None:
        height, width = panel.marked_HW.shape
        draw = ImageDraw.Draw(image)
        for row, column in np.argwhere(panel.marked_HW).tolist():
            x0, x1 = (SIDE * edge // width for edge in (column, column + 1))
            y0, y1 = (SIDE * edge // height for edge in (row, row + 1))
            draw.rectangle((x0, y0, x1 - 2, y1 - 2), outline=RED, width=3)
    return np.asarray(image)
