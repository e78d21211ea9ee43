"""One reader for every image file: what it converts, what it refuses."""

import numpy as np
import pytest
from PIL import Image

from fgssl.data.images import read_image, to_rgb
from fgssl.errors import UserError
from tests.trees import write_image


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(mode, tmp_path):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (6, 4), (255, 255, 255)).convert(mode).save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (6, 4))
    assert np.asarray(image).min() >= 254  # white stays white


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "image.jpg")
    red, green, blue = np.asarray(read_image(tmp_path / "image.jpg"))[8, 8].astype(int)
    assert red > 240
    assert max(green, blue) < 15


def test_16_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "image.png")
    assert np.asarray(read_image(tmp_path / "image.png"))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_floats_are_refused(top, tmp_path):
    path = tmp_path / "image.tif"
    Image.fromarray(np.full((4, 6), top, dtype=np.float32)).save(path)
    with pytest.raises(UserError, match=f"{path}: its pixels are floats.* Save it with 8 or 16 bits"):
        read_image(path)
    with pytest.raises(UserError, match="^image: its pixels are floats"):
        to_rgb(Image.new("F", (6, 4)))


def test_mode_i_is_16_bits():
    image = Image.fromarray(np.array([[0, 257, 65535]], dtype=np.int32))
    assert image.mode == "I"
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 1, 255]


def test_exif_orientation_is_left_alone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (6, 4)).save(tmp_path / "image.jpg", exif=exif)
    assert read_image(tmp_path / "image.jpg").size == (6, 4)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_file_is_named(suffix, tmp_path):
    path = tmp_path / f"image.{suffix}"
    write_image(path, size=(64, 64))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=f"unreadable image: {path}"):
        read_image(path)


@pytest.mark.parametrize(("name", "error"), [("a.avif", UserError), ("a.png", RuntimeError)])
def test_damaged_avif_is_named(name, error, tmp_path, monkeypatch):
    write_image(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / name)

    def load(image):
        raise RuntimeError("Failed to decode image")  # as PIL does where an AVIF file is damaged

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(error, match="a.avif .Failed to decode" if name == "a.avif" else "Failed to decode"):
        read_image(tmp_path / name)


def test_missing_file_and_no_image(tmp_path):
    with pytest.raises(UserError, match="image not found: .*no.jpg"):
        read_image(tmp_path / "no.jpg")
    (tmp_path / "text.jpg").write_text("this is no image")
    with pytest.raises(UserError, match="unreadable image: .*text.jpg.*cannot identify image file '.*text.jpg'"):
        read_image(np.str_(tmp_path / "text.jpg"))  # as the paths of an index are
