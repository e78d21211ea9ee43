"""``fgssl maps`` and ``fgssl export`` of a run whose training images are no longer on the disk."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fgssl.cli.main import main
from tests.cli.test_cli import DIGITS, SMALL

pytestmark = pytest.mark.slow


def folder_of_images(root):
    """Two training and one test image of each of six classes, of three coarse classes."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for label in range(6):
            where = root / part / f"class{label}"
            where.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(where / f"{number}.png")
    (root / "coarse.json").write_text(json.dumps({f"class{label}": f"coarse{label // 2}" for label in range(6)}))


@pytest.mark.parametrize("variant", ["coins", "supfine"])  # a classifier of the coarse and of the training classes
def test_maps_and_export_need_no_training_data(variant, tmp_path, capsys):
    images = tmp_path / "images"
    folder_of_images(images)
    data = ["--data.dataset", "Folder", "--data.dataset.root", str(images), "--data.protocol.label_fraction", "1"]
    data += ["--data.dataset.coarse_map", str(images / "coarse.json"), "--data.batch_size", "8"]
    line = ["fit", "--config", DIGITS, *SMALL, *data, "--model.variant", variant, "--trainer.max_epochs", "1"]
    assert main([*line, "--run.root", str(tmp_path / "runs"), "--run.name", "run"]) == 0
    run, photo = str(tmp_path / "runs" / "maskcon_digits" / "run"), tmp_path / "photo.png"
    shutil.copy(images / "test" / "class0" / "0.png", photo)
    shutil.rmtree(images)

    assert main(["maps", "gradcam", str(photo), "--ckpt_path", run, "--out", str(tmp_path / "maps.png")]) == 0
    assert main(["export", "--ckpt_path", run, "--out", str(tmp_path / "export"), "--formats", "timm"]) == 0
    assert (tmp_path / "export" / "model.safetensors").is_file()
    capsys.readouterr()
    assert main(["test", "--ckpt_path", run]) == 2  # an evaluation does need them
    assert f"folder: not found under {images}" in capsys.readouterr().err
