"""DAVIS 2017: carry the first frame's objects through a video by the likeness of frozen patches.

Source: FLSL, section 5.3 (Table 4); the rule is that of Jabri et al., Space-Time Correspondence as a Contrastive Random
Walk, NeurIPS 2020, as DINO uses it.

Shapes: F features; H x W patches; S sources, which are frames whose labels are known or were predicted; K labels, the
background and then the objects; h x w pixels of a frame.
"""

import argparse
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fgssl.errors import UserError, at_least

SEQUENCES = 30  # of the official val.txt
VOID = 255  # in annotations: belongs to no object


class Video(NamedTuple):
    """A sequence's files: each frame and its annotation."""

    name: str
    frames: list[Path]
    masks: list[Path]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the rule; the defaults are the published ones."""
    parser.add_argument("--short_side", type=int, default=480, metavar="PX", help="of the frames; default 480")
    parser.add_argument("--topk", type=int, default=5, help="patches that vote for the label of one; default 5")
    parser.add_argument("--radius", type=int, default=12, help="how far away those may be, in patches; default 12")
    parser.add_argument("--frames", type=int, default=7, help="previous frames to look at beside the first; default 7")
    parser.add_argument("--temperature", type=float, default=0.1, help="of the votes' softmax; default 0.1")
    parser.add_argument("--partial", action="store_true", help=f"accept a val.txt of other than {SEQUENCES} sequences")
    parser.add_argument("--save", metavar="FOLDER", help="write the predicted masks there, as palette PNGs")


def check(args: argparse.Namespace) -> None:
    """Look at the options and at every file's header.

    Raises:
        UserError: an option out of its bounds, or a file that is missing or of another size.
    """
    at_least(1, **{"--short_side": args.short_side, "--topk": args.topk})
    at_least(0, **{"--radius": args.radius, "--frames": args.frames})
    at_least(1e-3, **{"--temperature": args.temperature})
    if args.save and Path(args.save).exists() and (Path(args.save).is_file() or any(Path(args.save).iterdir())):
        raise UserError(f"--save: {args.save} exists and is not an empty folder. Choose another.")
    for name in sequences(args):
        video = video_of(args.root, name)
        size = _header(video.frames[0]).size
        for path in (*video.frames, *video.masks):
            header = _header(path)
            if header.size != size:
                raise UserError(f"{path} is {header.size} px, but {video.frames[0]} is {size}.")
            if path.suffix == ".png" and header.mode not in ("P", "L"):
                raise UserError(f"{path} is an image of mode {header.mode}; annotations hold numbers of objects.")
        if not _objects(_read_mask(video.masks[0])):
            raise UserError(f"{video.masks[0]} shows no object: there is nothing to follow.")


def sequences(args: argparse.Namespace) -> list[str]:
    """Names of the sequences in the official list.

    Raises:
        UserError: no list, or one that is not the official one though ``--partial`` is not given.
    """
    path = Path(args.root) / "ImageSets" / "2017" / "val.txt"
    if not path.is_file():
        raise UserError(
            f"{path} not found. --root has to be the folder DAVIS, which holds JPEGImages/480p/, Annotations/480p/ "
            "and ImageSets/2017/val.txt."
        )
    names = path.read_text().split()
    if not names:
        raise UserError(f"{path} names no sequence.")
    if len(names) != SEQUENCES and not args.partial:
        raise UserError(f"{path} names {len(names)} sequences instead of {SEQUENCES}. If so intended, give --partial.")
    return names


def evaluate(network: Any, args: argparse.Namespace, normalise: Callable) -> dict[str, float]:
    """Follow the objects of every sequence.

    Args:
        network: a timm network without classifier, in eval mode, that takes images of any size.
        args: of ``add_arguments``, and ``root``.
        normalise: [B, 3, H, W] uint8 -> float on the network's device.

    Returns:
        Fractions: ``j_mean``, ``f_mean``, ``jf_mean``, ``j_recall``, ``f_recall``, see ``fgssl.metrics.video``.

    Raises:
        UserError: a file that cannot be read, or a network without a map of patches or for images of one size only.
    """
    from rich.progress import track

    from fgssl.metrics.video import video_metrics

    objects: list[tuple[list[float], list[float]]] = []
    for name in track(sequences(args), "DAVIS 2017"):
        objects += _scores_of(network, video_of(args.root, name), args, normalise)
    return video_metrics(objects)


def _scores_of(network: Any, video: Video, args: argparse.Namespace, normalise: Callable) -> list:
    """J and F of each object in the frames that count: all but the first, which was given, and the last."""
    from fgssl.metrics.video import contour_accuracy, region_similarity

    numbers = _objects(_read_mask(video.masks[0]))
    scores: list[tuple[list[float], list[float]]] = [([], []) for _ in numbers]
    for place, found_hw in enumerate(follow(network, video, args, normalise)):
        path = video.masks[place]
        if args.save:
            _write_mask(Path(args.save) / video.name / path.name, found_hw)
        if place in (0, len(video.masks) - 1):
            continue
        truth_hw = _read_mask(path)
        for number, (j_T, f_T) in zip(numbers, scores, strict=True):
            j_T.append(region_similarity(found_hw == number, truth_hw == number))
            f_T.append(contour_accuracy(found_hw == number, truth_hw == number))
    return scores


def follow(network: Any, video: Video, args: argparse.Namespace, normalise: Callable) -> Iterator[np.ndarray]:
    """Yield each frame's mask [h, w], uint8 numbers of the objects; the first is the annotation itself."""
    import torch

    given_hw = _read_mask(video.masks[0])
    numbers = np.array([0, *_objects(given_hw)], np.uint8)
    previous: deque = deque(maxlen=args.frames)
    first: tuple = ()
    for path in video.frames:
        with torch.inference_mode():
            features_HWF = _features(network, path, args.short_side, normalise)
            if not first:
                first = (features_HWF, _first_labels(given_hw, numbers, features_HWF))
                found_hw = np.where(np.isin(given_hw, numbers), given_hw, 0)
            else:
                rule = {"topk": args.topk, "radius": args.radius, "temperature": args.temperature}
                labels_HWK = propagate(features_HWF, [first, *previous], **rule)
                previous.append((features_HWF, labels_HWK))
                found_hw = numbers[upsample(labels_HWK, given_hw.shape).argmax(dim=2).cpu().numpy()]
        yield found_hw


