"""``fgssl maps``: activations, GradCAM, attention, similarity and layout of patches of a network, beside images."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from fgssl.cli.command_parser import CommandParser, picture
from fgssl.cli.compose import assign
from fgssl.commands.networks import (
    add_network_flags,
    add_size_flag,
    backbone_of,
    check_network_flags,
    network_configuration,
    parse_network,
    public_name,
    size_of,
    without_data,
)
from fgssl.data.images import read_image
from fgssl.errors import UserError
from fgssl.report.maps import Line, Panel, draw_panels


class Net(NamedTuple):
    """A network whose maps are drawn.

    Attributes:
        method: method that contains the network.
        backbone: backbone of the student or the teacher.
        whose: student or teacher.
    """

    method: Any
    backbone: Any
    whose: Literal["student", "teacher"]


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

    torch.manual_seed(0)
    photographs = [read_image(image) for image in args.images]
    lines: list[Line] = []
    for number, flags in enumerate(asked):
        net, view, images_B3SS = load(flags, args.images, args.eval_size)
        which = f"{'AB'[number]}: " if args.beside else ""
        found = lines_of(args.images, photographs, view, KINDS[args.kind](net, images_B3SS), which)
        lines = [a._replace(panels=a.panels + b.panels) for a, b in zip(lines, found, strict=True)] if lines else found
    names = [name_of(flags) for flags in asked]
    title = f"{args.kind}: {names[0]}" if len(names) == 1 else f"{args.kind}\nA: {names[0]}\nB: {names[1]}"
    draw_panels(lines, title, args.out)
    print(f"picture: {args.out}")
    return 0


def lines_of(
    paths: list[str], photographs: list[Image.Image], view: Any, maps: list[list[list[Panel]]], which: str
) -> list[Line]:
    """Lines of the picture.

    Args:
        paths: the image files.
        photographs: their images.
        view: evaluation view of the network, for the part of a photograph that it saw.
        maps: panels of each line of each image.
        which: text before the title of each panel, for one of two networks.
    """
    (numbers,) = view.numbers(0, np.array([-1]))
    return [
        Line(Path(path).stem, photograph, view.boxes(photograph.size, numbers)[0], titled)
        for path, photograph, of_image in zip(paths, photographs, maps, strict=True)
        for panels in of_image
        for titled in [[panel._replace(title=which + panel.title) for panel in panels]]
    ]


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="fgssl maps", description="Draw maps of a network over images.")
    first_lines = {name: (kind.__doc__ or "").split("\n")[0] for name, kind in KINDS.items()}
    kinds = "; ".join(f"{name}: {line.rstrip('.')}" for name, line in first_lines.items())
    parser.add_argument("kind", choices=tuple(KINDS), help=kinds)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, resized and cropped as in evaluation")
    add_network_flags(parser)
    add_size_flag(parser)
    parser.add_argument(
        "--beside",
        metavar="RUN|timm/NAME[=FILE]",
        help="second network, drawn to the right: run folder, .ckpt file, or public network with weights FILE",
    )
    parser.add_argument(
        "--out", type=picture, default="maps.png", metavar="FILE.png", help="picture to write; default maps.png"
    )
    return parser


# ---- networks -------------------------------------------------------------------------------------------------------


def load(args: argparse.Namespace, images: list[str], size: int | None = None) -> tuple[Net, Any, Any]:
    """A network, its evaluation view, and images through the view, [B, 3, S, S], normalised.

    Args:
        args: flags of ``add_network_flags``.
        images: the image files.
        size: S, px; None: the evaluation size of the network.
    """
    from fgssl.commands.restore import look, restore

    config = network_configuration(args)
    if size is not None:
        set_size(config, size)
    if args.model:
        without_data(config)
    application = restore(config, [], needs_data=False)
    net = network_of(application.model, None if args.model else args.network)
    return net, application.datamodule.eval_view, look(application.datamodule, images)[1]


def set_size(config: dict[str, Any], size: int) -> None:
    """Evaluate at another size, in place: resizing in proportion, and a ViT or Swin that takes any size."""
    from fgssl.nn.backbones import Backbone, option_of_any_size

    data = config.setdefault("data", {})
    if data.get("eval_resize"):
        data["eval_resize"] = round(data["eval_resize"] * size / size_of(data))
    data["eval_size"] = size
    backbone = backbone_of(config["model"])
    network = Backbone(**backbone | {"pretrained": False, "weights": None, "weights_of": None}).build()
    options = backbone["options"] | option_of_any_size(network, backbone["name"])
    assign(config, "model.init_args.backbone.options", options)


def name_of(args: argparse.Namespace) -> str:
    """Name of a network in the title of the picture: ``cmd_cub/first`` of a run, else of its file."""
    if args.model:
        return public_name(args)
    path = Path(args.ckpt_path).resolve()
    return f"{path.parent.name}/{path.name}" if path.is_dir() else path.name


def network_of(method: Any, whose: Literal["student", "teacher"] | None) -> Net:
    """Backbone of the student or the teacher of a method; None: of the network that the method evaluates.

    Raises:
        UserError: the method has no such network.
    """
    whose = whose or method.evaluates
    return Net(method, method.backbone_of(whose), whose)


# ---- kinds of maps: (network, [B, 3, S, S]) to image, line, panel ----------------------------------------------------


def activated(net: Net, images: Any) -> list[list[list[Panel]]]:
    """Activated instances of CMD (Fig. 7): patches with the same most probable prototype as their image.

    The first panel frames these patches; the other three show the posterior of the three most probable prototypes of
    the image over its patches.
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
        found.append([[Panel("activated", None, own), *(Panel(t, h) for t, h in zip(titles, heats, strict=True))]])
    return found


