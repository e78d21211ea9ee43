"""Starting weights from files: the known layouts, and which weights of a file fit a network."""

import argparse
import re
import sys
import zipfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fgssl.checkpoint import checkpoint_file, differences, read_backbone
from fgssl.errors import UserError

Whose = Literal["student", "teacher"]
Channels = tuple[float, ...]
State = dict[str, Tensor]

IMAGENET: tuple[Channels, Channels] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean, standard deviation


class Place(NamedTuple):
    """Where a file keeps a network.

    Attributes:
        entry: key of the dictionary of weights; empty where the file itself is that dictionary.
        prefix: what the names of the network's weights begin with, after ``module.`` (DistributedDataParallel).
    """

    entry: str
    prefix: str


class Layout(NamedTuple):
    """How a project stores its networks.

    Attributes:
        name: the project.
        student: the trained network.
        teacher: the moving average of the student; None where the project stores none.
        evaluates: the network that the project itself evaluates.
        imagenet: whether the project normalises images by ImageNet's mean and standard deviation.
    """

    name: str
    student: Place
    teacher: Place | None = None
    evaluates: Whose = "student"
    imagenet: bool = True


LAYOUTS = (
    Layout("timm or torchvision", Place("", ""), imagenet=False),
    Layout("timm's training script", Place("state_dict", ""), Place("state_dict_ema", ""), "teacher", imagenet=False),
    Layout("torchvision's training script, DeiT, MAE or Swin", Place("model", ""), Place("model_ema", ""), "teacher"),
    Layout("MoCo v1 or v2", Place("state_dict", "encoder_q."), Place("state_dict", "encoder_k.")),
    Layout("MoCo v3", Place("state_dict", "base_encoder."), Place("state_dict", "momentum_encoder.")),
    Layout("SimSiam", Place("state_dict", "encoder.")),
    Layout("DINO, iBOT or FLSL", Place("student", "backbone."), Place("teacher", "backbone."), "teacher"),
    Layout("EsViT", Place("student", ""), Place("teacher", ""), "teacher"),
    Layout(
        "EsViT with a ResNet", Place("student", "backbone.backbone."), Place("teacher", "backbone.backbone."), "teacher"
    ),
)

# First parts of the names of classifiers, projection heads and bookkeeping, which a backbone does not need.
LEFT_OUT = re.compile(
    r"(fc|classifier|head|head_dist|heads|head_dense|last_linear|AuxLogits|projection_head|projector|prototypes"
    r"|predictor|decoder\w*|mask_token|masked_embed|cls_token|queue|queue_ptr|n_averaged)(\.|$)"
)
# Weights whose size depends on that of the image, the window or the patch; timm interpolates them.
SIZED = re.compile(r"(^|\.)(pos_embed|relative_position_bias_table|patch_embed\.proj\.weight)$")
# Of a plain ViT, and of none with windows; and the other way round (``fgssl/nn/vitdet.py``).
PLAIN_ALONE = re.compile(r"(reg_token|dist_token|fc_norm|norm)(\.|$)")
WINDOWED_ALONE = re.compile(r"blocks\.\d+\.attn\.rel_pos_[hw]$|neck\.")
STAGES = range(4)


class Family(NamedTuple):
    """torchvision's names of a family of networks.

    Attributes:
        sign: pattern of a name that no other family has.
        names: pairs of a pattern and its replacement, applied one after another to a name; the result is timm's name.
    """

    sign: str
    names: tuple[tuple[str, str], ...]


