"""A trained network with its preprocessing: from a run, a checkpoint, an export, timm or a weights file."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fgssl.checkpoint import checkpoint_file, fingerprint, read_checkpoint
from fgssl.data.preprocessing import Preprocessing
from fgssl.errors import UserError
from fgssl.methods.arguments import build
from fgssl.methods.base import Method, class_of_path
from fgssl.nn.backbones import Backbone, from_checkpoint, timm_with_ours
from fgssl.report.runs import RunFolder, read_config, run_of
from fgssl.run import read_json
from fgssl.tasks.frozen import Frozen

Whose = Literal["student", "teacher"]


class Model(nn.Module):
    """A network in evaluation mode and the preprocessing of its images.

    ``model.embed([...])`` takes image files, ``model(x)`` preprocessed images.

    Args:
        network: preprocessed images [B, 3, S, S] in, features [B, F] out; ``Method.embed`` for a method.
        preprocessing: from an image to the network's input.
        source: what ``fgssl.load`` finds this network by; empty: nothing.
        whose: ``network`` of ``fgssl.load``, which chose the student or the teacher in ``source``; None: no choice.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, source: str = "", whose: Whose | None = None):
        super().__init__()
        self.network, self.preprocessing, self.source, self.whose = network, preprocessing, source, whose
        if not isinstance(network, _Program):  # a program of torch.export is in evaluation mode for good
            self.eval()
        self.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Device of the weights, and of the features."""
        return next((weight.device for weight in self.parameters()), torch.device("cpu"))

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, F] of preprocessed images [B, 3, S, S]."""
        return self.network(images)

    def embed(self, images: Any, batch_size: int = 64, num_workers: int = 0) -> Tensor:
        """Features [N, F] float32 of N images, on ``device``, as ``fgssl embed`` computes them.

        Args:
            images: one image or a sequence of images: paths of files, PIL images, [H, W, 3] uint8 arrays, [3, H, W] or
                [B, 3, H, W] uint8 tensors, which are resized and normalised as the network expects; or [B, 3, S, S]
                float tensors, which are taken as preprocessed.
            batch_size: images that pass through the network at a time.
            num_workers: processes that read images; 0 reads in this process.

        Raises:
            UserError: an image cannot be read; the message names the file. Or there is no image.
        """
        return self.embed_sequence(_one_by_one(images), batch_size, num_workers)

    def embed_sequence(self, images: Any, batch_size: int = 64, num_workers: int = 0) -> Tensor:
        """As ``embed``, of an object with a length whose items are single images, read one after another."""
        pictures = _Pictures(images, self.preprocessing)
        if not len(pictures):
            raise UserError("no image to embed.")
        loader = DataLoader(pictures, batch_size, num_workers=num_workers, collate_fn=_stack)
        features = []
        with torch.inference_mode():
            for batch in loader:
                if isinstance(batch, UserError):
                    raise batch
                features.append(self(batch.to(self.device)).float())
        return torch.cat(features).clone()  # outside of inference mode, so that autograd accepts the features

    def __repr__(self) -> str:
        name = type(getattr(self.network, "method", self.network)).__name__
        return f"Model({self.source or name}, {self.preprocessing.size} px, on {self.device})"


class _Pictures(Dataset):
    """Network inputs [3, S, S]; a UserError in place of an image that cannot be read."""

    def __init__(self, pictures: Any, preprocessing: Preprocessing):
        self.pictures, self.preprocessing = pictures, preprocessing

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, place: int) -> Tensor | UserError:
        try:
            picture = self.pictures[place]
            if isinstance(picture, Tensor) and picture.is_floating_point():
                return picture
            return self.preprocessing(picture)
        except UserError as error:  # raised in a loader process, it would come with that process's traceback
            return error


def _stack(items: list[Tensor | UserError]) -> Tensor | UserError:
    faults = [item for item in items if isinstance(item, UserError)]
    if faults:
        return faults[0]
    shapes = {tuple(item.shape) for item in items if isinstance(item, Tensor)}
    if len(shapes) > 1:
        return UserError(f"preprocessed images of different shapes: {sorted(shapes)}. Embed them in separate calls.")
    return torch.stack(items)  # type: ignore[arg-type]


def _one_by_one(images: Any) -> list:
    """The single images of ``Model.embed``'s argument."""
    several = images if isinstance(images, list | tuple) else [images]
    return [picture for image in several for picture in _split(image)]


def _split(image: Any) -> Iterator[Any]:
    if isinstance(image, Tensor) and image.ndim == 4:
        yield from image.cpu()
    else:
        yield image


