"""Reading of image files, shared by training, evaluation and ``fgssl data check``."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fgssl.data.index import Index
from fgssl.errors import UserError

# What PIL raises for a file that is damaged or no image.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def read_image(path: str | Path) -> Image.Image:
    """Decode a whole file, so that a truncated one is noticed, to RGB with 8 bits per channel.

    An EXIF orientation is not applied: published boxes refer to the stored pixels, and the loaders of the papers do not
    rotate images either.

    Raises:
        UserError: the file is missing, truncated or no image; the message names its path.
    """
    with open_image(path) as image:
        return to_rgb(image)


def read_row(index: Index, row: int) -> Image.Image:
    """Image of a row of a data set, RGB with 8 bits per channel; from its file or from memory.

    Raises:
        UserError: as in ``read_image``.
    """
    with open_row(index, row) as image:
        return to_rgb(image)


@contextmanager
def open_row(index: Index, row: int) -> Iterator[Image.Image]:
    """Open the image of a row of a data set, of any mode.

    Raises:
        UserError: as in ``read_image``.
    """
    if index.images is not None:
        yield image_of_item(index.images, row, index.paths[row])
    elif index.pixels is not None:
        yield Image.fromarray(index.pixels[row])
    else:
        with open_image(index.paths[row]) as image:
            yield image


def image_of_item(images: Any, row: int, name: str) -> Image.Image:
    """Image of an item (image, label) of a torch Dataset, decoded.

    Raises:
        UserError: the image cannot be read, or is neither a PIL image nor uint8 pixels; the message names the item.
    """
    try:
        image = images[row][0]
        if isinstance(image, Image.Image):
            image.load()  # or a view would decode an opened JPEG, an object of the user's, at a part of its size
    except DAMAGED as error:
        raise UserError(f"unreadable image: {name} ({error})") from error
    if isinstance(image, Image.Image) and image.mode != "F":
        return image
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:  # a tensor [3, H, W]
        array = array.transpose(1, 2, 0)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise UserError(
            f"{name}: {array.dtype} of shape {array.shape} is no image. The data set must give PIL images of 8 or 16 "
            "bits, or uint8 pixels [H, W, 3] or [3, H, W]: leave out its transform, data.views does its work."
        )
    return Image.fromarray(array)


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """Open a file and read its header. Decoding inside the ``with`` block raises the same errors.

    Raises:
        UserError: as in ``read_image``.
    """
    try:
        with Image.open(str(path)) as image:  # PIL's messages show a NumPy string as np.str_('...')
            yield image
    except FileNotFoundError as error:
        raise UserError(f"image not found: {path}") from error
    except DAMAGED as error:
        raise UserError(f"unreadable image: {path} ({error})") from error
    except RuntimeError as error:
        if Path(path).suffix.lower() != ".avif":  # whose reader raises no other error
            raise
        raise UserError(f"unreadable image: {path} ({error})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB; 16 bits are scaled to 8, transparency is dropped.

    PIL's mode I is taken as 16 bits, 0 to 65535, whatever its values.

    Raises:
        UserError: the pixels are floats (mode F), whose range no file states.
    """
    if image.mode == "F":
        name = getattr(image, "filename", "") or "image"
        raise UserError(f"{name}: its pixels are floats, whose range is not known. Save it with 8 or 16 bits a pixel.")
    if image.mode.startswith("I"):  # PIL would clip at 255 instead of scaling
        values = np.asarray(image, dtype=np.float32) / 257  # 65535 -> 255
        image = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    return image.convert("RGB")
