"""The documentation's notebook and its page on Python run, each in a process and a folder of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.methods.runs import environment

pytestmark = pytest.mark.slow

NOTEBOOK = Path(__file__).parents[1] / "docs" / "own_images.ipynb"

RUN = """
import json, sys

names = {}
for number, cell in enumerate(json.load(open(sys.argv[1]))["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
print(json.dumps({
    "map": [names["before"]["test/map"], names["after"]["test/map"]],
    "hits": [[hit.path, hit.label] for hit in names["hits"]],
}))
"""


def test_notebook_goes_from_images_to_a_search(tmp_path):
    line = [sys.executable, "-c", RUN, str(NOTEBOOK)]
    done = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["map"][1] > said["map"][0] > 0.3
    assert said["hits"][0] == [str(tmp_path / "own_images" / "6" / "0006.jpg"), "6"]
    assert [label for _, label in said["hits"]].count("6") >= 4
    assert (tmp_path / "neighbours.png").stat().st_size > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["neighbours.png", "own.ckpt", "own_images", "own_index"]


def test_the_python_of_the_documentation_runs(tmp_path):
    """The page on Python: the block that needs no files of the user's."""
    page = (NOTEBOOK.parent / "python.md").read_text()
    (block,) = [text.split("```")[0] for text in page.split("```python\n")[1:] if "Trainer(" in text]
    check = "\nassert 0.5 < metrics['test/recall@1'] <= 1\nassert method.hparams['num_coarse'] == 3\n"
    line = [sys.executable, "-c", block + check]
    done = subprocess.run(line, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_notebook_holds_no_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")
