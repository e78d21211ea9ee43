"""Photometric augmentation of whole batches on their device, outside the loader.

Each image has its own parameters, drawn on the CPU from (seed, draw, view). On one CPU core at 224 px the blur takes
0.8 ms per image (two 1-D passes), PIL's 1.1 to 2.1 ms and torchvision's dense 23 x 23 kernel 10 ms or more.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fgssl.data.draws import uniform

Channels = tuple[float, float, float]  # values of red, green and blue
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as in torchvision
DISTORTION = 0.5  # of the random perspective: corners move by up to a quarter of the side
SIGMA = (0.1, 2.0)  # range of the blur in pixels (MoCo v2, DINO, MaskCon)
BLUR_RADIUS = 6  # three times the largest sigma; the truncated weights sum to less than 0.3 %
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
    images: Tensor,
    photometric: Photometric,
    *,
    seed: int,
    draws: np.ndarray,
    stream: int,
    mean: Channels = IMAGENET_MEAN,
    std: Channels = IMAGENET_STD,
) -> Tensor:
    """Augment and normalise a batch of crops.

    Args:
        images: [B, 3, H, W] uint8.
        photometric: changes and their probabilities.
        seed: seed of the run.
        draws: [B] int64 serial numbers of the samples.
        stream: number of the random stream, see ``draws.uniform``.
        mean: channel means, 0 to 1.
        std: channel standard deviations.

    Returns:
        [B, 3, H, W] float32.
    """
    height, width = images.shape[-2:]
    numbers = uniform(seed, draws, stream, 19)
    chance, amount, corners, half = numbers[:, :5], numbers[:, 5:10], numbers[:, 10:18], numbers[:, 18]
    p = photometric
    probabilities = np.tile([p.perspective, p.jitter, p.grey, p.blur, p.solarise], (len(numbers), 1))
    if p.other_half is not None:
        probabilities[half < 0.5, 3:] = p.other_half
    chosen = chance < probabilities
    factors = (2 * amount[:, :4] - 1) * [p.brightness, p.contrast, p.saturation, p.hue] + [1, 1, 1, 0]
    sigma = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * amount[:, 4]
    parameters = [
        torch.from_numpy(values.astype(np.float32)).to(images.device, non_blocking=True)
        for values in (homographies(corners, width, height), factors, sigma)
    ]
    result = torch.empty(images.shape, device=images.device)
    chunk = max(1, CPU_CHUNK // (height * width)) if images.device.type == "cpu" else len(images)
    for start in range(0, len(images), chunk):
        part = slice(start, start + chunk)
        changed = _augment(images[part], chosen[part], *(values[part] for values in parameters))
        result[part] = normalise(changed, mean, std)
    return result


def _augment(images: Tensor, chosen: np.ndarray, matrices: Tensor, factors: Tensor, sigma: Tensor) -> Tensor:
    warped, jittered, greyed, blurred, solarised = (np.flatnonzero(column) for column in chosen.T)
    x = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    x = _change(x, warped, perspective, matrices)
    x = _change(x, jittered, jitter, factors)
    x = _change(x, greyed, grey)
    x = _change(x, blurred, gaussian_blur, sigma)
    return _change(x, solarised, solarise)


def _change(x: Tensor, rows: np.ndarray, change: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """Replace the images ``rows`` of ``x`` by ``change(images, *parameters)``."""
    if len(rows) == 0:
        return x
    if len(rows) == len(x):
        return change(x, *parameters)
    # Rows are chosen on the CPU and copied without blocking: reading them from the device would wait for its work.
    rows_on_device = torch.from_numpy(rows).to(x.device, non_blocking=True)
    x[rows_on_device] = change(x[rows_on_device], *(values[rows_on_device] for values in parameters))
    return x


def normalise(images: Tensor, mean: Channels, std: Channels) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel, in place ([B, 3, H, W] in 0 .. 1)."""
    for channel_BHW, m, s in zip(images.unbind(1), mean, std, strict=True):
        channel_BHW.sub_(m).div_(s)
    return images