def propagate(target_HWF: Any, sources: list[tuple[Any, Any]], *, topk: int, radius: int, temperature: float) -> Any:
    """Label each patch by the most alike patches of all sources together that are near it.

    One row of the target is done at a time, beside the source rows within the radius: the largest block is
    W x (2 radius + 1) S W.

    Args:
        target_HWF: features of unit length.
        sources: of each source, its features [H, W, F] of unit length and its soft labels [H, W, K].
        topk: how many patches vote.
        radius: rows and columns that a voter may be away.
        temperature: of the softmax over the voters' cosines.

    Returns:
        [H, W, K] soft labels.
    """
    import torch

    height, width, _ = target_HWF.shape
    column_W = torch.arange(width, device=target_HWF.device)
    far_WW = (column_W[:, None] - column_W).abs() > radius
    rows = []
    for y in range(height):
        near = slice(max(y - radius, 0), y + radius + 1)
        cosine_WM = torch.cat([target_HWF[y] @ features[near].flatten(0, 1).T for features, _ in sources], dim=1)
        labels_MK = torch.cat([labels[near].flatten(0, 1) for _, labels in sources])
        cosine_WM.view(width, -1, width).masked_fill_(far_WW[:, None], -torch.inf)
        best_Wk, voter_Wk = cosine_WM.topk(min(topk, len(labels_MK)), dim=1)
        weight_Wk = (best_Wk / temperature).softmax(dim=1)
        rows.append((weight_Wk[:, :, None] * labels_MK[voter_Wk]).sum(dim=1))
    return torch.stack(rows)


