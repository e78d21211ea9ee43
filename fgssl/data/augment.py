"""Photometric augmentation of whole batches on their device, outside the loader.

Each image has its own parameters, drawn on the CPU from (seed, draw, view). Views of one size are augmented together:
ten crops of two sizes are two calls. On one CPU core at 224 px the blur takes 0.5 ms per image (two 1-D passes), PIL's
1.1 to 2.1 ms and torchvision's dense 23 x 23 kernel 10 ms or more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fgssl.data.batch import empty_images
from fgssl.data.draws import uniform

Channels = tuple[float, float, float]  # values of red, green and blue
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as in torchvision
DISTORTION = 0.5  # of the random perspective: corners move by up to a quarter of the side
SIGMA = (0.1, 2.0)  # range of the blur in pixels (MoCo v2, DINO, MaskCon)
BLUR_RADIUS = 6  # three times the largest sigma; the truncated weights sum to less than 0.3 %
SMALLEST_WEIGHT = 1e-7  # taps of the blur that are lighter for every image of a chunk are left out
THRESHOLD = 128 / 255  # of solarisation
CPU_CHUNK = 224 * 224  # pixels processed at a time on the CPU: 600 kB of float32 fit into a core's cache


@dataclass(frozen=True)
class Photometric:
    """Random photometric changes of a crop, in the order of the arguments; parameters are drawn for each image.

    Args:
        perspective: probability of a random perspective with distortion 0.5 and black borders.
        jitter: probability of a random change of brightness, contrast, saturation and hue.
        brightness: b; brightness factor uniform in 1 - b to 1 + b.
        contrast: c; contrast factor uniform in 1 - c to 1 + c.
        saturation: s; saturation factor uniform in 1 - s to 1 + s.
        hue: h; hue shift uniform in -h to h, in turns of the colour circle.
        grey: probability of conversion to grey.
        blur: probability of a Gaussian blur with sigma uniform in 0.1 to 2 px.
        solarise: probability of inverting all values of 128 (of 255) and more.
        other_half: probabilities of blur and solarisation for a random half of the images (FLSL's released code); the
            other half has ``blur`` and ``solarise``. null: all images have those.
    """

    perspective: float = 0.0
    jitter: float = 0.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grey: float = 0.0
    blur: float = 0.0
    solarise: float = 0.0
    other_half: tuple[float, float] | None = None


@torch.no_grad()
def augment(
    views: Sequence[Tensor],
    photometrics: Sequence[Photometric],
    *,
    seed: int,
    draws: np.ndarray,
    streams: Sequence[int],
    mean: Channels = IMAGENET_MEAN,
    std: Channels = IMAGENET_STD,
) -> list[Tensor]:
    """Augment and normalise the views of a batch.

    Views of one size are augmented together on a GPU, where each call costs the launches of its kernels. On the CPU, a
    few images are processed at a time, so that they stay in the core's cache.

    Args:
        views: V views, each [B, 3, H, W] uint8; sizes may differ.
        photometrics: changes of each view and their probabilities.
        seed: seed of the run.
        draws: [B] int64 serial numbers of the samples.
        streams: number of the random stream of each view, see ``draws.uniform``.
        mean: channel means, 0 to 1.
        std: channel standard deviations.

    Returns:
        V views, each [B, 3, H, W] float32.
    """
    results: dict[int, Tensor] = {}
    for numbers in _together(views):
        height, width = views[numbers[0]].shape[-2:]
        images = torch.cat([views[n] for n in numbers]) if len(numbers) > 1 else views[numbers[0]]
        drawn = [draw(photometrics[n], seed, draws, streams[n], width, height) for n in numbers]
        chosen, parameters = (np.concatenate(part) for part in zip(*drawn, strict=True))
        result = _augment(images, chosen, parameters, mean, std)
        results.update(zip(numbers, result.split(len(draws)), strict=True))
    return [results[number] for number in range(len(views))]


def _together(views: Sequence[Tensor]) -> list[list[int]]:
    """Numbers of the views that are augmented in one call."""
    return [[number] for number in range(len(views))] if views[0].device.type == "cpu" else _by_size(views)


def _by_size(views: Sequence[Tensor]) -> list[list[int]]:
    sizes = [view.shape for view in views]
    return [[number for number, size in enumerate(sizes) if size == one] for one in dict.fromkeys(sizes)]


def draw(
    photometric: Photometric, seed: int, draws: np.ndarray, stream: int, width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw which changes are made to B images, and their parameters.

    Returns:
        [B, 5] bool: perspective, jitter, grey, blur, solarise. [B, 22] float32: the parameters of the first (9), the
        second (6) and the fourth (7).
    """
    numbers = uniform(seed, draws, stream, 19)
    chance, amount, corners, half = numbers[:, :5], numbers[:, 5:10], numbers[:, 10:18], numbers[:, 18]
    p = photometric
    probabilities = np.tile([p.perspective, p.jitter, p.grey, p.blur, p.solarise], (len(numbers), 1))
    if p.other_half is not None:
        probabilities[half < 0.5, 3:] = p.other_half
    matrices = np.zeros((len(numbers), 3, 3))
    if p.perspective:
        matrices = of_grid(homographies(corners, width, height), width, height)
    factors = (2 * amount[:, :4] - 1) * [p.brightness, p.contrast, p.saturation, p.hue] + [1, 1, 1, 0]
    weights = blur_weights(SIGMA[0] + (SIGMA[1] - SIGMA[0]) * amount[:, 4], min(width, height))
    parameters = [matrices.reshape(-1, 9), of_colours(factors), weights]
    return chance < probabilities, np.concatenate(parameters, axis=1, dtype=np.float32)


def _augment(images: Tensor, chosen: np.ndarray, parameters: np.ndarray, mean: Channels, std: Channels) -> Tensor:
    """``images`` [N, 3, H, W] uint8, changed and normalised."""
    on_cpu, pixels = images.device.type == "cpu", images.shape[2] * images.shape[3]
    chunk = max(1, CPU_CHUNK // pixels) if on_cpu else len(images)
    options: Any = {"dtype": torch.float32, "device": images.device}
    result = empty_images(images.shape, np.float32) if on_cpu else torch.empty(images.shape, **options)
    on_device = torch.from_numpy(parameters).to(images.device, non_blocking=True)
    for start in range(0, len(images), chunk):
        part = slice(start, start + chunk)
        x = images[part].to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        taps = taps_needed(parameters[part, -BLUR_RADIUS - 1 :])
        normalise(_change(x, chosen[part], on_device[part], taps), mean, std, out=result[part])
    return result


def _change(x: Tensor, chosen: np.ndarray, parameters: Tensor, taps: int) -> Tensor:
    matrices, colours, weights = parameters.split((9, 6, 7), dim=1)
    changes: list[tuple[Any, ...]] = [
        (perspective, matrices), (jitter, colours), (grey,), (gaussian_blur, weights[:, :taps]), (solarise,)
    ]  # fmt: skip
    for column, (change, *own) in zip(chosen.T, changes, strict=True):
        x = _change_rows(x, np.flatnonzero(column), change, *own)
    return x


def _change_rows(x: Tensor, rows: np.ndarray, change: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """Replace the images ``rows`` of ``x`` by ``change(images, *parameters)``."""
    if len(rows) == 0:
        return x
    if len(rows) == len(x):
        return change(x, *parameters)
    # Rows are chosen on the CPU and copied without blocking: reading them from the device would wait for its work.
    rows_on_device = torch.from_numpy(rows).to(x.device, non_blocking=True)
    x[rows_on_device] = change(x[rows_on_device], *(values[rows_on_device] for values in parameters))
    return x


def normalise(images: Tensor, mean: Channels, std: Channels, out: Tensor | None = None) -> Tensor:
    """Subtract the mean of each channel and divide by its standard deviation.

    Args:
        images: [B, 3, H, W] float in 0 to 1.
        mean: channel means, 0 to 1.
        std: channel standard deviations.
        out: tensor for the result; None: a new one.
    """
    mean_311, std_311 = torch.tensor([mean, std]).to(images, non_blocking=True).view(2, 3, 1, 1)
    return torch.sub(images, mean_311, out=out).div_(std_311)


# ---- changes: [n, 3, H, W] float32 in 0 to 1 and parameters [n, ...] of each image -> the same shape ----------------
# Parameters are worked out in float64 on the CPU; on a GPU each small product of them would be a kernel.


def homographies(corners: np.ndarray, width: int, height: int) -> np.ndarray:
    """Random perspectives that move each corner inwards by up to DISTORTION times half a side.

    Args:
        corners: [n, 8] random numbers in [0, 1): x and y of the top left, top right, bottom right, bottom left.
        width: width of the images, px.
        height: height of the images, px.

    Returns:
        [n, 3, 3] float64 matrices from pixels of the result to pixels of the source.
    """
    reach = np.array([int(DISTORTION * (width // 2)), int(DISTORTION * (height // 2))])
    moved = np.floor(corners.reshape(-1, 4, 2) * (reach + 1))
    start = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], dtype=float)
    inwards = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    return solve_homographies(start, start + inwards * moved)


def solve_homographies(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """[n, 3, 3] matrices that map the corners ``end`` [n, 4, 2] of the result to ``start`` [4, 2] of the source."""
    x, y = end[..., 0], end[..., 1]
    one, zero = np.ones_like(x), np.zeros_like(x)
    u, v = np.broadcast_to(start[:, 0], x.shape), np.broadcast_to(start[:, 1], x.shape)
    # u = (a x + b y + c) / (g x + h y + 1) and v = (d x + e y + f) / (g x + h y + 1) at the four corners
    rows_u = np.stack([x, y, one, zero, zero, zero, -u * x, -u * y], axis=-1)
    rows_v = np.stack([zero, zero, zero, x, y, one, -v * x, -v * y], axis=-1)
    system = np.concatenate([rows_u, rows_v], axis=1)
    solution = np.linalg.solve(system, np.concatenate([u, v], axis=1)[..., None])[..., 0]
    return np.concatenate([solution, np.ones((len(solution), 1))], axis=1).reshape(-1, 3, 3)


def of_grid(matrices: np.ndarray, width: int, height: int) -> np.ndarray:
    """Factors of column, row and 1 (counted from 0) in a position of the source, of -1 to 1 as in ``grid_sample``.

    Args:
        matrices: [n, 3, 3] from pixels of the result to pixels of the source; the middle of the first pixel is 0.5.
        width: width of the images, px.
        height: height of the images, px.

    Returns:
        [n, 3, 3] the same for x and y, which remain to be divided by the third row's plane.
    """
    middle = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    spread = np.array([[2 / width, 0, -1], [0, 2 / height, -1], [0, 0, 1]])
    return spread @ matrices @ middle


def perspective(x: Tensor, matrices: Tensor) -> Tensor:
    """Warp by the matrices of ``of_grid``, [n, 3, 3] or [n, 9]; bilinear, black outside."""
    height, width = x.shape[2:]
    a_n311, b_n311, c_n311 = matrices.view(-1, 3, 3, 1, 1).unbind(2)
    row_H1, column_W = torch.arange(height, device=x.device)[:, None], torch.arange(width, device=x.device)
    planes_n3HW = (a_n311 * column_W + c_n311) + b_n311 * row_H1
    grid_n2HW = planes_n3HW[:, :2] / planes_n3HW[:, 2:]
    return F.grid_sample(x, grid_n2HW.permute(0, 2, 3, 1), align_corners=False)


def of_colours(factors: np.ndarray) -> np.ndarray:
    """Parameters of ``jitter``.

    Args:
        factors: [n, 4] brightness b, contrast c and saturation s; hue shift in turns.

    Returns:
        [n, 6] factors of pixel, grey value and mean grey value; hue shift less the hue of red, green and blue.
    """
    b, c, s, turns = factors.T
    shifts = turns[:, None] - np.array([0, 1, 2]) / 3
    return np.stack([b * c * s, b * c * (1 - s), b * (1 - c), *(shifts - np.round(shifts)).T], axis=1)


def jitter(x: Tensor, colours: Tensor) -> Tensor:
    """Brightness, contrast and saturation in one linear map, then hue.

    torchvision applies the four in random order and clips after each. Without clipping the first three commute, so that
    results differ only where a value leaves 0 to 1 between two steps.

    Args:
        x: [n, 3, H, W].
        colours: [n, 6] from ``of_colours``.
    """
    of_pixel, of_grey, of_mean = colours[:, :3].reshape(-1, 3, 1, 1, 1).unbind(1)  # [n, 1, 1, 1] each
    grey_n1HW = luma(x)
    mean_n111 = grey_n1HW.mean(dim=(2, 3), keepdim=True).mul_(of_mean)
    x = torch.addcmul(grey_n1HW.mul_(of_grey).add_(mean_n111), x, of_pixel).clamp_(0, 1)
    return shift_hue(x, colours[:, 3:])


def shift_hue(x: Tensor, shifts: Tensor) -> Tensor:
    """Shift the hue (of HSV); each pixel keeps its largest and smallest channel.

    A channel has the largest value up to one sixth of the colour circle from its colour, and the smallest from two
    sixths on; between them it falls linearly. The distance of a hue from red is therefore one sixth of (1 - R) + G + B
    of the pixel stretched to 0 .. 1, towards green or blue. No masks are used: on the CPU one costs four times a sum.

    Args:
        x: [n, 3, H, W].
        shifts: [n, 3] shift less the hue of red, green and blue, in turns of -0.5 to 0.5.
    """
    r, g, b = x.unbind(1)  # [n, H, W] each
    top, bottom = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    spread = top - bottom
    slope = spread * 6  # of a channel, per turn
    distance = (g + b).sub_(r).add_(top).sub_(bottom, alpha=2).div_(slope.add(1e-12))  # 0 .. 1/2 turn from red
    hue = torch.copysign(distance, g - b)
    apart_n3HW = hue[:, None] + shifts[:, :, None, None]  # turns from the three colours
    apart_n3HW = apart_n3HW.sub_(apart_n3HW.round()).abs_().clamp_(1 / 6, 1 / 3)
    return torch.addcmul(top.add_(spread)[:, None], slope[:, None], apart_n3HW, value=-1)


def luma(x: Tensor) -> Tensor:
    """[n, 1, H, W] grey values."""
    return (x[:, 0:1] * LUMA[0]).add_(x[:, 1:2], alpha=LUMA[1]).add_(x[:, 2:3], alpha=LUMA[2])


def grey(x: Tensor) -> Tensor:
    """Grey images with three equal channels in separate memory, since later changes write into it."""
    return luma(x).repeat(1, 3, 1, 1)


def blur_weights(sigma: np.ndarray, side: int) -> np.ndarray:
    """[n, BLUR_RADIUS + 1] weights of a Gaussian with ``sigma`` [n] px, from the middle tap outwards.

    The whole kernel, with both sides, sums to 1. Where the shorter ``side`` of the images, px, has no place for the
    outer taps, they are 0.
    """
    taps = np.arange(BLUR_RADIUS + 1)
    half = np.exp(-0.5 * (taps / sigma[:, None]) ** 2) * (taps < side)
    return half / (2 * half.sum(axis=1, keepdims=True) - 1)


def taps_needed(weights: np.ndarray) -> int:
    """Number of taps, from the middle one on, that are not negligible in all of the kernels [n, taps]."""
    return int(np.flatnonzero((weights > SMALLEST_WEIGHT).any(axis=0))[-1]) + 1


def gaussian_blur(x: Tensor, weights: Tensor) -> Tensor:
    """Gaussian blur by ``weights`` [n, taps] from the middle tap outwards, along columns and rows; mirrored borders."""
    for dim in (2, 3):
        x = _blur_along(x, dim, weights)
    return x


def _blur_along(x: Tensor, dim: int, half_kernel: Tensor) -> Tensor:
    """Weighted sum of shifted copies; a grouped convolution takes 0.5 to 3.3 ms, depending on the number of groups."""
    radius, length = half_kernel.shape[1] - 1, x.shape[dim]
    weights = half_kernel.T.reshape(radius + 1, -1, 1, 1, 1)
    padded = F.pad(x, (0, 0, radius, radius) if dim == 2 else (radius, radius, 0, 0), mode="reflect")
    result = padded.narrow(dim, radius, length) * weights[0]
    for shift in range(1, radius + 1):
        sides = padded.narrow(dim, radius - shift, length) + padded.narrow(dim, radius + shift, length)
        result.addcmul_(sides, weights[shift])
    return result


def solarise(x: Tensor) -> Tensor:
    """Invert the values of 128 (of 255) and more."""
    return torch.where(x < THRESHOLD, x, 1 - x)