TORCHVISION = (  # ResNets have timm's names
    Family(
        sign=r"^encoder\.layers\.encoder_layer_0\.",  # ViT
        names=(
            (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
            (r"^class_token$", "cls_token"),
            (r"^conv_proj\.", "patch_embed.proj."),
            (r"^encoder\.pos_embedding$", "pos_embed"),
            (r"^encoder\.ln\.", "norm."),
            (r"^heads\.head\.", "head."),
            (r"\.ln_(\d)\.", r".norm\1."),
            (r"\.self_attention\.in_proj_", ".attn.qkv."),
            (r"\.self_attention\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
            (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
        ),
    ),
    Family(
        sign=r"^features\.1\.0\.norm1\.",  # Swin: features 1, 3, 5, 7 are the stages, 2, 4, 6 lead to the next one
        names=(
            *((rf"^features\.{2 * stage + 1}\.", f"layers.{stage}.blocks.") for stage in STAGES),
            *((rf"^features\.{2 * stage}\.", f"layers.{stage}.downsample.") for stage in STAGES[1:]),
            (r"^features\.0\.0\.", "patch_embed.proj."),
            (r"^features\.0\.2\.", "patch_embed.norm."),
            (r"\.mlp\.0\.", ".mlp.fc1."),
            (r"\.mlp\.3\.", ".mlp.fc2."),
        ),
    ),
    Family(
        sign=r"^features\.1\.0\.layer_scale$",  # ConvNeXt: the same order
        names=(
            *((rf"^features\.{2 * stage + 1}\.", f"stages.{stage}.blocks.") for stage in STAGES),
            *((rf"^features\.{2 * stage}\.", f"stages.{stage}.downsample.") for stage in STAGES[1:]),
            (r"^features\.0\.", "stem."),
            (r"^classifier\.0\.", "head.norm."),
            (r"^classifier\.2\.", "head.fc."),
            (r"\.layer_scale$", ".gamma"),
            (r"\.block\.0\.", ".conv_dw."),
            (r"\.block\.2\.", ".norm."),
            (r"\.block\.3\.", ".mlp.fc1."),
            (r"\.block\.5\.", ".mlp.fc2."),
        ),
    ),
    Family(
        sign=r"^features\.1\.0\.block\.1\.fc1\.",  # EfficientNet B0 to B7: the first stage does not expand
        names=(
            (r"^features\.0\.0\.", "conv_stem."),
            (r"^features\.0\.1\.", "bn1."),
            (r"^features\.8\.0\.", "conv_head."),
            (r"^features\.8\.1\.", "bn2."),
            *((rf"^features\.{stage + 1}\.", f"blocks.{stage}.") for stage in range(7)),
            (r"^(blocks\.0\.\d+)\.block\.0\.0\.", r"\1.conv_dw."),
            (r"^(blocks\.0\.\d+)\.block\.0\.1\.", r"\1.bn1."),
            (r"^(blocks\.0\.\d+)\.block\.1\.", r"\1.se."),
            (r"^(blocks\.0\.\d+)\.block\.2\.0\.", r"\1.conv_pw."),
            (r"^(blocks\.0\.\d+)\.block\.2\.1\.", r"\1.bn2."),
            (r"\.block\.0\.0\.", ".conv_pw."),
            (r"\.block\.0\.1\.", ".bn1."),
            (r"\.block\.1\.0\.", ".conv_dw."),
            (r"\.block\.1\.1\.", ".bn2."),
            (r"\.block\.2\.", ".se."),
            (r"\.block\.3\.0\.", ".conv_pwl."),
            (r"\.block\.3\.1\.", ".bn3."),
            (r"\.se\.fc1\.", ".se.conv_reduce."),
            (r"\.se\.fc2\.", ".se.conv_expand."),
        ),
    ),
)


class Found(NamedTuple):
    """What one layout finds in a file for a network.

    Attributes:
        source: the layout, and whose weights where it has both.
        weights: weights to load, by the names of the network.
        resized: names of the weights that were interpolated to the network's size.
        left_out: names in the file that a backbone does not need.
        absent: names in the network that keep their initial values.
        faults: weights that do not fit, one phrase each.
    """

    source: str
    weights: State
    resized: list[str]
    left_out: list[str]
    absent: list[str]
    faults: list[str]


# ---- files ----------------------------------------------------------------------------------------------------------


def read_file(path: str | Path, option: str) -> dict[str, Any]:
    """The content of a file of weights, or of a run folder's last checkpoint: tensors and plain values, never code.

    Raises:
        UserError: there is no such file, it is damaged, or it holds more than tensors and plain values.
    """
    path = checkpoint_file(str(path), option) if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise UserError(f"{option}: no file {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace, *_numpy_scalars()]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as fault:  # torch raises a different type for each way in which a file can be broken
        reason = str(fault).splitlines()[0][:200] if str(fault) else type(fault).__name__
        raise UserError(
            f"{option}: {path} cannot be loaded safely ({reason}). It is damaged, or holds Python objects whose "
            "loading would run code: save its state dict alone, with torch.save or as .safetensors."
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{option}: {path} holds a {type(content).__name__} and no dictionary of weights.")
    return content


def _numpy_scalars() -> list:
    """Types in a pickled numpy number; checkpoints keep accuracies and learning rates as such."""
    scalar = np.float64(0).__reduce__()[0]
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]  # before and since numpy 2
    return [*((scalar, name) for name in names), np.dtype, *{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"}]


def state_at(content: dict[str, Any], place: Place) -> State:
    """Tensors at a place in a file, by their names without the prefix."""
    entry = content.get(place.entry) if place.entry else content
    found = {}
    for name, value in entry.items() if isinstance(entry, dict) else ():
        name = re.sub(r"^(module\.|_orig_mod\.)+", "", str(name))  # of DistributedDataParallel and torch.compile
        if isinstance(value, Tensor) and name.startswith(place.prefix):
            found[name.removeprefix(place.prefix)] = value
    return found


def is_ours(content: dict[str, Any]) -> bool:
    """Whether a checkpoint was written by a method of ours."""
    return "method" in content and "pytorch-lightning_version" in content


def normalisation_of(path: str | Path, option: str = "model.backbone.weights") -> tuple[Channels, Channels] | None:
    """Mean and standard deviation of the images that the weights in a file were trained on; None where it is unknown.

    A checkpoint of ours: those of its preprocessing, or of its configuration up to version 0.2.0. A project in
    ``LAYOUTS`` with ``imagenet``, and torchvision: ImageNet's. A state dict with timm's names: unknown.
    """
    content = read_file(path, option)
    if is_ours(content):
        kept = content.get("preprocessing") or (content.get("config") or {}).get("data") or {}
        return (tuple(kept["mean"]), tuple(kept["std"])) if kept.get("mean") and kept.get("std") else None
    for layout in LAYOUTS:
        if layout.imagenet and any(state_at(content, place) for place in (layout.student, layout.teacher) if place):
            return IMAGENET
    return IMAGENET if _torchvision_family(state_at(content, Place("", ""))) else None


# ---- fitting --------------------------------------------------------------------------------------------------------


def load_weights(
    network: nn.Module,
    path: str | Path,
    whose: Whose | None = None,
    anew: tuple[str, ...] = (),
    option: str = "model.backbone.weights",
) -> str:
    """Give a timm network without classifier the weights in a file, in place.

    Args:
        network: the network.
        path: file in one of the ``LAYOUTS``, or a run folder or checkpoint of ours.
        whose: network of a file that holds a student and its teacher; None: the one that the project or method
            evaluates.
        anew: names of weights that keep their initial values where those in the file have another shape.
        option: name of the option that ``path`` comes from, for messages.

    Returns:
        One line: what was loaded, interpolated, left out and left as it was.

    Raises:
        UserError: the file cannot be read, or no layout finds all weights of the network in it.
    """
    fits = [_fit(network, source, state, anew) for source, state in _candidates(path, whose, option)]
    found = sorted(fits, key=lambda fit: (-len(fit.weights), len(fit.faults)))
    best = found[0]
    if best.faults:
        raise UserError(_refusal(network, path, found, option))
    network.load_state_dict(best.weights, strict=False)
    said = [f"{path}: {len(best.weights)} weights of {best.source}"]
    told = {"interpolated": best.resized, "left out": best.left_out, "begin anew": best.absent}
    said += [f"{what}: {_some(names)}" for what, names in told.items() if names]
    return "; ".join(said)


def _candidates(path: str | Path, whose: Whose | None, option: str) -> list[tuple[str, State]]:
    """Pairs of a source and its weights, one for each layout that finds weights in a file; at least one pair.

    Raises:
        UserError: the file cannot be read, or holds no weights or no teacher.
    """
    content = read_file(path, option)
    if is_ours(content):
        of_run: Whose = whose or content.get("evaluates", "student")
        weights = read_backbone(str(checkpoint_file(str(path), option)), of_run)
        return [(f"{content['method']} ({of_run})", weights)]
    found, stored_anywhere = [], False
    for layout in LAYOUTS:
        places: dict[Whose, Place | None] = {"student": layout.student, "teacher": layout.teacher}
        states = {name: state_at(content, place) for name, place in places.items() if place}
        stored = [name for name in (layout.evaluates, "student", "teacher") if states.get(name)]
        chosen = whose or next(iter(stored), None)
        stored_anywhere |= bool(stored)
        if chosen in stored:
            found.append((f"{layout.name} ({chosen})" if layout.teacher else layout.name, states[chosen]))
    if not found and stored_anywhere:
        raise UserError(f"{option}: {path} holds no {whose}. Leave the choice of student or teacher out.")
    if not found:
        keys, known = ", ".join(map(str, list(content)[:4])), ", ".join(layout.name for layout in LAYOUTS)
        raise UserError(f"{option}: {path} holds no weights in a known place, only {keys}. Known layouts: {known}.")
    return found


def _fit(network: nn.Module, source: str, state: State, anew: tuple[str, ...]) -> Found:
    """Sort the weights of a file into those to load, those to leave out, and those that do not fit."""
    ours = network.state_dict()
    theirs, resized = _by_timms_names(network, state)
    weights = {name: w for name, w in theirs.items() if name in ours and w.shape == ours[name].shape}
    from_plain = has_windows(network) and "blocks.0.attn.rel_pos_h" not in theirs
    left_out = [n for n in theirs if n not in ours and (LEFT_OUT.match(n) or (from_plain and PLAIN_ALONE.match(n)))]
    absent = [n for n in ours if n not in theirs and n.endswith("num_batches_tracked")]  # old files lack them
    absent += [n for n in ours if from_plain and n not in theirs and WINDOWED_ALONE.match(n)]
    absent += [name for name in anew if name in theirs and name in ours and name not in weights]
    skipped = {*left_out, *absent}
    compared = ({name: w for name, w in state.items() if name not in skipped} for state in (theirs, ours))
    faults = differences(*compared)
    return Found(source, weights, [name for name in resized if name in weights], left_out, absent, faults)


def _refusal(network: nn.Module, path: str | Path, found: list[Found], option: str) -> str:
    """The message for a file that does not fit: the two nearest layouts and examples of names that differ."""
    count = len(network.state_dict())
    nearest = " and ".join(f"{one.source} ({len(one.weights)} of {count} weights)" for one in found[:2])
    nearest = f"Nearest layouts: {nearest}. In the first" if len(found) > 1 else f"Nearest layout: {nearest}. In it"
    best = found[0]
    kinds = ("is missing in it", "is not in the network", " there and ")
    examples = [next((fault for fault in best.faults if kind in fault), None) for kind in kinds]
    shown = [fault for fault in examples if fault]
    more = f"; and {len(best.faults) - len(shown)} more" if len(best.faults) > len(shown) else ""
    return (
        f"{option}: {path} is of another network than model.backbone.name and model.backbone.options. {nearest}, "
        f"{'; '.join(shown)}{more}.{_torchvision_hint(best)}"
    )


def _torchvision_hint(found: Found) -> str:
    """A sentence on the families of torchvision that are converted, for a file of another family."""
    if not any(fault.startswith("features.") for fault in found.faults):
        return ""
    known = "ViT, Swin, ConvNeXt and EfficientNet B0 to B7"
    return f" Of torchvision's names that differ from timm's, those of {known} are known."


def _some(names: list[str]) -> str:
    """``head.0.weight, head.0.bias and 4 more``."""
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


# ---- names ----------------------------------------------------------------------------------------------------------


def _by_timms_names(network: nn.Module, state: State) -> tuple[State, list[str]]:
    """Rename a state dict to timm's names and interpolate weights of another size.

    timm has a function for each family of networks that converts the original project's names and sizes. It fails on a
    state dict of another family, which is then taken as it is.

    Returns:
        The converted state dict and the names of the interpolated weights.
    """
    family = _torchvision_family(state)
    if family:
        state = {_renamed(name, family): _reshaped(name, weight) for name, weight in state.items()}
    if has_windows(network):
        from fgssl.nn.vitdet import from_plain_vit  # imports timm

        converted = from_plain_vit(state, network)  # type: ignore[arg-type]
        changed = "pos_embed" in state and converted["pos_embed"].shape != state["pos_embed"].shape
        return converted, ["pos_embed"] if changed else []
    if "cls_token" in state and getattr(network, "cls_token", 0) is None and "pos_embed" in state:
        state = state | {"pos_embed": state["pos_embed"][:, 1:]}  # the class token's comes first
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        converted = convert(dict(state), network) if convert else state
    except Exception:  # each function fails in its own way
        converted = state
    resized = [n for n in converted if SIZED.search(n) and n in state and converted[n].shape != state[n].shape]
    return converted, resized


def has_windows(network: nn.Module) -> bool:
    """Whether a network is timm's ViT with attention within windows (ViTDet, Segment Anything)."""
    return type(network).__name__ == "VisionTransformerSAM"


def _torchvision_family(state: State) -> Family | None:
    """The family whose names in torchvision a state dict has; None also for those that have timm's names."""
    for family in TORCHVISION:
        if any(re.search(family.sign, name) for name in state):
            return family
    return None


def _renamed(name: str, family: Family) -> str:
    """timm's name of a weight of torchvision."""
    for pattern, timms in family.names:
        name = re.sub(pattern, timms, name)
    return name


def _reshaped(name: str, weight: Tensor) -> Tensor:
    """A weight of torchvision in timm's shape: ConvNeXt's scales are [C, 1, 1] there and [C] here."""
    return weight.flatten() if name.endswith("layer_scale") else weight
