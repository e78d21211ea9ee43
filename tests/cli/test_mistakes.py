"""What the command line answers to the mistakes that a new user makes: one line that names what was meant."""

import pytest
import yaml

from fgssl.cli.main import main, refuse_misspelt
from fgssl.data.datasets.base import DataSet
from fgssl.data.views import PairViews

DIGITS = ["fit", "--config", "maskcon_digits", "--print_config"]


@pytest.mark.parametrize(
    ("flags", "meant"),
    [
        (["--lr", "0.1"], "--model.optim.lr"),
        (["-lr", "0.1"], "--model.optim.lr"),
        (["--model.lr", "0.1"], "--model.optim.lr"),
        (["--model.learning_rate", "0.1"], "--model.optim.lr"),
        (["--weight_decay", "0"], "--model.optim.weight_decay"),
        (["--model.temperature", "0.1"], "--model.tau"),
        (["--epochs", "3"], "--trainer.max_epochs"),
        (["--max_epochs", "3"], "--trainer.max_epochs"),
        (["--trainer.epochs", "3"], "--trainer.max_epochs"),
        (["--trainer.max_e", "3"], "--trainer.max_epochs"),
        (["--batch_size", "3"], "--data.batch_size"),
        (["--batch-size", "3"], "--data.batch_size"),
        (["--num_workers", "0"], "--data.num_workers"),
        (["--dataset", "CUB"], "--data.dataset"),
        (["--data", "cub"], "--data.dataset CUB"),
        (["--data.views.sizes", "3"], "--data.views.size"),
        (["--image_size", "64"], "--data.views.size"),
        (["--gpus", "2"], "--trainer.devices"),
        (["--seed", "3"], "--seed_everything"),
        (["--backbone", "resnet50"], "--model.backbone.name"),
        (["--model.backbone", "resnet50"], "--model.backbone.name resnet50"),
        (["--pretrained"], "--model.backbone.pretrained"),
        (["--name", "x"], "--run.name"),
        (["--run", "x"], "--run.name x"),
        (["--ckpt", "x"], "--ckpt_path"),
        (["--resume", "x"], "--ckpt_path"),
        (["--wandb"], "--logger wandb"),
        (["--print-config"], "--print_config"),
        (["--data.protocol.val_fractoin", "0.2"], "--data.protocol.val_fraction"),
        (["--data.val_fractoin", "0.2"], "--data.protocol.val_fraction"),
        (["--modle.backbone.nme", "resnet50"], "--model.backbone.name"),
        (["model.tau=3"], "--model.tau=3"),
        (["maskcon_cub"], "--config maskcon_cub"),
        (["--model", "Maskcon"], "MaskCon"),
        (["--model", "obd_sd"], "OBDSD"),
        (["--data.dataset", "cub"], "CUB"),
        (["--data.views", "multicrop"], "MultiCrop"),
        (["--trainer.callbacks", "BoxKnn"], "BoxKNN"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_wrong_option_suggests_the_one_that_was_meant(flags, meant, capsys):
    assert main([*DIGITS, *flags]) == 2
    said = capsys.readouterr().err.strip()
    assert f"Did you mean '{meant}'?" in said
    assert "\n" not in said


def test_option_that_is_near_none_of_its_section_suggests_nothing(capsys):
    assert main([*DIGITS, "--retrieval.rerank.nme", "jaccard"]) == 2
    assert capsys.readouterr().err == "fgssl: unrecognized arguments: --retrieval.rerank.nme jaccard.\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.dataset", "Folder", "--data.dataset.root", ".", "--data.dataset.rot", "photos"],
         "'--data.dataset.rot' is not accepted by Folder. Did you mean '--data.dataset.root'?"),
        (["--data.dataset.test_fraction", "0.2"],
         "'--data.dataset.test_fraction' is not accepted by Digits. It has root, partial."),
        (["--trainer.callbacks", "[{class_path: OnlineKNN, init_args: {kk: 3}}]"],
         "'--trainer.callbacks.kk' is not accepted by OnlineKNN. Did you mean '--trainer.callbacks.k'?"),
        (["--trainer.callbacks+", "tests.trust.callbacks.CtrlCAtTest", "--trainer.callbacks.every", "1"],
         "'--trainer.callbacks.every' is not accepted by CtrlCAtTest. It has no options."),
        (["--model.optim.lrr", "3"],
         "'--model.optim.lrr' is not accepted by MaskCon. Did you mean '--model.optim.lr'?"),
        (["--model.backbone.layers", "3"],
         "'--model.backbone.layers' is not accepted by MaskCon. --model.backbone has name, pretrained, small_input, "
         "options, pooling, weights, weights_of, freeze, freeze_statistics."),
        (["--model", "CMD", "--model.tau", "0.2"],
         "'--model.tau' is not accepted by CMD. Did you mean '--model.tau_t'?"),
        (["--model", "CMD", "--data.views.locals", "4"],
         "'--data.views.locals' is not accepted by MultiCrop. Did you mean '--data.views.local_size'?"),
        (["--data.views.every", "3"],
         "'--data.views.every' is not accepted by PairViews. It has recipe, size."),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)  # fmt: skip
def test_option_that_a_class_does_not_have_names_the_class_and_suggests_its_own(flags, message, capsys):
    assert main([*DIGITS, *flags]) == 2
    assert capsys.readouterr().err == f"fgssl: Option {message}\n"


