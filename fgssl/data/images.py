"""Reading one image file, the same way for training, evaluation and ``fgssl data check``."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from fgssl.errors import UserError


def read_image(path: str | Path) -> Image.Image:
    """Decode a file fully, so that a truncated one is noticed, and return it in RGB, 8 bits a channel.

    An EXIF orientation is not applied: the published boxes count pixels as they are stored, and the field's loaders do
    not turn images either.

    Raises:
        UserError: naming the path, where the file is missing, truncated or no image.
    """
    with open_image(path) as image:
        return to_rgb(image)


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """Open a file and read its header; decode inside the ``with``, where the same errors are caught.

    Raises:
        UserError: as in ``read_image``.
    """
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise UserError(f"image not found: {path}") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise UserError(f"unreadable image: {path} ({error})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: grey and palette images, CMYK, 16 bits (scaled to 8); transparency is dropped."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which PIL would clip at 255 instead of scaling
        values = np.asarray(image, dtype=np.float32) / 257  # 65535 -> 255
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    return image.convert("RGB")
