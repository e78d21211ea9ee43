"""Flags and files: values as YAML, classes before their options, what a method adds where nothing is said."""

import math

import pytest
import yaml

from fgssl.cli.compose import apply_flags, compose
from fgssl.cli.defaults import fill_in, method_of
from fgssl.errors import UserError
from fgssl.methods import CMD, FLSL, MLS, MaskCon


def model(flags: list[str], **arguments) -> dict:
    config, _ = apply_flags({"model": {"class_path": "MaskCon", "init_args": arguments}}, flags)
    return config["model"]["init_args"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("null", None), ("inf", math.inf), (".inf", math.inf), ("-inf", -math.inf), ("Infinity", math.inf),
     ("1e-3", 1e-3), ("3", 3), ("true", True), ("[1, 2]", [1, 2]), ("{a: 1}", {"a": 1}),
     ("grafit", "grafit"), ("a: b: c", "a: b: c")],
)  # fmt: skip
def test_value_of_a_flag_is_yaml_or_inf(text, value):
    assert model(["--model.x", text]) == {"x": value}
    assert model([f"--model.x={text}"]) == {"x": value}


def test_flags_of_other_sections_are_left_for_the_parser():
    flags = ["--trainer.max_epochs", "3", "--model.tau", "0.1", "--run.name=x", "--model.help=CMD", "--print_config"]
    config, left = apply_flags({}, flags)
    assert left == ["--trainer.max_epochs", "3", "--run.name=x", "--model.help=CMD", "--print_config"]
    assert config == {"model": {"tau": 0.1}}


def test_flag_without_a_value_is_refused():
    with pytest.raises(UserError, match="--model.tau needs a value"):
        apply_flags({}, ["--model.tau"])
    with pytest.raises(UserError, match="--model.tau needs a value"):
        apply_flags({}, ["--model.tau", "--model.weight", "1"])


def test_class_flag_acts_before_its_options_wherever_it_stands():
    flags = ["--data.views.size", "32", "--data.views", "MultiCrop"]
    config, _ = apply_flags({"data": {"views": {"class_path": "PairViews", "init_args": {"recipe": "moco"}}}}, flags)
    assert config["data"]["views"] == {"class_path": "MultiCrop", "init_args": {"size": 32}}


def test_network_flag_acts_before_its_options_wherever_it_stands():
    flags = ["--model.backbone.options", "{depth: 1}", "--model.backbone.name", "vit_tiny_patch16_224"]
    config, _ = apply_flags({"model": RESNET}, flags)
    backbone = {"name": "vit_tiny_patch16_224", "options": {"depth": 1}}
    assert config["model"]["init_args"]["backbone"] == backbone


def test_model_flag_acts_before_the_network_of_its_backbone():
    config, _ = apply_flags({}, ["--model.backbone.name", "resnet50", "--model", "MaskCon"])
    assert config["model"] == {"class_path": "MaskCon", "init_args": {"backbone": {"name": "resnet50"}}}


def test_options_of_a_flag_replace_those_of_the_files():
    config, _ = apply_flags({"model": RESNET}, ["--model.backbone.options", "{layers: [1]}"])
    assert config["model"]["init_args"]["backbone"]["options"] == {"layers": [1]}


def test_model_flag_keeps_the_options_that_both_classes_have():
    former = {"class_path": "MaskCon", "init_args": {"dim": 8, "weight": 1.0, "optim": {"lr": 0.1}}}
    config, _ = apply_flags({"model": former}, ["--model", "MLS", "--model.k", "5"])
    filled = fill_in(config, MLS, {"model": former})
    assert filled["model"] == {"class_path": "MLS", "init_args": {"dim": 8, "optim": {"lr": 0.1}, "k": 5}}


def test_model_flag_leaves_the_variant_of_the_former_class():
    """Both have ``variant``, with other names in it."""
    former = {"class_path": "MaskCon", "init_args": {"variant": "maskcon", "dim": 8}}
    config, _ = apply_flags({"model": former}, ["--model", "MLS"])
    assert fill_in(config, MLS, {"model": former})["model"]["init_args"] == {"dim": 8}
    config, _ = apply_flags({"model": former}, ["--model", "MLS", "--model.variant", "grafit"])
    assert fill_in(config, MLS, {"model": former})["model"]["init_args"]["variant"] == "grafit", "the parser refuses it"


