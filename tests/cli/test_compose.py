"""Experiments as YAML: fragments, overrides, and what is said of mistakes."""

import pytest

from fgssl.cli.compose import compose, read_section
from fgssl.cli.shipped import find
from fgssl.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write(name: str, text: str):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    write("configs/model.yaml", "class_path: MaskCon\ninit_args: {tau: 0.1, optim: {lr: 1e-3, name: sgd}}\n")
    write("configs/trainer.yaml", "max_epochs: 200\ncallbacks: [a]\n")
    return write


def test_fragments_are_found_beside_the_file_and_numbers_override_them(write):
    path = write(
        "experiments/run.yaml",
        "model: ../configs/model.yaml\nmodel.tau: 0.05\nmodel.optim.lr: 2e-4\ntrainer: ../configs/trainer.yaml\n",
    )
    config = compose([path])
    assert config["model"] == {
        "class_path": "MaskCon",
        "init_args": {"tau": 0.05, "optim": {"lr": 2e-4, "name": "sgd"}},
    }
    assert config["trainer"]["max_epochs"] == 200


def test_later_files_win_and_lists_append_on_request(write):
    first = write("a.yaml", "trainer: configs/trainer.yaml\nmodel: configs/model.yaml\n")
    second = write("b.yaml", "trainer.max_epochs: 3\ntrainer.callbacks+: [b]\nmodel: {init_args: {tau: 0.2}}\n")
    config = compose([first, second])
    assert config["trainer"] == {"max_epochs": 3, "callbacks": ["a", "b"]}
    assert config["model"]["init_args"]["tau"] == 0.2
    assert config["model"]["init_args"]["optim"]["name"] == "sgd"


def test_appending_works_inside_a_mapping_too(write):
    path = write("a.yaml", "trainer: configs/trainer.yaml\n")
    assert compose([path, write("b.yaml", "trainer: {callbacks+: [b]}\n")])["trainer"]["callbacks"] == ["a", "b"]


def test_another_class_leaves_the_former_classes_arguments_behind(write):
    first = write("a.yaml", "model: configs/model.yaml\n")
    second = write("b.yaml", "model: {class_path: Other, init_args: {x: 1}}\n")
    assert compose([first, second])["model"] == {"class_path": "Other", "init_args": {"x": 1}}


@pytest.mark.parametrize(("key", "name"), [("dataset", "CUB"), ("views", "MultiCrop")])
def test_mapping_of_options_keeps_the_class_that_was_named_in_short(key, name, write):
    first, second = write("a.yaml", f"data: {{{key}: {name}}}\n"), write("b.yaml", f"data: {{{key}: {{size: 3}}}}\n")
    assert compose([first, second])["data"][key] == {"class_path": name, "init_args": {"size": 3}}


def test_options_that_stand_before_their_class_are_kept(write):
    config = compose([write("a.yaml", "model.tau: 0.3\nmodel: configs/model.yaml\n")])
    assert config["model"]["init_args"] == {"tau": 0.1, "optim": {"lr": 1e-3, "name": "sgd"}}
    config = compose([write("b.yaml", "model.weight: 0.3\nmodel: configs/model.yaml\n")])
    assert config["model"]["init_args"] == {"weight": 0.3, "tau": 0.1, "optim": {"lr": 1e-3, "name": "sgd"}}


def test_an_option_of_a_class_named_in_short(write):
    config = compose([write("a.yaml", "data: {dataset: CUB}\ndata.dataset.partial: true\n")])
    assert config["data"]["dataset"] == {"class_path": "CUB", "init_args": {"partial": True}}


def test_numbers_in_exponent_form_are_numbers(write):
    config = compose([write("a.yaml", "model: {init_args: {a: 1e-4, b: 5E3, c: -2e+1, d: .inf}}\n")])
    assert config["model"]["init_args"] == {"a": 1e-4, "b": 5e3, "c": -20.0, "d": float("inf")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  tau: 1\n  w: 2\n  tau: 3\n", r"key 'tau' is given twice, on lines 2 and 4"),
        ("modle: 1\n", r"unknown section 'modle'. Did you mean 'model'\?"),
        ("model: configs/modle.yaml\n", r"not found: .*modle.yaml \(named in .*a.yaml\). Did you mean 'model.yaml'\?"),
        ("model: [1, 2\n", r"a.yaml is not valid YAML"),
        ("- 1\n", r"an experiment is a mapping of sections"),
        ("data: Digits\n", r"data is 'Digits'; it must be a mapping .* Did you mean 'data.dataset: Digits'\?"),
        ("trainer:\n  max_epochs 1\n", r"trainer is 'max_epochs 1'; it must be a mapping"),
    ],
)
def test_mistakes_name_the_file_and_the_key(write, text, message):
    with pytest.raises(UserError, match=message):
        compose([write("a.yaml", text)])


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "a.yaml").write_bytes("# café\n".encode("cp1252"))
    with pytest.raises(UserError, match="a.yaml is not valid YAML: 'utf-8' codec"):
        compose([tmp_path / "a.yaml"])


def test_a_missing_experiment_suggests_the_nearest(write):
    write("maskcon_cub.yaml", "")
    path = write("x.yaml", "").with_name("maskcon_cubs.yaml")
    with pytest.raises(UserError, match=r"Did you mean 'maskcon_cub.yaml'\?"):
        compose([path])


# ---- experiments by name --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["maskcon_cub", "maskcon_cub.yaml", "experiments/maskcon_cub", "experiments/maskcon_cub.yaml"]
)
def test_experiment_is_found_by_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compose([name])["model"]["init_args"]["memory"] == 4096


def test_experiment_of_a_subfolder_is_found_and_named_by_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compose(["cmd_cub", "cmd_ablations/table6_lambda_0.001"])["model"]["init_args"]["l_s"] == 0.001
    assert find("cmd_ablations/table6_lambda_0.001").stem == "table6_lambda_0.001"


def test_file_of_the_working_folder_comes_before_an_experiment_of_the_package(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("maskcon_cub.yaml", "model.memory: 7\n")
    assert compose(["maskcon_cub"])["model"]["memory"] == 7


def test_fragment_of_the_package_is_a_section(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_section("configs/data/cub.yaml")["dataset"] == "CUB"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("maskcon_cubs", "maskcon_cub"),
        ("experiments/maskcon_cup.yaml", "maskcon_cub"),
        ("cmd_ablations/table4_lrr", "cmd_ablations/table4_lr"),
        ("sweeps/maskcon_car", "sweeps/maskcon_cars"),
    ],
)
def test_misspelt_experiment_suggests_the_nearest(name, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"config file not found: {name}. Did you mean '{hint}'"):
        compose([name])
