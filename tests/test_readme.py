"""The README's own code and commands."""

import re
from pathlib import Path

import yaml

from fgssl.cli.compose import compose, split_config_files
from fgssl.cli.main import COMMANDS
from tests.tiny import BACKBONE, blob_loader, tiny_trainer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

IMPORTS = """
import torch
from fgssl.losses.contrastive import info_nce
from fgssl.methods.base import Method, StepResult
from fgssl.nn.backbones import Backbone, Encoder
from fgssl.nn.heads import mlp
from fgssl.nn.memory import Memory
from fgssl.nn.teacher import Pair, teacher_of
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_method_of_the_readme_trains():
    (code,) = blocks("python")
    names: dict = {}
    exec(IMPORTS + code, names)
    method = names["Mine"](BACKBONE, memory=20, dim=6)
    before = method.query.backbone.conv1.weight.clone()
    tiny_trainer().fit(method, blob_loader())
    assert not before.equal(method.query.backbone.conv1.weight)
    assert method.memory.fill == 20


def test_the_experiment_of_the_readme_is_the_one_in_the_folder():
    (text,) = blocks("yaml")
    path = text.splitlines()[0].removeprefix("# ")
    shown, real = yaml.safe_load(text), yaml.safe_load((ROOT / path).read_text())
    assert shown == real


def test_the_commands_and_files_of_the_readme_exist():
    commands = re.findall(r"^fgssl (\w+)(.*?)(?:  #.*)?$", "\n".join(blocks("")).replace("\\\n", " "), re.MULTILINE)
    assert len(commands) >= 6
    for command, rest in commands:
        assert command in COMMANDS
        files, _ = split_config_files(rest.split())
        if files and files[0].startswith("experiments/"):
            assert compose([ROOT / file for file in files])["model"]
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
