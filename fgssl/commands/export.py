"""``fgssl export``: a trained network as a timm model, torch.export program, ONNX graph or MoCo v2 checkpoint.

Each file is read back, and its features are compared with those of the network.
"""

import argparse
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fgssl.cli.command_parser import CommandParser
from fgssl.commands.networks import (
    add_network_flags,
    check_network_flags,
    network_configuration,
    public_name,
    take_backbone,
    without_data,
)
from fgssl.errors import UserError
from fgssl.report.runs import flatten
from fgssl.run import write_json

FORMATS = ("timm", "torch", "onnx", "moco")
TOLERANCE = 1e-5  # of the largest feature
INFERENCE = ("with torch.inference_mode():", "    features = model(images)")
MAIN_METRICS = ("test/recall@1", "test/recall@10", "test/map", "test/map@r", "test/nmi")


def main(argv: list[str]) -> int:
    """Run ``fgssl export <argv>``."""
    args = _parser().parse_args(argv)
    check_network_flags(args)
    folder = Path(args.out or default_folder(args))
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty. Choose another folder with --out.")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if "onnx" in (args.formats or ()) and missing:
        raise UserError(f"ONNX needs {', '.join(missing)}: pip install 'fgssl[export]', or --formats timm torch.")

    import torch
    from torch import nn

    from fgssl.commands.restore import restore

    asked = network_configuration(args)
    take_backbone(asked, args)
    if args.model:
        without_data(asked)
    application = restore(asked, [], needs_data=False)
    data, method = application.datamodule, application.model
    preprocessing = data.preprocessing
    size = preprocessing.size
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))

    class Embed(nn.Module):
        """Module whose forward is ``Method.embed``: normalised images to the evaluated features."""

        def __init__(self):
            super().__init__()
            self.method = method

        def forward(self, images_B3HW: torch.Tensor) -> torch.Tensor:
            return self.method.embed(images_B3HW)

    config = flatten(application.config[application.config.subcommand].as_dict())
    backbone = method.backbones().get(method.evaluates)
    formats = formats_of(args.formats, config, backbone, has_onnx=not missing)
    drop_unused(method, lambda: method.embed(images))
    embed = Embed().eval()
    with torch.no_grad():
        expected = embed(images)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {
        "timm": lambda: write_timm(folder, backbone, config, preprocessing),
        "torch": lambda: write_torch(folder, embed, images),
        "onnx": lambda: write_onnx(folder, embed, images),
        "moco": lambda: write_for_moco(folder, backbone, getattr(method, "query", None), config),
    }
    for name in FORMATS:
        if name in formats:
            file, read_back = wanted[name]()
            reference = expected
            if name in ("timm", "moco"):
                with torch.no_grad():
                    reference = backbone(images)
            difference = check(read_back(images), reference, file)
            print(f"{file}: read back, largest relative difference of features {difference:.1e}")
    built = {"name": config.get("model.backbone.name"), "options": options_of(config), **own_parts(config)}
    write_json(folder / "fgssl.json", {"preprocessing": preprocessing.to_dict(), "backbone": built})
    results = results_of(args.ckpt_path) if args.ckpt_path and not args.network else {}  # of the evaluated network
    (folder / "README.md").write_text(card(results, config, data, formats, expected.shape[1]))
    if "timm" in formats:  # safetensors lets its owner alone read it
        shutil.copymode(folder / "README.md", folder / "model.safetensors")
    print(f"model card: {folder / 'README.md'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="fgssl export", description="Write a trained network for use in other software, with a model card."
    )
    add_network_flags(parser)
    parser.add_argument("--out", metavar="FOLDER", help="default <run>/export, or export/NAME for a public network")
    parser.add_argument(
        "--formats", nargs="+", choices=FORMATS,
        help="timm: weights of the backbone; torch: torch.export program; onnx: ONNX graph; moco: checkpoint in the "
        "format of MoCo v2; default timm (of a network of timm) and torch, and onnx where fgssl[export] is installed",
    )  # fmt: skip
    return parser


def formats_of(asked: list[str] | None, config: dict[str, Any], backbone: Any, has_onnx: bool) -> list[str]:
    """Formats to write; None: all that the network has.

    Args:
        asked: value of ``--formats``, or None.
        config: configuration with dotted names.
        backbone: the network; None: the method has none with timm's interface.
        has_onnx: whether the packages of ONNX are there.

    Raises:
        UserError: timm did not build the network, and a format needs that.
    """
    by_timm = "model.backbone.name" in config and hasattr(backbone, "pretrained_cfg")
    if asked is None:
        return [*(("timm",) if by_timm else ()), "torch", *(("onnx",) if has_onnx else ())]
    refused = [name for name in ("timm", "moco") if name in asked and not by_timm]
    if refused:
        network = "the network of the method" if backbone is None else type(backbone).__name__
        raise UserError(f"--formats {refused[0]}: {network} was not built by timm. Take --formats torch.")
    return asked


