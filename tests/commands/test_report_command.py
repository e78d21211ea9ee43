"""fgssl report on a real run: it makes the embeddings that are missing, and draws them."""

import json

import pytest

from fgssl.cli.main import main
from fgssl.report import explorer
from tests.cli.test_cli import fit

pytestmark = pytest.mark.slow


def test_report_of_a_run_makes_the_embeddings_that_are_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(explorer, "has_umap", lambda: False)
    monkeypatch.setattr("fgssl.report.figures.has_umap", lambda: False)
    run = fit(tmp_path / "runs", epochs=1)
    line = ["report", str(run), "--out", str(tmp_path / "out"), "--points", "100"]
    assert main(line) == 0
    assert f"fgssl embed --ckpt_path {run}" in (tmp_path / "out" / "index.html").read_text()
    assert main([*line, "--embed"]) == 0
    assert "map of" in capsys.readouterr().out
    page = (tmp_path / "out" / "index.html").read_text()
    assert "100 embeddings" in page
    script = (tmp_path / "out" / "explorers" / "0" / "data.js").read_text()
    data = json.loads(script.removeprefix("window.FGSSL = ").removesuffix(";\n"))
    assert len(data["fine"]) == 100
    assert data["coarseNames"]
    pictures = {path.name for path in (tmp_path / "out" / "pictures" / "0").iterdir()}
    assert pictures == {
        "retrieval.jpg",
        "similarity.png",
        "confusion.png",
        "coarse_confusion.png",
    }  # drawn: the run is without
    assert "100 of 450 images of digits" in (tmp_path / "out" / "explorers" / "0" / "index.html").read_text()
    assert (tmp_path / "out" / "data" / "digits.jpg").is_file()
