"""A value beyond a bound is refused with the option as it is typed, though the class knows its argument only."""

import pytest
from jsonargparse import Namespace

from fgssl.cli.main import main
from fgssl.cli.mistakes import name_option
from fgssl.errors import OutOfRange

KNN = ["--trainer.callbacks+", "OnlineKNN"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model.dim", "0"], "model.dim is 0; it must be 1 or more"),
        (["--model.tau", "-1"], "model.tau is -1.0; it must be 0 or more"),
        (["--model.momentum", "2"], "model.momentum is 2.0; it must be from 0 to 1"),  # model.optim has a momentum, too
        (["--model.momentum", "nan"], "model.momentum is nan; it must be from 0 to 1"),
        (["--model.optim.momentum", "-1"], "model.optim.momentum is -1.0; it must be 0 or more"),
        (["--model.optim.lr", "0"], "model.optim.lr is 0.0; it must be above 0"),
        (["--model.backbone.freeze", "-1"], "model.backbone.freeze is -1; it must be 0 or more"),
        (["--data.batch_size", "0"], "data.batch_size is 0; it must be 1 or more"),
        (["--data.views.size", "1"], "data.views.size is 1; it must be 2 or more"),
        ([*KNN, "--trainer.callbacks.k", "0"], "OnlineKNN.k is 0; it must be 1 or more"),
        (["--model.distillation.tau", "0"], "model.distillation.tau is 0.0; it must be above 0"),
    ],
    ids=lambda value: value[-2] if isinstance(value, list) else "",
)
def test_the_message_names_the_option(flags, said, tmp_path, capsys):
    experiment = "obd_sd_digits" if "distillation" in flags[0] else "maskcon_digits"
    place = ["--config", f"experiments/{experiment}.yaml", "--run.root", str(tmp_path)]
    assert main(["fit", *place, *flags]) == 2
    assert capsys.readouterr().err == f"fgssl: {said}.\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model": Namespace(lr=1, optim=Namespace(lr=0))}, "model.optim.lr"),  # the refused value decides
        ({"model": Namespace(lr=1, optim=Namespace(lr=2))}, "lr"),  # computed from options, of which none is meant
        ({"model": Namespace(lr=[0, 1])}, "model.lr"),
        ({"model": Namespace(class_path="pkg.Net")}, "lr"),
        ({"callbacks": [Namespace(class_path="pkg.Probe", init_args=Namespace(lr=0)), Namespace(lr=3)]}, "Probe.lr"),
    ],
    ids=["one of two", "none of two", "another value", "no such option", "list of classes"],
)
def test_the_option_that_is_meant(options, named):
    assert (
        str(name_option(OutOfRange("lr", 0, "above 0"), Namespace(**options))) == f"{named} is 0; it must be above 0."
    )
