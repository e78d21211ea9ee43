"""The sweeps over experiments/rivals/small/: every file, in one frame, each cell a configuration that resolves."""

import re
from functools import cache
from pathlib import Path

import pytest

from fgssl.commands.sweep_file import Sweep, command, read_sweep
from tests.recipes import ROOT, resolve

pytestmark = pytest.mark.slow

RIVALS = ROOT / "experiments" / "rivals"
SWEEPS = {name: ROOT / "experiments" / "evidence" / "sweeps" / f"{name}.yaml" for name in ("rivals", "rivals_vit")}
NETWORK = "tf_efficientnet_lite0.in1k"


@cache
def grid(name: str) -> Sweep:
    return read_sweep(SWEEPS[name])


def files(name: str) -> list[str]:
    return grid(name).axes["config"]


def experiment(file: str) -> str:
    return str(Path(file).relative_to("experiments").with_suffix(""))


def test_sweeps_name_every_small_file_once():
    named = [file for name in SWEEPS for file in files(name)]
    there = [str(path.relative_to(ROOT)) for path in (RIVALS / "small").glob("*.yaml")]
    assert sorted(named) == sorted(there)


def test_page_names_every_small_file_and_every_one_on_cub():
    text = (RIVALS / "README.md").read_text()
    files = [*(RIVALS / "small").glob("*.yaml"), *RIVALS.glob("*_cub.yaml")]
    assert [path.name for path in files if f"`{path.relative_to(RIVALS)}`" not in text] == []
    named = re.findall(r"`([\w./]+\.yaml)`", text)
    assert [name for name in named if not (RIVALS / name).is_file()] == []


def test_a_cell_is_the_file_with_its_seed_and_the_flags(tmp_path):
    cell = grid("rivals").cells()[1]
    words = command(grid("rivals"), tmp_path, cell, ["--model.backbone.weights", "FILE"])
    assert words[0] == "fit"
    assert {f"--config={cell['config']}", "--seed_everything=1"} <= set(words)
    assert words[-2:] == ["--model.backbone.weights", "FILE"]


@pytest.mark.parametrize("file", [file for name in SWEEPS for file in files(name)], ids=lambda file: Path(file).stem)
def test_small_file_resolves_in_the_frame_of_all(file):
    config, frame = resolve(experiment(file)), resolve("rivals/small/mocov2")
    assert config["trainer"] == frame["trainer"]
    for option in ("dataset", "batch_size", "eval_size", "eval_resize", "eval_resample", "protocol", "cache_side"):
        assert config["data"][option] == frame["data"][option], option
    assert config["data"]["views"]["init_args"]["size"] == 64
    backbone = config["model"]["init_args"]["backbone"]
    if file in files("rivals"):
        assert (backbone["name"], backbone["pretrained"], backbone["freeze"]) == (NETWORK, True, 6)
    else:
        assert not backbone["pretrained"]
        assert backbone["name"].startswith("vit")
