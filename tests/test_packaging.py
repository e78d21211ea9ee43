"""The package: declared dependencies, package data, licence, citation, changelog, and use without W&B."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

import fgssl
from fgssl.errors import UserError
from fgssl.loggers import Wandb, wandb_logger
from tests.oldest import oldest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Names of distributions that are not the name of their module.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "docstring_parser": "docstring-parser",
    "cosmic_ray": "cosmic-ray",
    "faiss": "faiss-gpu",
    "pytorch_metric_learning": "pytorch-metric-learning",
    "sklearn": "scikit-learn",
    "umap": "umap-learn",
    "wandb_workspaces": "wandb-workspaces",
    "yaml": "pyyaml",
}
# Declared without an import statement: faiss where there is no faiss-gpu; what torch.onnx imports for fgssl export;
# losses and miners, imported by their names in nn/dml.py; torchmetrics, which Lightning needs.
INDIRECT = {"faiss-cpu", "onnx", "onnxscript", "pytorch-metric-learning", "torchmetrics", "tensorboard", "mlflow"}
DOCS = {"mkdocs", "mkdocs-material", "mkdocstrings", "latex2mathml"}  # make docs; docs/hooks.py
# Of the development, run and not imported by tests
TOOLS = {"pytest-xdist", "pytest-cov", "ruff", "mypy", "types-pyyaml", "setuptools", "shtab", *DOCS}


def third_party(folder: str) -> set[str]:
    """Distributions of the modules that a folder's files import, at their top or inside a function."""
    modules: set[str] = set()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    outside = modules - set(sys.stdlib_module_names) - {"fgssl", "tests", "experiments"}
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


def test_make_test_oldest_installs_the_lower_bound_of_every_dependency():
    constraints = oldest(PROJECT["dependencies"])
    assert names(constraints) == names(PROJECT["dependencies"]) - {"torchvision"}  # which torch's version decides
    assert all("==" in line and ">=" not in line and "," not in line for line in constraints)


def test_every_import_of_the_tests_is_declared():
    assert not third_party("tests") - RUN_TIME - names(EXTRAS["dev"])


def test_every_development_dependency_is_used():
    assert not names(EXTRAS["dev"]) - TOOLS - third_party("tests")


FOLDERS = PYPROJECT["tool"]["setuptools"]["package-dir"]  # packages that are elsewhere in the checkout


def folder_of(package: str) -> Path:
    return ROOT / FOLDERS.get(package, package.replace(".", "/"))


PATTERNS = [(name, p) for name, some in PYPROJECT["tool"]["setuptools"]["package-data"].items() for p in some]


@pytest.mark.parametrize(("package", "pattern"), PATTERNS, ids=lambda value: str(value))
def test_package_data_is_on_disk(package, pattern):
    assert list(folder_of(package).glob(pattern))


@pytest.mark.parametrize(
    "file", ["py.typed", "report/published.csv", "report/page/index.html", "data/hierarchies/cars196_names.json"]
)
def test_file_that_is_read_at_run_time_is_package_data(file):
    folders = [(folder_of(name), pattern) for name, pattern in PATTERNS]
    assert any(ROOT / "fgssl" / file in folder.glob(pattern) for folder, pattern in folders)


def test_every_package_is_named_in_pyproject():
    ours = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "fgssl").rglob("*.py")}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == ours | FOLDERS.keys()


COMPOSE = """
from fgssl.cli.compose import compose
for name in ("maskcon_cub", "experiments/maskcon_cub.yaml"):
    print(compose([name])["model"]["init_args"]["memory"])
"""
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


@pytest.mark.slow
def test_wheel_has_the_experiments_and_finds_them_by_name(tmp_path):
    """Built from a copy, unpacked, and used from another folder without the checkout."""
    source, site, elsewhere = tmp_path / "source", tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("fgssl", "configs", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-c", BUILD, str(tmp_path)], cwd=source, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    for folder in ("experiments", "configs"):
        files = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.yaml")}
        ours = {path for path in files if not path.is_relative_to("experiments/evidence/results")}
        assert {path.relative_to(site / "fgssl") for path in (site / "fgssl" / folder).rglob("*.yaml")} == ours
    done = subprocess.run(
        [sys.executable, "-c", COMPOSE], cwd=elsewhere, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [b"4096", b"4096"]


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