@pytest.mark.parametrize(
    "option",
    ["--model.tau", "--model.optim.lr", "--data.batch_size", "--data.views.size", "--data.dataset.partial",
     "--trainer.callbacks.k"],
)  # fmt: skip
def test_value_of_another_type_names_the_whole_option(option, capsys):
    assert main([*DIGITS, "--trainer.callbacks+", "OnlineKNN", option, "many"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fgssl: {option[2:]}: expected ")
    assert said.endswith("Got value: many.\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Did you mean 'fit'?"),
        (["evaluate"], "Did you mean 'test'?"),
        (["sweeps"], "Did you mean 'sweep'?"),
        (["fit", "--config", "maskcon_cubs"], "Did you mean 'maskcon_cub'?"),
        (["fit", "--config", "experiments/maskcon_cup.yaml"], "Did you mean 'maskcon_cub.yaml'?"),
        (["sweep", "sweeps/maskcon_digit"], "Did you mean 'sweeps/maskcon_digits'?"),
        (["fit", "--config", "maskcon_digits", "--model", "DINO"], "fgssl list experiments DINO"),
        (["fit", "--config", "maskcon_digits", "--run.paper", "maskcon, Tabel 6"], "Did you mean 'Table 6'?"),
        (["fit"], "no data set is named"),
        (["fit", "--config"], "--config needs a file"),
        (["fit", "maskcon_digits"], "Did you mean '--config maskcon_digits'?"),
        (["fit", "--confg", "maskcon_digits"], "unknown option --confg. Did you mean '--config'?"),
        (["test", "--ckpt_pth=runs/mine"], "unknown option --ckpt_pth. Did you mean '--ckpt_path'?"),
        (["fit", "--config", "maskcon_digits", "--model.tau"], "--model.tau needs a value"),
        (["data", "check", "cubs"], "Did you mean 'cub'?"),
        (["data", "cub"], "Did you mean 'fgssl data check cub'?"),
        (["embed", "--model", "resnet18"], "Did you mean 'timm/resnet18'?"),
        (["embed", "--ckpt_path", "nowhere"], "no checkpoint at nowhere"),
        (["list", "method"], "Did you mean 'methods'?"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_wrong_command_says_what_to_do(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("data.seed", "set by --seed_everything"),
        ("model.num_coarse", "counted in the data set"),
        ("model.init_args.train_classes", "counted in the data set"),
    ],
)
def test_option_that_is_set_by_another_one_is_refused(option, remedy, capsys):
    assert main([*DIGITS, f"--{option}", "3"]) == 2
    assert f"--{option} is {remedy}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("views", "own"),
    [
        ("ContrastiveCrop", {"recipe": "moco", "size": 224}),
        ("tests.cli.test_mistakes.SmallViews", {"size": 40}),
    ],
)
def test_other_views_have_their_own_defaults(views, own, capsys):
    with pytest.raises(SystemExit):
        main([*DIGITS, "--data.views", views])
    chosen = yaml.safe_load(capsys.readouterr().out)["data"]["views"]["init_args"]
    assert {name: chosen[name] for name in own} == own


class Unread(DataSet):
    """Data set whose reader has a mistake."""

    def _read(self):
        return {}["labels.csv"]


def test_mistake_in_a_data_set_of_ones_own_is_shown_with_its_line(tmp_path, capsys):
    flags = ["--data.dataset", "tests.cli.test_mistakes.Unread", "--run.root", str(tmp_path)]
    assert main(["fit", "--config", "maskcon_digits", *flags]) == 2
    said = capsys.readouterr().err
    assert "fgssl: KeyError: 'labels.csv'" in said
    assert "test_mistakes.py, line " in said
    assert "compute_fn" not in said


def test_unknown_class_of_a_callback_is_said_once(capsys):
    assert main([*DIGITS, "--trainer.callbacks+", "tests.cli.test_mistakes.Absent"]) == 2
    assert capsys.readouterr().err.count("has no attribute 'Absent'") == 1


class SmallViews(PairViews):
    """Two small views.

    Args:
        size: side, px.
    """

    def __init__(self, size: int = 40):
        super().__init__("digits", size)


@pytest.mark.parametrize("method", ["CMD", "OBDSD"])
def test_other_method_on_an_experiment_leaves_the_options_of_the_former(method, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*DIGITS, "--model", method, "--model.optim.lr", "0.1", "--data.views.size", "64"])
    assert stop.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["class_path"].endswith(method)
    assert config["data"]["views"]["init_args"]["size"] == 64


def test_place_that_cannot_be_written_is_named_without_a_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["init", "file/mine", "--method", "mls", "--data", "digits"]) == 2
    assert capsys.readouterr().err == "fgssl: file: File exists.\n"


@pytest.mark.parametrize(
    "option",
    ["--print_config", "--ckpt_path", "--checkpoint", "--checkpoint.monitor", "--quiet", "--logger", "--retrieval",
     "--seed_everything", "--verbose", "--return_predictions", "--weights_only", "--trainer", "--run", "--help"],
)  # fmt: skip
def test_option_of_a_command_is_no_misspelt_config(option):
    refuse_misspelt(["--model", "MLS", option])
