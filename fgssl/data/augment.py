"""Photometric work on a batch, on whatever device it is: the costly part of augmentation, kept out of the loader.

Each image has its own parameters, drawn on the CPU from (seed, draw, view) and applied to the whole batch. On one CPU
core at 224 px the blur costs 0.8 to 1.7 ms an image (two 1-D passes), PIL's 2.1 ms and torchvision's dense 23 x 23
kernel 10 ms or more: machines without a GPU run the same code.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fgssl.data.draws import uniform

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, the weights that PIL and torchvision use for grey
DISTORTION = 0.5  # of the random perspective: corners move by up to a quarter of the side
SIGMA = (0.1, 2.0)  # range of the blur in pixels (MoCo v2, DINO, MaskCon)
BLUR_RADIUS = 6  # three times the largest sigma: what is cut off weighs less than 0.3 %
THRESHOLD = 128 / 255  # of solarisation
CPU_CHUNK = 8 * 224 * 224  # pixels at a time on the CPU: 8 images of 224 px are 5 MB and stay in the cache


@dataclass(frozen=True)
class Photometric:
    """Random changes of a crop, in the order in which they are applied; each image draws for itself.

    Args:
        perspective: probability of a random perspective (distortion 0.5, black outside).
        jitter: probability that brightness, contrast, saturation and hue change.
        brightness, contrast, saturation: factor uniform in 1 - x .. 1 + x.
        hue: shift uniform in -x .. x turns of the colour circle.
        grey: probability of a grey image.
        blur: probability of a Gaussian blur, sigma uniform in 0.1 .. 2 px.
        solarise: probability that values of 128 and more are inverted.
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


