"""DAVIS 2017: propagation of the objects of the first frame through a video by the similarity of patch features.

FLSL, section 5.3 and Table 4, as in DINO's evaluation code. The propagation rule is that of Jabri et al., Space-Time
Correspondence as a Contrastive Random Walk, NeurIPS 2020. One difference from DINO's code, which normalises the green
channel by a standard deviation of 0.228.

Shapes: F features; H x W patches; S source frames, with given or predicted labels; K labels: the background and the
objects; h x w pixels of a frame.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fgssl.data.images import DAMAGED
from fgssl.errors import UserError, at_least

SEQUENCES = 30  # in the official val.txt
VOID = 255  # label of ignored pixels
GRANULARITY = 64  # the longer side of a resized frame is a multiple, px (DINO's eval_video_segmentation.py:205-211)


class Video(NamedTuple):
    """Frames of a sequence and their annotation files."""

    name: str
    frames: list[Path]
    masks: list[Path]


@dataclass(frozen=True)
class Davis:
    """Options of the evaluation on DAVIS 2017; the defaults are the published values.

    Args:
        root: folder that holds ``JPEGImages/480p``, ``Annotations/480p`` and ``ImageSets/2017/val.txt``.
        short_side: shorter side of the resized frames, px; the longer side is rounded down to a multiple of 64.
        topk: number of most similar patches that vote for the label of a patch.
        radius: largest distance of a voting patch, in rows and in columns of patches.
        frames: number of previous frames that vote, in addition to the first.
        temperature: temperature of the softmax over the votes.
        partial: accept a val.txt with another number of sequences than 30.
        save: folder for the predicted masks, as palette PNGs; None: no files.
    """

    root: str
    short_side: int = 480
    topk: int = 5
    radius: int = 12
    frames: int = 7
    temperature: float = 0.1
    partial: bool = False
    save: str | None = None

    def __post_init__(self):
        at_least(1, **{"--short_side": self.short_side, "--topk": self.topk})
        at_least(0, **{"--radius": self.radius, "--frames": self.frames})
        at_least(1e-3, **{"--temperature": self.temperature})


def check(options: Davis) -> None:
    """Check the files of all sequences by their headers, before the network runs.

    Raises:
        UserError: a file is missing, of another size or not to be read, or the folder for the masks is not empty.
    """
    save = options.save
    try:
        if save and Path(save).exists() and (Path(save).is_file() or any(Path(save).iterdir())):
            raise UserError(f"--save: {save} exists and is not an empty folder. Choose another.")
        _check_files(options)
    except OSError as fault:
        raise UserError(f"{fault.filename} cannot be read ({fault.strerror}).") from fault


def _check_files(options: Davis) -> None:
    for name in sequences(options):
        video = video_of(options.root, name)
        size = _header(video.frames[0]).size
        for path in (*video.frames, *video.masks):
            header = _header(path)
            if header.size != size:
                raise UserError(f"{path} is {header.size} px, but {video.frames[0]} is {size}.")
            if path.suffix == ".png" and header.mode not in ("P", "L"):
                raise UserError(f"{path} is an image of mode {header.mode}; annotations need mode P or L.")
        if not _objects(_read_mask(video.masks[0])):
            raise UserError(f"{video.masks[0]} contains no object to propagate.")


def sequences(options: Davis) -> list[str]:
    """Names of the sequences in val.txt.

    Raises:
        UserError: there is no val.txt, or it does not name 30 sequences and ``--partial`` is not given.
    """
    path = Path(options.root) / "ImageSets" / "2017" / "val.txt"
    if not path.is_file():
        raise UserError(
            f"{path} not found. --root must be the folder DAVIS with JPEGImages/480p/, Annotations/480p/ and "
            "ImageSets/2017/val.txt."
        )
    try:
        names = path.read_text().split()
    except ValueError:
        raise UserError(f"{path} is no text in UTF-8.") from None
    if not names:
        raise UserError(f"{path} names no sequence.")
    if len(names) != SEQUENCES and not options.partial:
        raise UserError(f"{path} names {len(names)} sequences instead of {SEQUENCES}. Give --partial to accept it.")
    return names


def evaluate(network: Any, options: Davis, normalise: Callable) -> dict[str, float]:
    """Propagate the objects of every sequence and score them.

    Args:
        network: timm network without classifier, in eval mode, for images of any size.
        options: data and rule.
        normalise: [B, 3, H, W] uint8 -> float on the network's device.

    Returns:
        Fractions ``j_mean``, ``f_mean``, ``jf_mean``, ``j_recall``, ``f_recall``, see ``fgssl.metrics.video``.

    Raises:
        UserError: a file cannot be read, or the network has no patch map or takes images of one size only.
    """
    from rich.progress import track

    from fgssl.metrics.video import video_metrics

    objects: list[tuple[list[float], list[float]]] = []
    for name in track(sequences(options), "DAVIS 2017"):
        objects += _scores_of(network, video_of(options.root, name), options, normalise)
    return video_metrics(objects)


def _scores_of(network: Any, video: Video, options: Davis, normalise: Callable) -> list:
    """J and F of each object in all frames except the first and the last, as in the benchmark."""
    from fgssl.metrics.video import contour_accuracy, region_similarity

    numbers = _objects(_read_mask(video.masks[0]))
    scores: list[tuple[list[float], list[float]]] = [([], []) for _ in numbers]
    for place, found_hw in enumerate(follow(network, video, options, normalise)):
        path = video.masks[place]
        if options.save:
            _write_mask(Path(options.save) / video.name / path.name, found_hw)
        if place in (0, len(video.masks) - 1):
            continue
        truth_hw = _read_mask(path)
        for number, (j_T, f_T) in zip(numbers, scores, strict=True):
            j_T.append(region_similarity(found_hw == number, truth_hw == number))
            f_T.append(contour_accuracy(found_hw == number, truth_hw == number))
    return scores


def follow(network: Any, video: Video, options: Davis, normalise: Callable) -> Iterator[np.ndarray]:
    """Yield the mask of each frame, [h, w] uint8 object numbers; the first is the annotation."""
    import torch

    given_hw = _read_mask(video.masks[0])
    numbers = np.array([0, *_objects(given_hw)], np.uint8)
    previous: deque = deque(maxlen=options.frames)
    first: tuple = ()
    for path in video.frames:
        with torch.inference_mode():
            features_HWF, resized = _features(network, path, options.short_side, normalise)
            if not first:
                first = (features_HWF, _first_labels(given_hw, numbers, features_HWF))
                found_hw = np.where(np.isin(given_hw, numbers), given_hw, 0)
            else:
                rule: dict[str, Any] = {
                    "topk": options.topk,
                    "radius": options.radius,
                    "temperature": options.temperature,
                }
                labels_HWK = propagate(features_HWF, [first, *previous], **rule)
                previous.append((features_HWF, labels_HWK))
                found = Image.fromarray(numbers[upsample(labels_HWK, resized).argmax(dim=2).cpu().numpy()])
                found_hw = np.array(found.resize(given_hw.shape[::-1], Image.Resampling.NEAREST))
        yield found_hw


def propagate(target_HWF: Any, sources: list[tuple[Any, Any]], *, topk: int, radius: int, temperature: float) -> Any:
    """Label each patch by a vote of the most similar patches of all sources within a radius.

    Computed for one row of the target at a time; the largest matrix has W x (2 radius + 1) S W elements.

    Args:
        target_HWF: patch features of unit length.
        sources: patch features [H, W, F] of unit length and soft labels [H, W, K] of each source.
        topk: number of patches that vote.
        radius: largest distance of a voting patch, in rows and in columns.
        temperature: temperature of the softmax over the cosine similarities of the voting patches.

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
    """Labels [h, w, K] interpolated to ``size``; each label is scaled to the range 0 to 1 unless it is constant."""
    import torch
    from torch.nn import functional as F

    labels_Khw = F.interpolate(labels_HWK.permute(2, 0, 1)[None], size, mode="bilinear", align_corners=False)[0]
    low, high = labels_Khw.amin(dim=(1, 2), keepdim=True), labels_Khw.amax(dim=(1, 2), keepdim=True)
    spread = high - low
    stretched = torch.where(spread > 0, (labels_Khw - low) / spread.clamp_min(1e-12), labels_Khw)
    return stretched.permute(1, 2, 0)


