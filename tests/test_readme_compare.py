"""The walk-through of docs/compare.md: its commands are run, in order, on small networks."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgssl.cli.main import main
from fgssl.evaluation.store import read_embeddings
from tests.cli.test_cli import SMALL

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SECTION = (ROOT / "docs" / "compare.md").read_text().split("\n## ")[0]
COMMANDS = re.findall(
    r"^fgssl .*$", "\n".join(re.findall(r"^```bash\n(.*?)^```$", SECTION, re.DOTALL | re.MULTILINE)), re.M
)

ORDER = ["fit"] * 4 + ["test", "compare", "embed", "embed", "search", "export", "sweep"]
# What makes each command short, or able to do without a network or an optional library.
SHORT = {
    "fit": [*SMALL, "--trainer.max_steps", "1"],
    "test": SMALL,
    "embed": ["--retrieval.grid", "0", "--trainer.enable_progress_bar", "false"],
    "sweep": ["--dry_run"],
}


def test_the_walk_through_runs(tmp_path, monkeypatch, capsys):
    for folder in ("experiments", "configs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fgssl.report.figures.has_umap", lambda: False)
    Image.fromarray(np.full((40, 30, 3), 90, np.uint8)).save("photo.png")
    assert [line.split()[1] for line in COMMANDS] == ORDER
    for line in COMMANDS:
        _, command, *arguments = shlex.split(line, comments=True)
        if "timm/" in line:
            arguments += [
                "--pretrained",
                "false",
                "--data.num_workers",
                "0",
                "--data.eval_size",
                "32",
                "--data.eval_resize",
                "32",
            ]
        assert main([command, *arguments, *SHORT.get(command, [])]) == 0, line
        if command == "compare":
            said = capsys.readouterr().out
            for name in ("MaskCon ", "MaskCon/selfcon"):
                assert re.search(rf"{name}.* 1 +2 +\d+\.\d\d ± \d", said), said
    for path in re.findall(r"`(runs/[^`]*)`", SECTION):
        assert Path(path).exists(), path
    assert len(read_embeddings("runs/maskcon_digits/maskcon0_embed").index) == 450


def test_the_output_shown_has_the_columns_that_compare_prints():
    shown = next(
        block for block in re.findall(r"^```text\n(.*?)^```$", SECTION, re.DOTALL | re.MULTILINE) if " rank" in block
    )
    assert re.search(r"rank +method +epochs +seeds +recall@1 +map", shown)
    best = max(float(value) for value in re.findall(r"(\d\d\.\d\d) ±", shown))
    assert re.search(rf" 1 +MaskCon +8 +2 +{best:.2f} ±", shown), "the walk-through's own claim: MaskCon first"