@torch.no_grad()
def augment(images: Tensor, photometric: Photometric, *, seed: int, draws: np.ndarray, stream: int) -> Tensor:
    """Change a batch of crops at random.

    Args:
        images: [B, 3, H, W] uint8.
        photometric: what to do and how often.
        seed: seed of the run.
        draws: [B] int64 serial numbers of the samples.
        stream: which random numbers, see ``draws.uniform``.

    Returns:
        [B, 3, H, W] float32 in 0 .. 1.
    """
    numbers = uniform(seed, draws, stream, 18)
    height, width = images.shape[-2:]
    chunk = len(images) if images.is_cuda else max(1, CPU_CHUNK // (height * width))
    result = torch.empty(images.shape, device=images.device)
    for start in range(0, len(images), chunk):
        part = slice(start, start + chunk)
        result[part] = _augment(images[part], photometric, numbers[part])
    return result


def _augment(images: Tensor, p: Photometric, numbers: np.ndarray) -> Tensor:
    height, width = images.shape[-2:]
    chance, amount, corners = numbers[:, :5], numbers[:, 5:10], numbers[:, 10:]
    chosen = chance < [p.perspective, p.jitter, p.grey, p.blur, p.solarise]
    warped, jittered, greyed, blurred, solarised = (np.flatnonzero(column) for column in chosen.T)
    factors = (2 * amount[:, :4] - 1) * [p.brightness, p.contrast, p.saturation, p.hue] + [1, 1, 1, 0]
    sigma = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * amount[:, 4]

    x = images.float().div_(255)
    _change(x, warped, perspective, homographies(corners[warped], width, height))
    _change(x, jittered, jitter, factors[jittered])
    _change(x, greyed, grey)
    _change(x, blurred, gaussian_blur, sigma[blurred])
    _change(x, solarised, solarise)
    return x


def _change(x: Tensor, rows: np.ndarray, change: Callable[..., Tensor], *parameters: np.ndarray) -> None:
    """Replace the images ``rows`` of ``x`` by ``change(images, *parameters)``, in place."""
    if len(rows) == 0:
        return
    # Parameters are made on the CPU: to ask the device which images were chosen would wait for all its work.
    rows_on_device = torch.from_numpy(rows).to(x.device)
    values = (torch.from_numpy(p.astype(np.float32)).to(x.device, non_blocking=True) for p in parameters)
    x[rows_on_device] = change(x[rows_on_device], *values)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Subtract the mean and divide by the standard deviation of each channel, in place ([B, 3, H, W] in 0 .. 1)."""
    mean_C11, std_C11 = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (mean, std))
    return images.sub_(mean_C11).div_(std_C11)


# ---- the changes: [n, 3, H, W] float32 in 0 .. 1 and one parameter an image -> the same shape -----------------------


def homographies(corners: np.ndarray, width: int, height: int) -> np.ndarray:
    """Random perspectives that move each corner inwards by up to DISTORTION of half a side.

    Args:
        corners: [n, 8] random numbers in [0, 1): x and y of the top left, top right, bottom right, bottom left.
        width, height: of the images, px.

    Returns:
        [n, 3, 3] float64 matrices from pixels of the result to pixels of the source.
    """
    reach = np.array([int(DISTORTION * (width // 2)), int(DISTORTION * (height // 2))])
    moved = np.floor(corners.reshape(-1, 4, 2) * (reach + 1))
    start = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], dtype=float)
    inwards = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    return solve_homographies(start, start + inwards * moved)


def solve_homographies(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """[n, 3, 3] matrices that take the corners ``end`` [n, 4, 2] of the result to ``start`` [4, 2] of the source."""
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
    height, width = x.shape[-2:]
    column = torch.arange(width, device=x.device) + 0.5
    row = torch.arange(height, device=x.device)[:, None] + 0.5
    a, b, c, d, e, f, g, h, i = matrices.view(-1, 9, 1, 1).unbind(1)  # [n, 1, 1] each
    depth = (h * row + i) + g * column  # [n, H, W]
    u = ((b * row + c) + a * column).div_(depth)
    v = ((e * row + f) + d * column).div_(depth)
    grid = torch.stack([u.mul_(2 / width).sub_(1), v.mul_(2 / height).sub_(1)], dim=-1)  # -1 .. 1
    return F.grid_sample(x, grid, align_corners=False)


def jitter(x: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and saturation in one pass, then hue.

    torchvision takes the four in random order and clips after each. Without clipping the first three commute, so one
    linear map does all; what remains different are values that leave 0 .. 1 between two steps.

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
    """Turn the hue (of HSV) by ``turns`` [n, 1, 1], keeping each pixel's largest and smallest channel."""
    r, g, b = x.unbind(1)
    top, bottom = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    spread = top - bottom
    unit = spread.clamp(min=1e-8).reciprocal_()  # grey pixels: 0 * 1e8, any hue is the same
    sector = torch.where(top == r, (g - b) * unit, torch.where(top == g, (b - r) * unit + 2, (r - g) * unit + 4))
    sector = sector.add_(turns * 6)
    sector = sector.sub_(sector.div(6).floor_().mul_(6))  # 0 .. 6 round the colour circle; red at 0, green 2, blue 4
    share_r = (sector - 3).abs_().sub_(1).clamp_(0, 1)
    share_g = (sector - 2).abs_().neg_().add_(2).clamp_(0, 1)
    share_b = (sector - 4).abs_().neg_().add_(2).clamp_(0, 1)
    return torch.stack([bottom + share * spread for share in (share_r, share_g, share_b)], dim=1)


def luma(x: Tensor) -> Tensor:
    """[n, 1, H, W] grey values."""
    return (x[:, 0:1] * LUMA[0]).add_(x[:, 1:2], alpha=LUMA[1]).add_(x[:, 2:3], alpha=LUMA[2])


def grey(x: Tensor) -> Tensor:
    return luma(x).expand_as(x)


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur by a Gaussian of ``sigma`` [n] px: 13 taps along rows, then along columns; borders mirrored."""
    n, channels, height, width = x.shape
    radius = min(BLUR_RADIUS, height - 1, width - 1)
    taps = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, dim=0)  # [n * 3, taps]
    x = x.reshape(1, n * channels, height, width)  # a group of the convolution a plane
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="reflect"), kernel[:, None, None, :], groups=len(kernel))
    x = F.conv2d(F.pad(x, (0, 0, radius, radius), mode="reflect"), kernel[:, None, :, None], groups=len(kernel))
    return x.view(n, channels, height, width)


def solarise(x: Tensor) -> Tensor:
    """Invert the values of 128 (of 255) and more."""
    return torch.where(x < THRESHOLD, x, 1 - x)
