"""Whatever the configuration says, the user sees a result or one message of ours, never a traceback."""

import contextlib
import io
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

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


@settings(
    max_examples=40, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(st.lists(st.tuples(OPTIONS, ANY), min_size=1, max_size=2))
def test_any_configuration_gives_a_result_or_a_message(changes):
    flags = [word for change in changes for word in change]
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        limits = ["--trainer.limit_train_batches", "2", "--trainer.limit_test_batches", "2", "--trainer.max_steps", "2"]
        status = main([*arguments("maskcon", Path(folder), "run"), *limits, *flags])
    assert status in (0, 2), said.getvalue()
    assert status == 0 or said.getvalue().splitlines()[-1].strip()
