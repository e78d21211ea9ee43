"""fgssl list and fgssl init: what they print and write, and that what init writes runs."""

import subprocess
import sys

import pytest
import yaml

from fgssl.cli.main import main
from fgssl.cli.shipped import experiments
from fgssl.commands.init import METHODS, first_sentence
from fgssl.commands.list import state
from fgssl.data.datasets import ALL, Folder
from fgssl.methods.registry import known_methods
from tests import trees
from tests.test_experiments import CMD_SMALL, SMALL_NETWORK

# ---- list ------------------------------------------------------------------------------------------------------------


def listed(capsys, *arguments: str) -> dict[str, str]:
    """The rest of each line by its first word."""
    assert main(["list", *arguments]) == 0
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    return {line.split()[0]: line for line in lines}


def test_every_experiment_is_listed_once_with_its_state(capsys):
    top, rest = listed(capsys, "experiments"), listed(capsys, "experiments", "/")
    assert top.keys() | rest.keys() == experiments().keys()
    assert "maskcon, Table 6" in top["maskcon_cars"]
    assert "not run at full scale" in top["maskcon_cars"]
    assert "measured" in top["maskcon_digits"]
    assert top["maskcon_digits"].endswith("mAP 0.87 (untrained network 0.91, 0.52)")
    assert not any("fgssl fit" in line for line in top.values()), "a result ends before the command"


def test_experiment_that_names_our_result_is_called_measured():
    for name, path in experiments().items():
        text = path.read_text()
        assert (state(path)[0] == "measured") == ("Ours" in text), name
        assert state(path)[0] != "runs" or "Not run" not in text, name


def test_methods_are_all_listed_with_paper_and_measured_experiments(capsys):
    lines = listed(capsys, "methods")
    ours = {name for name, cls in known_methods().items() if cls.__module__.startswith("fgssl.")}
    assert lines.keys() == ours
    assert "Feng & Patras, CVPR 2023" in lines["MaskCon"]
    assert "maskcon_digits" in lines["MaskCon"]


def test_data_says_which_sets_are_on_this_machine(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FGSSL_DATA", str(tmp_path))
    trees.make_cub(tmp_path / "CUB_200_2011")
    lines = listed(capsys, "data")
    assert lines.keys() == {cls.__name__ for cls in ALL.values()}
    assert str(tmp_path / "CUB_200_2011") in lines["CUB"]
    assert "11,788 images, 200 classes, 70 coarse" in lines["CUB"]
    assert "not on this machine" in lines["Cars"]
    assert "needs no files" in lines["Digits"]


def test_backbones_are_filtered_by_name_and_by_pattern(capsys):
    assert "tv_in1k" in listed(capsys, "backbones", "resnet18")["resnet18"]
    assert all(name.startswith("vit_tiny") for name in listed(capsys, "backbones", "vit_tiny*"))
    assert "resnet50" in listed(capsys, "backbones")


def test_nothing_found_is_an_error_that_says_where_all_are(capsys):
    assert main(["list", "experiments", "zzz"]) == 2
    assert "no experiments with 'zzz' in the name" in capsys.readouterr().err


def test_experiments_and_data_are_listed_without_torch():
    code = "import sys; from fgssl.cli.main import main; main(['list', 'experiments']); main(['list', 'data']); "
    done = subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], capture_output=True)
    assert done.returncode == 0


# ---- init ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with photographs of three classes."""
    monkeypatch.chdir(tmp_path)
    trees.make_folder(tmp_path / "photos")
    return tmp_path


SMALL_VIT = (
    "{class_token: false, global_pool: avg, fc_norm: false, dynamic_img_size: true, embed_dim: 16, depth: 2, "
    "num_heads: 2}"
)
# The experiments on digits are small already.
SMALLER = {
    "cmd": [*CMD_SMALL, "--model.backbone.options", SMALL_NETWORK, "--data.views.local_size", "32"],
    "flsl": ["--model.backbone.options", SMALL_VIT],
} | {
    method: ["--model.backbone.name", "resnet18", "--model.backbone.options", SMALL_NETWORK]
    for method in ("maskcon", "mls", "obd_sd")
}