def upsample(labels_HWK: Any, size: tuple[int, ...]) -> Any:
    """[h, w, K]: the labels over a frame's pixels, each label stretched to 0 .. 1 unless it is the same everywhere."""
    import torch
    from torch.nn import functional as F

    labels_Khw = F.interpolate(labels_HWK.permute(2, 0, 1)[None], size, mode="bilinear", align_corners=False)[0]
    low, high = labels_Khw.amin(dim=(1, 2), keepdim=True), labels_Khw.amax(dim=(1, 2), keepdim=True)
    spread = high - low
    stretched = torch.where(spread > 0, (labels_Khw - low) / spread.clamp_min(1e-12), labels_Khw)
    return stretched.permute(1, 2, 0)


def _features(network: Any, path: Path, short_side: int, normalise: Callable) -> Any:
    """[H, W, F] patches of unit length of one frame, its shorter side resized and both rounded to whole patches."""
    import torch
    from torch.nn import functional as F

    from fgssl.nn.feature_map import as_map

    image = _read(path, "RGB")
    patch, scale = network.feature_info[-1]["reduction"], short_side / min(image.size)
    width, height = (max(round(side * scale / patch), 1) * patch for side in image.size)
    pixels = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
    images = normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    try:
        features_FHW = as_map(network, network.forward_features(images), images)[0]
    except AssertionError as fault:  # timm's, of a network of one size only
        raise UserError(f"{type(network).__name__} takes no images of {height} x {width} px: {fault}") from fault
    if not features_FHW.isfinite().all():
        raise UserError(f"the network gives NaN or Inf for {path}.")
    return F.normalize(features_FHW.float(), dim=0).permute(1, 2, 0).contiguous()


def _first_labels(mask_hw: np.ndarray, numbers: np.ndarray, features_HWF: Any) -> Any:
    """[H, W, K]: 1 for the label at the middle of a patch, as DINO takes it, 0 for the others."""
    import torch

    height, width, _ = features_HWF.shape
    small_HW = np.array(Image.fromarray(mask_hw).resize((width, height), Image.Resampling.NEAREST))
    small_HW[~np.isin(small_HW, numbers)] = 0
    return torch.from_numpy(small_HW[..., None] == numbers).to(features_HWF)


def video_of(root: str, name: str) -> Video:
    frames, masks = (Path(root) / kind / "480p" / name for kind in ("JPEGImages", "Annotations"))
    found = sorted(frames.glob("*.jpg"))
    if len(found) < 3:
        raise UserError(f"{frames} holds {len(found)} frames (*.jpg); a sequence needs 3, of which the inner count.")
    video = Video(name, found, [masks / f"{path.stem}.png" for path in found])
    there = set(masks.glob("*.png"))
    for path in video.masks:
        if path not in there:
            raise UserError(f"annotation not found: {path}")
    return video


def _header(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image
    except OSError as fault:
        raise UserError(f"{path} cannot be read: {fault}") from fault


def _read(path: Path, mode: str | None = None) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image.convert(mode) if mode else image
    except OSError as fault:
        raise UserError(f"{path} cannot be read: {fault}") from fault


def _read_mask(path: Path) -> np.ndarray:
    """[h, w] uint8: the number of the object, 0 for the background."""
    return np.array(_read(path))


def _objects(mask_hw: np.ndarray) -> list[int]:
    return [number for number in np.unique(mask_hw).tolist() if number not in (0, VOID)]


def _write_mask(path: Path, mask_hw: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask_hw)
    image.putpalette(_palette())
    image.save(path)


def _palette() -> list[int]:
    """DAVIS's and Pascal VOC's 256 colours: the bits of a number, from the lowest on, fill R, G, B from the highest."""
    return [
        sum((number >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8))
        for number in range(256)
        for channel in range(3)
    ]
