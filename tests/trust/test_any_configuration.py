"""Whatever the configuration says, the user sees a result or one message of ours, never a traceback."""

import contextlib
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from fgssl.cli.help import COMMANDS
from fgssl.cli.main import main
from tests.methods.runs import arguments

pytestmark = pytest.mark.slow

NUMBERS = st.sampled_from(
    ["-1", "0", "1", "2", "3", "7", "1000", "1e9", "0.5", "-0.1", "1e-9", "nan", "inf", "null", "x"]
)
WORDS = st.sampled_from(["", "maskcon", "supfine", "x", "null", "true", "[]", "{}", "[1, 2]", "{a: 1}", "/", "-"])
ANY = st.one_of(NUMBERS, WORDS)

OPTIONS = st.sampled_from(
    [
        "--model.weight", "--model.tau", "--model.tau0", "--model.dim", "--model.hidden", "--model.memory",
        "--model.momentum", "--model.variant", "--model.max_skips", "--model.backbone.name",
        "--model.backbone.small_input", "--model.optim.name", "--model.optim.lr", "--model.optim.warmup",
        "--model.optim.weight_decay", "--model.optim.reference_batch", "--data.batch_size", "--data.eval_batch_size",
        "--data.images_per_class", "--data.eval_size", "--data.eval_resize", "--data.eval_resample", "--data.prefetch",
        "--data.views", "--data.views.size", "--data.views.recipe", "--data.on_error", "--data.cache_side",
        "--data.mean",
        "--data.protocol.split", "--data.protocol.val_fraction", "--data.protocol.label_fraction",
        "--data.protocol.label_noise", "--retrieval.ks", "--retrieval.gallery", "--retrieval.grid",
        "--checkpoint.every_n_epochs", "--checkpoint.every_n_train_steps", "--checkpoint.monitor", "--run.resume",
        "--run.name", "--logger", "--seed_everything", "--ckpt_path", "--trainer.max_epochs",
        "--trainer.accumulate_grad_batches", "--trainer.precision", "--trainer.gradient_clip_val",
    ]
)  # fmt: skip


GENERATED = settings(
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    database=None,
)
CHANGES = st.lists(st.tuples(OPTIONS, ANY), min_size=1, max_size=2)
# No word that names a method and a data set, which would train.
COMMAND = st.sampled_from([*COMMANDS, "", "train", "x"])
WORD = st.one_of(
    OPTIONS,
    ANY,
    st.sampled_from(
        [
            "list", "check", "methods", "backbones", "--method", "--data", "--out", "--help", "-h", "--version",
            "--config", "nothing", "nothing.yaml", "--runs", "--root", "--partial", "--by", "--model", "--weights",
            "--print_completion", "bash", "model", "[1", "{a: 1", "\u00e9", "--", "--data.dataset", "Digits", "a b",
        ]
    ),
)  # fmt: skip


def assert_result_or_message(*line: str) -> None:
    """Run a command line in an empty folder: it works, or says in one message why not."""
    said = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(said),
    ):
        try:
            status = main([word.replace("FOLDER", folder) for word in line])
        except SystemExit as stop:  # of argparse
            status = stop.code
    assert status in (0, 1, 2, None), said.getvalue()
    assert "Traceback" not in said.getvalue()
    assert not status or said.getvalue().splitlines()[-1].strip()


def assert_configuration(changes: list[tuple[str, str]]) -> None:
    flags = [word for change in changes for word in change]
    limits = ["--trainer.limit_train_batches", "2", "--trainer.limit_test_batches", "2", "--trainer.max_steps", "2"]
    assert_result_or_message(*arguments("maskcon", Path("FOLDER"), "run"), *limits, *flags)


@settings(GENERATED, max_examples=40)
@given(CHANGES)
@example([("--model.backbone.name", "2")])
@example([("--data.eval_resample", "null")])
def test_any_configuration_gives_a_result_or_a_message(changes):
    assert_configuration(changes)


@settings(GENERATED, max_examples=60)
@given(COMMAND, st.lists(WORD, max_size=4))
def test_any_command_line_gives_a_result_or_a_message(command, words):
    assert_result_or_message(command, *words)


@pytest.mark.long
@settings(GENERATED, max_examples=500)
@given(CHANGES)
def test_many_configurations_give_a_result_or_a_message(changes):
    assert_configuration(changes)


@pytest.mark.long
@settings(GENERATED, max_examples=500)
@given(COMMAND, st.lists(WORD, max_size=6))
def test_many_command_lines_give_a_result_or_a_message(command, words):
    assert_result_or_message(command, *words)