# ---- where networks come from ---------------------------------------------------------------------------------------


def load(source: str | Path, *, backbone: str | None = None, network: Whose | None = None, device: Any = None) -> Model:
    """Network for ``Model.embed`` and ``Index.build``. No data set is read.

    Args:
        source: run folder or ``.ckpt`` file of any method; folder of ``fgssl export``; run folder of ``fgssl embed``;
            ``timm/NAME`` (pretrained) or ``timm/NAME=FILE``; or weights file (``.pth``, ``.safetensors``) with
            ``backbone``.
        backbone: timm name of the network of a weights file, such as ``resnet50``.
        network: network of a checkpoint or weights file whose pooled features are taken: ``student`` or ``teacher``;
            None: the features that the method evaluates. Exports, folders of ``fgssl embed`` and ``timm/NAME`` have
            one network and refuse it.
        device: device of the network; None: the first GPU if there is one, else the CPU.

    Raises:
        UserError: nothing can be loaded from ``source``; the message says what was expected.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[]):  # networks are built on the CPU, with random weights first
        return _load(source, backbone, network, device).to(device)


def _load(source: str | Path, backbone: str | None, network: Whose | None, device: Any) -> Model:
    name, path = str(source), Path(source)
    if name.startswith("timm/"):
        _refuse(name, backbone, None if "=" in name else network)
        return _public(name, network)
    if (path / "fgssl.json").is_file():
        _refuse(name, backbone, network)
        return _exported(path, device)
    if (path / "checkpoints" / "last.ckpt").is_file():
        _refuse(name, backbone)
        return _trained(checkpoint_file(name), network)
    if (path / "embeddings" / "about.json").is_file():
        _refuse(name, backbone, network)
        return _embedded(path / "embeddings", device)
    if path.suffix == ".ckpt" and path.is_file() and "method" in read_checkpoint(name):
        _refuse(name, backbone)
        return _trained(path, network)
    if path.is_file():
        return _public(f"timm/{_needed(backbone, name)}={name}", network)
    found = "holds nothing to load" if path.is_dir() else "is neither a file nor a folder"
    raise UserError(
        f"load: {name} {found}. Give a run folder, a checkpoint, a folder of fgssl export, timm/NAME, or a weights "
        "file with backbone."
    )


def _refuse(name: str, backbone: str | None, network: Whose | None = None) -> None:
    """Refuse the choices that ``name`` leaves no place for; None: it does, or none was made."""
    if backbone is not None:
        raise UserError(f"load: {name} names the network already. Leave out backbone.")
    if network is not None:
        raise UserError(f"load: {name} has one network, not a student and a teacher. Leave out network='{network}'.")


def _needed(backbone: str | None, file: str) -> str:
    if backbone is None:
        raise UserError(f"load: {file} holds weights alone. Name their network: backbone='resnet50', for example.")
    return backbone.removeprefix("timm/")


def _trained(checkpoint: Path, network: Whose | None) -> Model:
    content = read_checkpoint(str(checkpoint))
    method = Method.load_from_checkpoint(checkpoint)
    _check_embeds(method)
    preprocessing = content.get("preprocessing")
    if preprocessing is None and "config" not in content:
        raise UserError(f"{checkpoint} was trained without fgssl's data module, so its preprocessing is unknown.")
    if preprocessing is None:  # up to version 0.2.0
        preprocessing = build(type(method).data_module, content["config"]["data"]).preprocessing.to_dict()
    chosen: nn.Module = method if network is None else method.backbone_of(network)
    return Model(chosen, Preprocessing.from_dict(preprocessing), str(checkpoint.resolve()), network)


def _embedded(folder: Path, device: Any) -> Model:
    """The network that ``fgssl embed`` used: of a checkpoint, or in the state in which it was built."""
    about = read_json(folder / "about.json")
    if "model" in about:  # of Index.save
        if not about["model"]:
            raise UserError(f"{folder}: its network is in no file. Give it: fgssl.Index.load(folder, model).")
        source = _source_of(folder, about)
        model = _load(source, None, about.get("whose"), device)
        _check_weights(model.state_dict(), about, source, folder)
        return model
    if "network" not in about:
        raise UserError(f"{folder} was written by an earlier version, which did not keep its network. Embed again.")
    network = about["network"]
    kind, arguments, checkpoint, seed = (network[key] for key in ("class", "arguments", "checkpoint", "seed"))
    cls = class_of_path(kind, str(folder))
    if checkpoint:
        file = _checkpoint_of(folder, checkpoint)
        state = read_checkpoint(str(file))["state_dict"]
        _check_weights(state, network, f"the checkpoint {file}", folder)
        with from_checkpoint():
            method = build(cls, arguments)
        method.load_state_dict(state)
    else:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the user's GPUs too
        method = build(cls, arguments)
        source = (arguments.get("backbone") or {}).get("weights") or f"{cls.__name__} of seed {seed}"
        _check_weights(method.state_dict(), network, source, folder)
    return Model(method, Preprocessing.from_dict(about["preprocessing"]), str(folder.resolve().parent))


def _source_of(folder: Path, about: dict[str, Any]) -> str:
    """``source`` of the network of a saved index; its new place where it was moved together with the index."""
    source = about["model"]
    name, equals, file = source.partition("=") if source.startswith("timm/") else ("", "", source)
    if not file:  # timm's own weights
        return source
    places = [file]
    if "folder" in about:  # an earlier version did not keep where the index was
        places.insert(0, os.path.normpath(folder.resolve() / os.path.relpath(file, about["folder"])))
    found = next((place for place in places if os.path.exists(place)), None)
    if found is None:
        raise UserError(
            f"{folder}: its network {file} is not there. Put it back, or give it: fgssl.Index.load(folder, model)."
        )
    return f"{name}{equals}{found}"


def _checkpoint_of(folder: Path, checkpoint: str) -> Path:
    """The checkpoint that ``fgssl embed`` used: of the run beside a copied folder, or where it was."""
    files, run = [Path(checkpoint)], folder.parent
    if (run / "results.json").is_file() and (run / "config.yaml").is_file():
        trained = run_of(checkpoint, RunFolder(run, read_json(run / "results.json"), read_config(run / "config.yaml")))
        files = [trained.folder / "checkpoints" / files[0].name, *files] if trained else files
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise UserError(
            f"{folder}: its images were embedded by the checkpoint {checkpoint}, which is not there. Copy its run "
            f"beside {run}, or give the network: fgssl.Index.load(folder, model)."
        )
    return found


def _check_weights(state: dict[str, Tensor], kept: dict[str, Any], source: str, folder: Path) -> None:
    """Refuse other weights than those that embedded the images of a folder.

    Args:
        state: the weights.
        kept: what the folder says of its network; an earlier version wrote no fingerprint of the weights.
        source: where the weights are from.
        folder: the folder.
    """
    if kept.get("fingerprint") not in (None, fingerprint(state)):
        raise UserError(
            f"{source} has been trained further, or replaced, since the images of {folder} were embedded with it. "
            "Embed them again."
        )


def _check_embeds(method: Method) -> None:
    if not method.embeds:
        raise UserError(f"{type(method).__name__} has no embeddings. Load the checkpoint that it started from.")


def _public(name: str, network: Whose | None) -> Model:
    """``timm/NAME`` or ``timm/NAME=FILE``, with the preprocessing that timm describes for the name."""
    architecture, _, file = name.removeprefix("timm/").partition("=")
    backbone = Backbone(architecture, pretrained=not file, weights=file or None, weights_of=network)
    built = Frozen(backbone)
    trained = timm_with_ours().get_pretrained_cfg(architecture)
    preprocessing = Preprocessing.of_timm(trained, backbone.normalisation()) if trained else Preprocessing()
    return Model(built, preprocessing, f"timm/{architecture}={Path(file).resolve()}" if file else name, network)


def _exported(folder: Path, device: Any) -> Model:
    """The evaluated features of ``model.pt2``, or the backbone of ``model.safetensors``."""
    from torch.export.passes import move_to_device_pass

    about = read_json(folder / "fgssl.json")
    preprocessing = Preprocessing.from_dict(about["preprocessing"])
    if (folder / "model.pt2").is_file():
        program = move_to_device_pass(torch.export.load(folder / "model.pt2"), str(device))
        return Model(_Program(program.module()), preprocessing, str(folder.resolve()))
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"load: {folder} holds neither model.pt2 nor model.safetensors. Export with --formats timm.")
    from safetensors.torch import load_file

    network = Backbone(**about["backbone"]).build()
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return Model(network, preprocessing, str(folder.resolve()))


class _Program(nn.Module):
    """A program of torch.export, which refuses ``eval`` and ``train``."""

    def __init__(self, program: nn.Module):
        super().__init__()
        self.program = program

    def forward(self, images: Tensor) -> Tensor:
        return self.program(images)

    def train(self, mode: bool = True) -> "_Program":
        return self
