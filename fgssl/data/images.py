"""Reading of image files, shared by training, evaluation and ``fgssl data check``."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from fgssl.errors import UserError


def read_image(path: str | Path) -> Image.Image:
    """Decode a whole file, so that a truncated one is noticed, to RGB with 8 bits per channel.

    An EXIF orientation is not applied: published boxes refer to the stored pixels, and the loaders of the papers do not
    rotate images either.

    Raises:
        UserError: the file is missing, truncated or no image; the message names its path.
    """
    with open_image(path) as image:
        return to_rgb(image)


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """Open a file and read its header. Decoding inside the ``with`` block raises the same errors.

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
    """Convert an image of any mode to RGB; 16 bits are scaled to 8, transparency is dropped."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which PIL would clip at 255 instead of scaling
        values = np.asarray(image, dtype=np.float32) / 257  # 65535 -> 255
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    return image.convert("RGB")