@pytest.mark.slow
@pytest.mark.parametrize("data", ["photos", "digits"])
@pytest.mark.parametrize("method", METHODS)
def test_experiment_that_init_writes_takes_a_step(method, data, folder):
    assert main(["init", "mine", "--method", method, "--data", data]) == 0
    smaller = [*SMALLER[method], "--data.views.size", "64", "--model.backbone.pretrained", "false"]
    flags = ["--run.name", "a", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu", "--data.num_workers", "0"]
    flags += ["--retrieval.grid", "0", "--retrieval.extra", "[]", "--trainer.limit_test_batches", "1"]
    flags += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    assert main(["fit", "--config", "mine", *(smaller if data == "photos" else []), *flags]) == 0
    assert (folder / "runs" / "mine" / "a" / "results.json").is_file()


def test_init_explains_each_option_and_fits_the_folder(folder, capsys):
    assert main(["init", "sub/mine.yaml", "--method", "MaskCon", "--data", "photos"]) == 0
    said = capsys.readouterr().out
    assert "fgssl fit --config sub/mine.yaml" in said
    text = (folder / "sub" / "mine.yaml").read_text()
    config = yaml.safe_load(text)
    assert config["data"]["batch_size"] <= 9
    assert config["model"]["init_args"]["memory"] <= 9
    for option in config["model"]["init_args"]:
        before = text.split(f"\n    {option}:")[0].splitlines()[-1]
        assert before.lstrip().startswith("# "), option
    coarse = folder / "sub" / "mine_coarse.csv"
    assert str(coarse.relative_to(folder)) in said
    assert coarse.read_text().splitlines() == ["class,coarse", "cat,cat", "dog,dog", "horse,horse"]
    assert "each class stands there for itself" in said


def test_init_keeps_a_file_of_coarse_classes_and_says_so(folder, capsys):
    coarse = folder / "mine_coarse.csv"
    coarse.write_text("cat,pet\ndog,pet\nhorse,farm\n")
    assert main(["init", "mine", "--method", "MaskCon", "--data", "photos"]) == 0
    said = capsys.readouterr().out
    assert "mine_coarse.csv: the coarse class of each class; your file is kept as it is" in said
    assert "stands there for itself" not in said
    assert coarse.read_text().startswith("cat,pet")


def test_init_quotes_a_path_with_blanks(folder, capsys):
    assert main(["init", "my own", "--method", "MLS", "--data", "photos"]) == 0
    assert "next: fgssl fit --config 'my own.yaml'\n" in capsys.readouterr().out
    assert "# fgssl fit --config 'my own.yaml'\n" in (folder / "my own.yaml").read_text()


def test_init_sets_test_images_aside_where_there_are_no_parts(folder, capsys):
    assert main(["init", "mine", "--method", "maskcon", "--data", "photos/train"]) == 0
    dataset = yaml.safe_load((folder / "mine.yaml").read_text())["data"]["dataset"]["init_args"]
    assert Folder(**dataset).index().split.tolist().count("test") == 3  # one of each class


def test_init_for_images_without_labels(folder, capsys):
    images = folder / "flat"
    images.mkdir()
    for number in range(5):
        trees.write_image(images / f"{number}.jpg", seed=number)
    assert main(["init", "mine", "--method", "mls", "--data", "flat"]) == 0
    assert main(["init", "other", "--method", "maskcon", "--data", "flat"]) == 2
    assert "MaskCon learns from labels" in capsys.readouterr().err
    assert not (folder / "other.yaml").exists()


@pytest.mark.parametrize(("name", "file"), [("v0.2", "v0.2.yaml"), ("mine.yml", "mine.yml"), ("a.yaml", "a.yaml")])
def test_init_adds_yaml_to_any_other_name(name, file, folder, capsys):
    assert main(["init", name, "--method", "mls"]) == 0
    assert f"fgssl fit --config {file}\n" in capsys.readouterr().out
    assert (folder / file).is_file()


def test_init_overwrites_nothing(folder, capsys):
    (folder / "mine.yaml").write_text("precious")
    assert main(["init", "mine", "--method", "mls"]) == 2
    assert "mine.yaml exists already" in capsys.readouterr().err
    assert (folder / "mine.yaml").read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "maskcn"], "Did you mean 'maskcon'?"),
        (["--method", "mls", "--data", "cubb"], "Did you mean 'cub'?"),
        (["--method", "mls", "--data", "no/such"], "neither a data set nor a folder"),
    ],
)
def test_init_with_an_unknown_name_is_one_line(folder, capsys, arguments, message):
    assert main(["init", "mine", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "mine.yaml").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("weight w (Eq. 15), in [0, 1]. More.", "Weight w (Eq. 15), in [0, 1]."),
        ("``false``: all; true: one", "False: all."),
        ("as Su et al. 2023 say", "As Su et al. 2023 say."),
    ],
)
def test_first_sentence_does_not_end_at_an_abbreviation(text, sentence):
    assert first_sentence(text) == sentence