def default_folder(args: argparse.Namespace) -> Path:
    """Folder to write without ``--out``."""
    if args.model:
        return Path("export") / public_name(args)
    given, chosen = Path(args.ckpt_path), f"_{args.network}" if args.network else ""
    return (given.parent.parent if given.is_file() else given) / f"export{chosen}"


def drop_unused(method: Any, embed: Callable[[], Any]) -> None:
    """Remove the modules that ``embed`` does not use, such as teacher and memory, from a method."""
    import torch

    called: set[int] = set()
    hooks = [m.register_forward_hook(lambda module, *_: called.add(id(module))) for m in method.modules()]
    with torch.no_grad():
        embed()
    for hook in hooks:
        hook.remove()
    for name, child in list(method.named_children()):
        if not called & {id(module) for module in child.modules()}:
            setattr(method, name, torch.nn.Identity())


def check(found: Any, expected: Any, file: Path) -> float:
    """Largest difference between features, relative to the largest feature.

    Raises:
        UserError: it is above ``TOLERANCE``.
    """
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= TOLERANCE:
        raise UserError(f"{file}: features differ from those of the checkpoint by {difference:.1e} (relative).")
    return difference


Written = tuple[Path, Callable[[Any], Any]]  # a file, and a function that loads it and computes features of images


