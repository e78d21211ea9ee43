"""The README's own code and commands."""

import re
from pathlib import Path

import yaml

from fgssl.cli.compose import compose, split_config_files
from fgssl.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
README = "\n".join((ROOT / name).read_text() for name in ("README.md", "docs/running.md", "docs/start.md"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_experiment_of_the_readme_is_the_one_in_the_folder():
    text = next(block for block in blocks("yaml") if block.startswith("# experiments/"))
    path = text.splitlines()[0].removeprefix("# ")
    shown, real = yaml.safe_load(text), yaml.safe_load((ROOT / path).read_text())
    assert shown == real


def test_the_commands_and_files_of_the_readme_exist():
    commands = re.findall(r"^fgssl (\w+)(.*?)(?:  #.*)?$", "\n".join(blocks("bash")).replace("\\\n", " "), re.MULTILINE)
    assert len(commands) >= 6
    for command, rest in commands:
        assert command in COMMANDS
        files, _ = split_config_files(rest.split())
        if files and files[0].startswith("experiments/"):
            assert compose([file for file in files])["model"]
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
