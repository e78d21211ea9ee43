"""The package: declared dependencies, package data, licence, citation, changelog, and use without W&B."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

import fgssl
from fgssl.errors import UserError
from fgssl.loggers import Wandb, wandb_logger

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Names of distributions that are not the name of their module.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "docstring_parser": "docstring-parser",
    "faiss": "faiss-gpu",
    "pytorch_metric_learning": "pytorch-metric-learning",
    "sklearn": "scikit-learn",
    "umap": "umap-learn",
    "wandb_workspaces": "wandb-workspaces",
    "yaml": "pyyaml",
}
# Declared without an import statement: faiss where there is no faiss-gpu; what torch.onnx imports for fgssl export;
# losses and miners, imported by their names in nn/dml.py; torchmetrics, which Lightning needs.
INDIRECT = {"faiss-cpu", "onnx", "onnxscript", "pytorch-metric-learning", "torchmetrics"}
DOCS = {"mkdocs", "mkdocs-material", "mkdocstrings", "latex2mathml"}  # make docs; docs/hooks.py
TOOLS = {"pytest-xdist", "ruff", "mypy", "types-pyyaml", *DOCS}  # of the development, run and not imported by tests


def third_party(folder: str) -> set[str]:
    """Distributions of the modules that a folder's files import, at their top or inside a function."""
    modules: set[str] = set()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    outside = modules - set(sys.stdlib_module_names) - {"fgssl", "tests"}
    return {DISTRIBUTIONS.get(module, module) for module in outside}


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", requirement)[0].lower() for requirement in requirements}  # type: ignore[index]


PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
RUN_TIME = names(PROJECT["dependencies"]).union(*(names(group) for extra, group in EXTRAS.items() if extra != "dev"))


def test_every_import_of_the_package_is_declared():
    assert not third_party("fgssl") - RUN_TIME


def test_every_declared_dependency_is_imported():
    assert not RUN_TIME - INDIRECT - third_party("fgssl")


def test_every_import_of_the_tests_is_declared():
    assert not third_party("tests") - RUN_TIME - names(EXTRAS["dev"])


def test_every_development_dependency_is_used():
    assert not names(EXTRAS["dev"]) - TOOLS - third_party("tests")


PATTERNS = [(name, p) for name, some in PYPROJECT["tool"]["setuptools"]["package-data"].items() for p in some]


@pytest.mark.parametrize(("package", "pattern"), PATTERNS, ids=lambda value: str(value))
def test_package_data_is_on_disk(package, pattern):
    assert list((ROOT / package.replace(".", "/")).glob(pattern))


@pytest.mark.parametrize("file", ["py.typed", "report/published.csv", "data/hierarchies/cars196_names.json"])
def test_file_that_is_read_at_run_time_is_package_data(file):
    folders = [(ROOT / name.replace(".", "/"), pattern) for name, pattern in PATTERNS]
    assert any(ROOT / "fgssl" / file in folder.glob(pattern) for folder, pattern in folders)


@pytest.mark.parametrize("file", PROJECT["license-files"])
def test_licence_file_is_on_disk(file):
    assert (ROOT / file).read_text().strip()


def test_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert PROJECT["license"] == "Apache-2.0"


def test_citation_names_the_five_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == PROJECT["license"]
    assert len(citation["references"]) == 5
    for paper in citation["references"]:
        assert paper.keys() >= {"type", "title", "authors", "year"}
        assert all(author.keys() == {"given-names", "family-names"} for author in paper["authors"])


def test_version_has_an_entry_in_the_changelog():
    entries = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert fgssl.__version__ == entries[0]


WITHOUT_WANDB = """
import sys

sys.modules["wandb"] = None  # every import of it is an ImportError
import fgssl.cli.application
from fgssl.cli.main import main

sys.exit(main(sys.argv[1:]))
"""


def test_fit_without_wandb_installed(tmp_path):
    flags = ["--run.root", str(tmp_path), "--run.name", "a", "--trainer.max_steps", "1", "--retrieval.grid", "0"]
    flags += ["--model.backbone.options", "{layers: [1, 1, 1, 1], channels: [4, 4, 8, 8]}", "--model.memory", "32"]
    flags += ["--data.batch_size", "16", "--data.protocol.label_fraction", "0.05"]
    experiment = str(ROOT / "experiments" / "maskcon_digits.yaml")
    command = [sys.executable, "-c", WITHOUT_WANDB, "fit", "--config", experiment, *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert torch.load(tmp_path / "maskcon_digits/a/checkpoints/last.ckpt", weights_only=True)["global_step"] == 1


def test_wandb_logger_without_wandb_installed_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        wandb_logger(Wandb(), tmp_path, "MaskCon", "digits", "fit")