def write_timm(folder: Path, backbone: Any, config: dict[str, Any], preprocessing: Any) -> Written:
    """Write ``model.safetensors``, and timm's ``config.json`` if timm can build the network (no ``own_parts``)."""
    import timm
    import torch
    from safetensors.torch import load_file, save_file

    own = own_parts(config)
    if own:
        weights = {name: value.contiguous() for name, value in backbone.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
    else:
        timm.models.save_for_hf(backbone, str(folder), model_args=options_of(config), safe_serialization=True)
        described = json.loads((folder / "config.json").read_text())
        # timm has written tag, licence, paper and input size of its pretrained weights, which these are not.
        described["pretrained_cfg"] = preprocessing.timm_config() | {"num_classes": 0}
        (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n")

    def read_back(images: Any) -> Any:
        if own:
            from fgssl.nn.backbones import Backbone

            network = Backbone(config["model.backbone.name"], options=options_of(config), **own).build()
            network.load_state_dict(load_file(folder / "model.safetensors"))
        else:
            network = timm.create_model(f"local-dir:{folder}", pretrained=True)
        with torch.no_grad():
            return network.eval()(images)

    return folder / "model.safetensors", read_back


def write_for_moco(folder: Path, backbone: Any, encoder: Any, config: dict[str, Any]) -> Written:
    """Write ``moco.pth.tar``, with the projector of the query encoder if the method has one."""
    from fgssl.nn.backbones import Backbone
    from fgssl.nn.moco import write_moco

    path, name = folder / "moco.pth.tar", config["model.backbone.name"]
    write_moco(path, backbone, getattr(encoder, "head", None), name)

    def read_back(images: Any) -> Any:
        import torch

        network = Backbone(name, options=options_of(config), weights=str(path), **own_parts(config)).build()
        with torch.no_grad():
            return network.eval()(images)

    return path, read_back


def own_parts(config: dict[str, Any]) -> dict[str, Any]:
    """Options of ``Backbone`` that timm does not have: the stem for small images, and the pooling."""
    options = {name: config.get(f"model.backbone.{name}") for name in ("small_input", "pooling")}
    return {name: value for name, value in options.items() if value}


def options_of(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the timm model."""
    prefix = "model.backbone.options."
    return {name.removeprefix(prefix): value for name, value in config.items() if name.startswith(prefix)}


def write_torch(folder: Path, embed: Any, images: Any) -> Written:
    """Write ``model.pt2``, a torch.export program for any batch size."""
    import torch

    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(embed, (images,), dynamic_shapes=({0: batch},)), folder / "model.pt2")

    def read_back(images: Any) -> Any:
        with torch.no_grad():
            return torch.export.load(folder / "model.pt2").module()(images)

    return folder / "model.pt2", read_back


def write_onnx(folder: Path, embed: Any, images: Any) -> Written:
    """Write ``model.onnx`` for any batch size, with the input ``images`` and the output ``features``."""
    import torch

    torch.onnx.export(
        embed, (images,), folder / "model.onnx", dynamo=True, external_data=False, verbose=False,
        input_names=["images"], output_names=["features"], dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip

    def read_back(images: Any) -> Any:
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])

    return folder / "model.onnx", read_back


def results_of(ckpt_path: str) -> dict[str, Any]:
    """``results.json`` in the run folder of a checkpoint; empty if there is none."""
    from fgssl.checkpoint import checkpoint_file

    path = checkpoint_file(ckpt_path).parent.parent / "results.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def card(
    results: dict[str, Any],
    config: dict[str, Any],
    data: Any,
    formats: list[str],
    features: int,
) -> str:
    """Text of the model card: method, data, results, and how to load the files."""
    network, dataset = config.get("model.backbone.name"), data.dataset
    if config["model"] == "Frozen":
        title, about = network, {"network": f"{network}, {origin_of(config)}"}
    else:
        title = f"{config['model']} on {dataset.name}" + (f": {network}" if network else "")
        about = {
            "method": config["model"] + (f", {config['model.variant']}" if config.get("model.variant") else ""),
            **({"network": f"{network}, initialised from {origin_of(config)}"} if network else {}),
            "trained on": f"{dataset.name}: {_part(results, 'train')}, {config['data.protocol.split']} split",
            "licence of the data": dataset.licence,
            "training": f"{results.get('epochs', 'unknown')} epochs, seed {results.get('seed', 'unknown')}",
            "versions": ", ".join(f"{name} {version}" for name, version in results.get("versions", {}).items()),
            "source": f"git {results['git']['revision']}" if results.get("git") else "unknown",
            "command": f"`{results['command']}`" if results.get("command") else "unknown",
        }
    lines = ["---", *(["library_name: timm"] if network else []), "tags: [image-feature-extraction, fgssl]", "---", ""]
    lines += [f"# {title}", "", *(f"- {name}: {value}" for name, value in about.items())]
    metrics = {name: value for name, value in results.get("metrics", {}).items() if name in MAIN_METRICS}
    if metrics:
        lines += ["", f"## Result on {_part(results, 'test')}", "", "| metric | % |", "|---|---|"]
        lines += [f"| {name.removeprefix('test/')} | {100 * value:.2f} |" for name, value in metrics.items()]
    own = own_parts(config)
    lines += ["", "## Use", "", data.preprocessing.words(), "", "```python"]
    lines += ["from PIL import Image", *data.preprocessing.code(), ""]
    lines += ['images = preprocess(Image.open("photo.jpg").convert("RGB"))[None]  # float32 [B, 3, H, W]']
    if "timm" in formats and not own:
        lines += ["", "import timm", "", 'model = timm.create_model("local-dir:.", pretrained=True).eval()', *INFERENCE]
    elif "timm" in formats:
        lines += ["", "from safetensors.torch import load_file", "from fgssl.nn.backbones import Backbone", ""]
        arguments = ", ".join([repr(network), f"options={options_of(config)}", *(f"{k}={v!r}" for k, v in own.items())])
        lines += [f"model = Backbone({arguments}).build().eval()"]
        lines += ['model.load_state_dict(load_file("model.safetensors"))', *INFERENCE]
    if "torch" in formats:
        lines += ["", 'model = torch.export.load("model.pt2").module()', *INFERENCE]
    if "onnx" in formats:
        lines += ["", "import onnxruntime", "", 'session = onnxruntime.InferenceSession("model.onnx")']
        lines += ['features = session.run(["features"], {"images": images.numpy()})[0]']
    lines += ["```", ""]
    lines += [
        f"Paths are relative to this folder. `model.pt2` and `model.onnx` return the {features} evaluated features;"
    ]
    lines += ["`model.safetensors` holds the backbone only. Compare features by cosine similarity."]
    lines += ["`fgssl.json` holds network and preprocessing as values, which `fgssl.load` reads.", ""]
    return "\n".join(lines)


def origin_of(config: dict[str, Any]) -> str:
    """Description of the initial weights of a network."""
    if config.get("model.backbone.weights"):
        whose = config.get("model.backbone.weights_of")
        return f"weights of {Path(config['model.backbone.weights']).name}" + (f", {whose}" if whose else "")
    return "timm's pretrained weights" if config["model.backbone.pretrained"] else "random weights"


def _part(results: dict[str, Any], part: str) -> str:
    """Number of images and classes of a part of the data, as text."""
    facts = results.get("data", {}).get(part)
    name = {"train": "training", "test": "test"}[part]
    return (
        f"{facts['images']:,} {name} images of {facts['classes']} classes (rows {facts['rows_hash']})"
        if facts
        else name
    )
