"""``null`` on the command line: refused where an option has to have a value, before anything is built."""

import pytest

from fgssl.cli.main import main
from tests.methods.runs import NETWORK


@pytest.mark.parametrize(
    "option",
    [
        "data.eval_resample", "data.batch_size", "data.on_error", "model.variant", "model.tau", "model.backbone.name",
        "model.optim.name", "data.views.recipe", "data.protocol.split",
    ],
)  # fmt: skip
def test_null_is_refused_where_an_option_has_to_have_a_value(option, tmp_path, capsys):
    flags = ["--config", "experiments/maskcon_digits.yaml", "--data.views", "PairViews", "--run.root", str(tmp_path)]
    assert main(["fit", *flags, f"--{option}", "null"]) == 2
    said = f"fgssl: {option} is null, and it has to have a value. Leave it away for the default.\n"
    assert capsys.readouterr().err == said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_null_is_accepted_where_it_means_something(tmp_path):
    place = ["--config", "experiments/maskcon_digits.yaml", "--run.root", str(tmp_path)]
    short = ["--trainer.max_steps", "1", "--trainer.limit_test_batches", "0", "--trainer.enable_progress_bar", "false"]
    short += ["--model.memory", "40", "--model.backbone.options", NETWORK]
    null = [f"--{name}=null" for name in ("data.images_per_class", "data.eval_resize", "data.mean", "data.views")]
    assert main(["fit", *place, *short, *null]) == 0
