"""make bench-gpu: the command works, without a GPU too, and the page says what was measured or that nothing was."""

import pytest
import torch

from tests.benchmarks import bench_gpu
from tests.benchmarks.bench_gpu import CASES, PAGE, RETRIEVAL, SETTINGS, SMOKE, main, page


@pytest.mark.slow
def test_one_step_of_everything_runs_on_a_cpu(tmp_path):
    out = tmp_path / "page.md"
    main(["--smoke", "--out", str(out)])
    text = out.read_text()
    assert "the figures mean nothing" in text
    for name in (*CASES, *RETRIEVAL):
        assert name in text
    rows = [line for line in text.splitlines() if line.startswith(f"| {SMOKE} |")]
    assert len(rows) == len(CASES)
    assert "not run" not in text
    for row in rows:
        bare, trainer, whole, ratio, waiting, augmentation, _, _ = row.strip("| ").split(" | ")[1:]
        assert float(ratio) > 0
        assert float(augmentation) > 0
        assert waiting.endswith("%")
        assert all(number.replace(",", "").isdecimal() for number in (bare, trainer, whole))  # 1,024 images a second


def test_without_a_gpu_the_page_says_not_run_and_a_page_with_figures_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "page.md"
    main(["--out", str(out)])
    assert "**Not run**: no CUDA GPU was at hand." in out.read_text()
    assert out.read_text().count("not run") > 20
    out.write_text("figures of a GPU")
    main(["--out", str(out)])
    assert out.read_text() == "figures of a GPU"
    assert "nothing is measured" in capsys.readouterr().out


def test_figures_of_a_smoke_test_do_not_replace_the_page():
    with pytest.raises(SystemExit):
        main(["--smoke"])


def test_the_page_in_the_documentation_names_every_measurement():
    text = PAGE.read_text()
    for name, case in CASES.items():
        assert f"### {name}, batch {case.batch}\n" in text
    for setting in SETTINGS:
        assert text.count(f"| {setting} |") == len(CASES)
    for task in RETRIEVAL:
        assert f"| {task} |" in text
    if "**Not run**" in text:
        assert text == page(None, {}, [])


def test_row_that_does_not_fit_into_the_memory_says_so():
    def row():
        raise torch.OutOfMemoryError("CUDA out of memory.")

    assert bench_gpu.attempt(row, "CMD: float32", 4) == ["float32", "out of memory", "-", "-"]