def patch_posteriors(net: Net) -> Callable:
    """Function from patch features [B, T, F] to prototype posteriors [B, T, K].

    It uses the region-level head, or the image-level head of a method without one (DINO).

    Raises:
        UserError: the method has neither head.
    """
    from fgssl.losses.cmd import log_posterior, posterior

    method = net.method
    heads = getattr(getattr(method, net.whose, None), "heads", {})
    level = next((level for level in ("region", "image") if level in heads), None)
    if level is None:
        raise UserError(
            f"activated: {type(method).__name__} has no prototypes for patches. Use a checkpoint of CMD, EsViT or DINO."
        )
    head, center = heads[level], method.centers[level].value
    if net.whose == "student":
        return lambda x: log_posterior(head(x), tau=method.tau_s).exp()
    return lambda x: posterior(head(x), center=center, tau=method.tau_t_end)


def gradcam(net: Net, images: Any) -> list[list[list[Panel]]]:
    """GradCAM of the last features (CMD, Fig. 6).

    The score is the logit of the most probable prototype of the image-level head; without such a head, half the
    squared norm of the pooled feature. Only what raises the score is drawn; the title says where nothing does.
    """
    import torch

    from fgssl.nn.feature_map import as_map, pooled

    images = images.clone().requires_grad_()  # a teacher's weights require no gradient, so the input must
    raw = net.backbone.forward_features(images)
    pooled_BF = pooled(net.backbone, raw)
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
    titles = ["GradCAM" if heat.any() else "GradCAM: 0 everywhere" for heat in heat_BHW]
    return [[[Panel(title, heat.numpy())]] for title, heat in zip(titles, heat_BHW, strict=True)]


def similarity(net: Net, images: Any) -> list[list[list[Panel]]]:
    """Aggregated similarity scores of the patches of a ViT, per layer (FLSL, Fig. 3)."""
    from fgssl.report.token_maps import similarity_maps

    maps = similarity_maps(net.backbone, images)
    return [
        [[Panel(f"layer {layer}", map_BHW[place].numpy()) for layer, map_BHW in maps.items()]]
        for place in range(len(images))
    ]


def tokens(net: Net, images: Any) -> list[list[list[Panel]]]:
    """t-SNE of the patches of a ViT in each layer, each in the colour of its patch (FLSL, Fig. 4b)."""
    from fgssl.report.token_maps import token_layouts

    return [
        [[Panel(f"layer {layer}", points_HW2=places) for layer, places in layers.items()]]
        for layers in token_layouts(net.backbone, images)
    ]


def attention(net: Net, images: Any) -> list[list[list[Panel]]]:
    """Attention of three framed patches in the last block of a ViT: mean over the heads, and each head (FLSL, Fig. 4a).

    One line for each patch.
    """
    from fgssl.nn.feature_map import token_grid
    from fgssl.report.token_maps import attention_maps, depth_of, query_patches

    depth_of(net.backbone)
    grid = token_grid(net.backbone, images.shape[-2:])
    queries = query_patches(grid)
    frames = [(np.arange(grid[0] * grid[1]) == query).reshape(grid) for query in queries]
    return [
        [_of_heads(map_AHW.numpy(), frame) for map_AHW, frame in zip(maps_QAHW, frames, strict=True)]
        for maps_QAHW in attention_maps(net.backbone, images, queries)
    ]


def _of_heads(map_AHW: np.ndarray, frame: np.ndarray) -> list[Panel]:
    heads = [Panel(f"head {head}", map_HW, frame) for head, map_HW in enumerate(map_AHW, 1)]
    if len(heads) == 1:
        return heads
    return [Panel(f"attention, mean of {len(heads)} heads", map_AHW.mean(axis=0), frame), *heads]


KINDS: dict[str, Callable[[Net, Any], list[list[list[Panel]]]]] = {
    "activated": activated,
    "attention": attention,
    "gradcam": gradcam,
    "similarity": similarity,
    "tokens": tokens,
}
