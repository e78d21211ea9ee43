"""What a run says while it trains: the bar, the lines of a log file, and nothing of Lightning's."""

import io
import re
from types import SimpleNamespace

import pytest
import rich

from fgssl.callbacks.progress import Clock, ProgressBar, Throughput, batches_in_all, duration
from fgssl.cli.main import main
from tests.cli.test_cli import fit, rows

BAR = ("--trainer.enable_progress_bar", "true")
# "finished" instead of a terminal's control sequences
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CLUTTER = (
    "FLOPs", "Modules in eval mode", "Tip", "GPU available", "TPU", "Seed set to", "`Trainer", "LOCAL_RANK", "Restor",
    "Params", "Epoch 0", "epoch 0",
)  # fmt: skip


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 100 columns; gives the lines that were drawn on it."""
    drawn = io.StringIO()
    monkeypatch.setattr(ProgressBar, "console", {"file": drawn, "force_terminal": True, "width": 100})
    yield lambda: [line for line in re.split(r"[\r\n]+", CONTROL.sub("", drawn.getvalue())) if line.strip()]
    rich.reconfigure(file=None, force_terminal=None, width=None)


@pytest.mark.slow
def test_bar_counts_epochs_from_1_and_shows_the_time_left_of_the_run_in_100_columns(tmp_path, terminal, capfd):
    fit(tmp_path, "run", *BAR, epochs=2)
    lines = terminal()
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("Filling the memory") and " 32/32 " in line for line in lines)
    for epoch in (1, 2):
        (last,) = {line.rstrip() for line in lines if re.match(rf"Epoch {epoch} of 2 .* 4/4 .*waiting", line)}
        assert re.search(r"4/4 run \d:\d\d:\d\d left  loss \d\.\d+  \d+ img/s  \d+ % waiting$", last)
    assert not any(re.search(r"Epoch 0|\d:\d\d:\d\d • ", line) for line in lines)


@pytest.mark.slow
def test_figures_are_cut_first_on_a_narrow_terminal(tmp_path, terminal, monkeypatch, capfd):
    monkeypatch.setitem(ProgressBar.console, "width", 60)
    fit(tmp_path, "run", *BAR, epochs=1)
    last = [line for line in terminal() if line.startswith("Epoch 1 of 1")][-1]
    assert len(last) <= 60
    assert " 4/4 run 0:00:00 left  loss " in last
    assert last.rstrip().endswith("…")


@pytest.mark.slow
def test_log_file_has_one_line_for_each_epoch_and_none_of_lightnings(tmp_path, capfd):
    fit(tmp_path, "run", *BAR, epochs=2)
    said = capfd.readouterr()
    epochs = [line for line in said.out.splitlines() if line.startswith("Epoch ")]
    assert [line.partition("  ")[0] for line in epochs] == ["Epoch 1 of 2", "Epoch 2 of 2"]
    assert "━━━━━━━━━━ " not in said.out  # no bar
    assert re.search(r"MaskCon: [\d,]+ parameters, [\d,]+ of them trained\. Device: cpu\.", said.err)
    for word in CLUTTER:
        assert word not in said.out + said.err, word


@pytest.mark.slow
def test_results_are_printed_in_percent_and_saved_as_fractions(tmp_path, capfd):
    from tests.cli.test_cli import results

    recall = results(fit(tmp_path, "run", epochs=1))["metrics"]["test/recall@1"]
    assert f"test/recall@1              │ {100 * recall:.2f} %" in capfd.readouterr().out


@pytest.mark.slow
def test_quiet_prints_the_results_and_nothing_before_them(tmp_path, terminal, capfd):
    run = fit(tmp_path, "run", *BAR, "--quiet", epochs=1)
    said = capfd.readouterr()
    assert said.out.startswith("MaskCon on digits")
    assert (said.err, terminal()) == ("", [])
    assert main(["fit", "--ckpt_path", str(run), "--run.name", "x"]) == 0  # and the next run of the process speaks
    assert "MaskCon: " in capfd.readouterr().err


@pytest.mark.slow
def test_short_run_has_a_curve_whatever_the_interval_of_its_configuration(tmp_path):
    every = ("--trainer.log_every_n_steps", "50")
    assert [row["step"] for row in rows(fit(tmp_path, "run", *every, epochs=1)) if row["train/loss"]] == [*"0123"]


@pytest.mark.slow
def test_fast_dev_run_fills_the_memory_with_one_batch(tmp_path, monkeypatch):
    from fgssl.methods.maskcon import MaskCon

    filled, prefill = [], MaskCon.prefill

    def count(self, batch):
        filled.append(len(batch.index))
        return prefill(self, batch)

    monkeypatch.setattr(MaskCon, "prefill", count)
    fit(tmp_path, "run", "--trainer.fast_dev_run", "true")
    assert filled == [16]


def trainer(done: int, **given) -> SimpleNamespace:
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=done - 1))
    options = {"max_epochs": 10, "max_steps": -1, "num_training_batches": 20, "accumulate_grad_batches": 1}
    return SimpleNamespace(fit_loop=loop, **(options | given))


def test_clock_counts_from_where_the_run_was_resumed(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("fgssl.callbacks.progress.time.perf_counter", lambda: now[0])
    clock = Clock()
    clock.start(trainer(50))
    assert clock.left(trainer(50)) is None
    now[0] += 30
    assert clock.left(trainer(60)) == 3 * 140  # 3 s a batch, 140 of 200 to go


def test_throughput_counts_images_and_waiting_since_the_epoch_began(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("fgssl.callbacks.progress.time.perf_counter", lambda: now[0])
    throughput = Throughput()
    throughput.start(waited=7.0)
    assert throughput.texts() == ["0 img/s", "0 % waiting"]
    for waited in (7.5, 8.0):
        now[0] += 2
        throughput.batch_done(64, waited)
    assert throughput.texts() == ["32 img/s", "25 % waiting"]


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ({}, 200),
        ({"max_steps": 30}, 30),
        ({"max_steps": 30, "accumulate_grad_batches": 4}, 120),
        ({"max_steps": 30, "max_epochs": -1}, 30),
        ({"max_epochs": -1}, float("inf")),
    ],
)
def test_batches_of_a_run(options, batches):
    assert batches_in_all(trainer(0, **options)) == batches


def test_duration_as_text():
    assert [duration(s) for s in (None, 0.6, 3723)] == ["-:--:--", "0:00:01", "1:02:03"]