# ---- changes: [n, 3, H, W] float32 in 0 to 1 and one parameter per image -> the same shape --------------------------


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


def perspective(x: Tensor, matrices: Tensor) -> Tensor:
    """Warp by [n, 3, 3] matrices from pixels of the result to pixels of the source; bilinear, black outside."""
    n, _, height, width = x.shape
    u, v, depth = matrices.unbind(1)  # [n, 3] factors of x, y and 1
    u, v = u * (2 / width) - depth, v * (2 / height) - depth  # pixels to -1 .. 1, as grid_sample wants them
    column = torch.arange(width, device=x.device) + 0.5
    row = torch.arange(height, device=x.device)[:, None] + 0.5

    def plane(factors_n3: Tensor) -> Tensor:
        a, b, c = factors_n3.view(-1, 3, 1, 1).unbind(1)
        return (b * row + c) + a * column  # [n, H, W]

    depth = plane(depth)
    grid = x.new_empty(n, height, width, 2)
    torch.div(plane(u), depth, out=grid[..., 0])
    torch.div(plane(v), depth, out=grid[..., 1])
    return F.grid_sample(x, grid, align_corners=False)


def jitter(x: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and saturation in one linear map, then hue.

    torchvision applies the four in random order and clips after each. Without clipping the first three commute, so that
    results differ only where a value leaves 0 to 1 between two steps.

    Args:
        x: [n, 3, H, W].
        factors: [n, 4] brightness, contrast and saturation factors, hue shift in turns.
    """
    b, c, s, hue = factors.view(-1, 4, 1, 1, 1).unbind(1)  # [n, 1, 1, 1] each
    grey_n1HW = luma(x)
    mean_n111 = grey_n1HW.mean(dim=(2, 3), keepdim=True)
    x = (x * (b * c * s)).add_(grey_n1HW.mul_(b * c * (1 - s)).add_(b * (1 - c) * mean_n111)).clamp_(0, 1)
    return shift_hue(x, hue[:, 0])


def shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue (of HSV) by ``turns`` [n, 1, 1] in -0.5 to 0.5; each pixel keeps its largest and smallest channel.

    With red at 0, green at 2 and blue at 4 sixths of the colour circle, the stretched value of a channel is 1 up to one
    sixth from its colour and falls to 0 at two sixths. The distance of a hue from red is therefore (1 - R) + G + B of
    the stretched pixel, towards green or blue. No masks are used: on the CPU one costs four times a sum.
    """
    r, g, b = x.unbind(1)  # [n, H, W] each
    top, bottom = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    spread = top - bottom
    distance = (g + b).sub_(r).add_(top).sub_(bottom, alpha=2).div_(spread.add(1e-12))  # 0 .. 3 sixths from red
    hue = torch.copysign(distance, g - b).div_(6).add_(turns + 1).frac_().mul_(6)  # 0 .. 6
    shares = (hue - 3).abs_().sub_(1), 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()
    result = torch.empty_like(x)
    for channel, share in zip(result.unbind(1), shares, strict=True):
        torch.addcmul(bottom, share.clamp_(0, 1), spread, out=channel)
    return result


def luma(x: Tensor) -> Tensor:
    """[n, 1, H, W] grey values."""
    return (x[:, 0:1] * LUMA[0]).add_(x[:, 1:2], alpha=LUMA[1]).add_(x[:, 2:3], alpha=LUMA[2])


def grey(x: Tensor) -> Tensor:
    """Grey images with three equal channels in separate memory, since ``normalise`` changes them in place."""
    return luma(x).repeat(1, 3, 1, 1)


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with ``sigma`` [n] px: 13 taps along columns, then along rows; mirrored borders."""
    radius = min(BLUR_RADIUS, x.shape[2] - 1, x.shape[3] - 1)
    taps = torch.arange(radius + 1, device=x.device)
    half_n7 = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)  # from the middle tap outwards
    half_n7 = half_n7 / (2 * half_n7.sum(1, keepdim=True) - 1)
    for dim in (2, 3):
        x = _blur_along(x, dim, half_n7)
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