def test_misspelt_option_of_a_flag_is_not_dropped_with_the_class():
    former = {"class_path": "MaskCon", "init_args": {"weight": 1.0}}
    config, _ = apply_flags({"model": former}, ["--model", "MLS", "--model.weigth", "5"])
    assert fill_in(config, MLS, {"model": former})["model"]["init_args"] == {"weigth": 5}


# ---- the backbone's options -----------------------------------------------------------------------------------------


def composed(tmp_path, *contents: dict) -> dict:
    files = [tmp_path / f"{number}.yaml" for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_text(yaml.safe_dump(content))
    return compose(files)


BACKBONE = {"name": "resnet18", "options": {"zero_init_last": False}}
RESNET = {"class_path": "MaskCon", "init_args": {"backbone": BACKBONE}}


@pytest.mark.parametrize("way", ["file", "mapping", "flag"])
@pytest.mark.parametrize(("name", "kept"), [("vit_tiny_patch16_224", False), ("resnet18.tv_in1k", True)])
def test_another_network_leaves_the_options_of_the_former_one(way, name, kept, tmp_path):
    if way == "flag":
        config, _ = apply_flags({"model": RESNET}, ["--model.backbone.name", name])
    else:
        later = {"model.backbone.name": name} if way == "file" else {"model": {"backbone": {"name": name}}}
        config = composed(tmp_path, {"model": RESNET}, later)
    backbone = config["model"]["init_args"]["backbone"]
    assert backbone["name"] == name
    assert ("options" in backbone) is kept


def test_options_given_with_the_new_name_are_kept(tmp_path):
    later = {"model": {"backbone": {"options": {"depth": 1}, "name": "vit_tiny_patch16_224"}}}
    config = composed(tmp_path, {"model": RESNET}, later)
    assert config["model"]["init_args"]["backbone"]["options"] == {"depth": 1}


def test_another_network_leaves_the_options_of_the_methods_default():
    config = {"model": {"class_path": "FLSL", "init_args": {"backbone": {"name": "resnet18"}}}}
    assert fill_in(config, FLSL)["model"]["init_args"]["backbone"] == {"name": "resnet18", "options": {}}
    same = {"model": {"class_path": "FLSL", "init_args": {"backbone": {"name": "vit_small_patch16_224"}}}}
    assert "options" not in fill_in(same, FLSL)["model"]["init_args"]["backbone"]


# ---- the method's views ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "views"), [(CMD, "MultiCrop"), (FLSL, "NestedCrops"), (MaskCon, "PairViews")])
def test_method_brings_its_views_where_none_are_named(method, views):
    config = {"model": {"class_path": method.__name__}, "data": {"dataset": "CUB"}}
    assert method_of(config) is method
    assert fill_in(config, method)["data"]["views"]["class_path"] == views


def test_options_of_views_without_a_class_are_those_of_the_methods_views():
    filled = fill_in({"data": {"views": {"size": 32}}}, MLS)
    assert filled["data"]["views"] == {"class_path": "PairViews", "init_args": {"recipe": "moco", "size": 32}}


def test_views_that_are_named_stay():
    views = {"class_path": "SingleView", "init_args": {"size": 8}}
    assert fill_in({"data": {"views": views}}, CMD)["data"]["views"] == views


def test_unknown_method_lists_the_known_ones_and_no_base_class():
    with pytest.raises(UserError, match=r"unknown class 'Maskcon'. Did you mean 'MaskCon'\? Known: .*CMD, ") as said:
        method_of({"model": "Maskcon"})
    assert "SelfDistillation" not in str(said.value)
    assert "Downstream" not in str(said.value)


@pytest.mark.parametrize("path", ["my_package_that_is_not.SimCLR", "fgssl.methods.Nothing", "fgssl.optim.Optim"])
def test_class_path_that_is_no_method_is_refused_by_name(path):
    with pytest.raises(UserError, match=path):
        method_of({"model": {"class_path": path}})