def frame_size(height: int, width: int, short_side: int, patch: int) -> tuple[int, int]:
    """Height and width of a resized frame, as in DINO's code.

    The shorter side is ``short_side``, the longer one is rounded down to a multiple of 64 px. Both are then rounded
    down to multiples of ``patch``, which has no effect for patches of 8, 16 and 32 px.
    """
    scaled = max(height, width) * short_side / min(height, width)
    longer = max(int(scaled // GRANULARITY) * GRANULARITY, GRANULARITY)
    rows, columns = (short_side, longer) if width >= height else (longer, short_side)
    return max(rows // patch, 1) * patch, max(columns // patch, 1) * patch


def _features(network: Any, path: Path, short_side: int, normalise: Callable) -> tuple[Any, tuple[int, int]]:
    """[H, W, F] patch features of unit length of one resized frame, and its height and width."""
    import torch
    from torch.nn import functional as F

    from fgssl.nn.feature_map import as_map

    image = _read(path, "RGB")
    height, width = frame_size(image.height, image.width, short_side, network.feature_info[-1]["reduction"])
    pixels_1Fhw = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    # DINO's code resizes with OpenCV: bilinear, without antialiasing.
    resized = F.interpolate(pixels_1Fhw, (height, width), mode="bilinear", align_corners=False)
    images = normalise(resized.round().to(torch.uint8))
    try:
        features_FHW = as_map(network, network.forward_features(images), images)[0]
    except AssertionError as fault:  # raised by timm's networks with a fixed image size
        raise UserError(f"{type(network).__name__} does not accept images of {height} x {width} px: {fault}") from fault
    if not features_FHW.isfinite().all():
        raise UserError(f"the features of {path} contain NaN or Inf.")
    return F.normalize(features_FHW.float(), dim=0).permute(1, 2, 0).contiguous(), (height, width)


def _first_labels(mask_hw: np.ndarray, numbers: np.ndarray, features_HWF: Any) -> Any:
    """One-hot labels [H, W, K] of the patches, by nearest-neighbour resizing as in DINO's code."""
    import torch

    height, width, _ = features_HWF.shape
    small_HW = np.array(Image.fromarray(mask_hw).resize((width, height), Image.Resampling.NEAREST))
    small_HW[~np.isin(small_HW, numbers)] = 0
    return torch.from_numpy(small_HW[..., None] == numbers).to(features_HWF)


def video_of(root: str, name: str) -> Video:
    """Files of a sequence.

    Raises:
        UserError: there are fewer than three frames, or an annotation is missing.
    """
    frames, masks = (Path(root) / kind / "480p" / name for kind in ("JPEGImages", "Annotations"))
    found = sorted(frames.glob("*.jpg"))
    if len(found) < 3:
        raise UserError(f"{frames} holds {len(found)} frames (*.jpg); a sequence needs at least 3.")
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
    except DAMAGED as fault:
        raise UserError(f"{path} cannot be read: {fault}") from fault


def _read(path: Path, mode: str | None = None) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image.convert(mode) if mode else image
    except DAMAGED as fault:
        raise UserError(f"{path} cannot be read: {fault}") from fault


def _read_mask(path: Path) -> np.ndarray:
    """[h, w] uint8 object numbers; 0 is the background."""
    return np.array(_read(path))


def _objects(mask_hw: np.ndarray) -> list[int]:
    return [number for number in np.unique(mask_hw).tolist() if number not in (0, VOID)]


def _write_mask(path: Path, mask_hw: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask_hw)
    image.putpalette(_palette())
    image.save(path)


def _palette() -> list[int]:
    """The 256 colours of DAVIS and Pascal VOC: bits 3n, 3n + 1 and 3n + 2 of a number are bits 7 - n of R, G and B."""
    return [
        sum((number >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8))
        for number in range(256)
        for channel in range(3)
    ]
