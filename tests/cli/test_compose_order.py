"""Experiment files composed in any order: parts that do not overlap give one configuration, else the later one wins.

A part is one option. It is written as a dotted key, as a mapping, or as a mapping in a file that the experiment names,
in an experiment file of its own. The examples are the same in every run (``derandomize``).
"""

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fgssl.cli.compose import apply_flags, compose
from fgssl.cli.shipped import find
from fgssl.errors import UserError

FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None)

CLASSES = {"model.class_path": "MaskCon", "data.dataset": "CUB", "data.views.class_path": "MultiCrop"}
OPTIONS: dict[str, Any] = {  # options of sections with and without a class, at each depth
    "model.tau": 0.3, "model.weight": 1e-3, "model.optim.lr": 2e-4, "model.optim.name": "adam",
    "model.optim.clip_each": None,
    "model.backbone.name": "resnet50", "model.backbone.options": {"output_stride": 8}, "model.dml_loss.alpha": 32,
    "data.dataset.root": "data/birds", "data.dataset.partial": True, "data.batch_size": 7, "data.protocol.seed": 3,
    "data.mean": [0.4, 0.5, 0.6], "trainer.max_epochs": 9, "trainer.precision": "bf16-mixed", "retrieval.ks": [1, 3],
    "retrieval.rerank.alpha": 0.0, "checkpoint.monitor": "val/map", "run.paper": None, "seed_everything": 4,
}  # fmt: skip
OF_VIEWS = {"data.views.size": 48, "data.views.local_crops": 2}  # after the class: without one they are another's
WAYS = ("dotted", "mapping", "file")


def written(key: str, value: Any, way: str, folder: Path) -> dict[str, Any]:
    """The option as content of an experiment file."""
    section, *inner = key.split(".")
    if way == "dotted" or not inner:
        return {key: value}
    for name in reversed(inner):
        value = {name: value}
    if way == "mapping":
        return {section: value}
    path = folder / f"{key}.yaml"
    path.write_text(yaml.safe_dump(value))
    return {section: path.name}


def composed(parts: list[tuple[str, Any, str]], folder: Path) -> dict[str, Any]:
    """The configuration of one experiment file for each part, in this order."""
    files = []
    for number, (key, value, way) in enumerate(parts):
        path = folder / f"{number}.yaml"
        path.write_text(yaml.safe_dump(written(key, value, way, folder)))
        files.append(path)
    return plain(compose(files))


def plain(config: Any) -> Any:
    """A configuration with each class as a mapping, as the parser reads it."""
    if not isinstance(config, dict):
        return config
    return {
        key: {"class_path": value} if key in ("dataset", "views") and isinstance(value, str) else plain(value)
        for key, value in config.items()
    }


PARTS = st.lists(st.sampled_from(sorted(CLASSES | OPTIONS)), unique=True, min_size=2, max_size=9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("parts")


def everything(keys: list[str], draw: st.DataObject) -> list[tuple[str, Any, str]]:
    every = CLASSES | OPTIONS
    return [(key, every[key], draw.draw(st.sampled_from(WAYS))) for key in keys]


@FEW
@given(keys=PARTS, data=st.data())
def test_parts_that_do_not_overlap_give_one_configuration_in_any_order_and_form(keys, data, folder):
    one = everything(keys, data)
    other = everything(data.draw(st.permutations(keys)), data)
    assert composed(one, folder) == composed(other, folder)


@FEW
@given(keys=PARTS, data=st.data())
def test_lines_of_one_file_are_the_files_one_after_another(keys, data, folder):
    parts = [(key, value, "dotted") for key, value, _ in everything(keys, data)]
    lines: dict[str, Any] = {}
    for key, value, way in parts:
        lines |= written(key, value, way, folder)
    path = folder / "lines.yaml"
    path.write_text(yaml.safe_dump(lines, sort_keys=False))
    assert plain(compose([path])) == composed(parts, folder)


@FEW
@given(keys=PARTS, first=st.integers(0, 8), data=st.data())
def test_of_two_values_the_later_one_wins_whatever_stands_between(keys, first, data, folder):
    key = data.draw(st.sampled_from([key for key in sorted(OPTIONS) if not isinstance(OPTIONS[key], dict)]))
    former = (key, "former", data.draw(st.sampled_from(WAYS)))
    parts = everything([one for one in keys if one != key], data)
    later = everything([key], data)
    first = min(first, len(parts))
    expected = composed([*parts, *later], folder)
    assert composed([*parts[:first], former, *parts[first:], *later], folder) == expected


@FEW
@given(keys=PARTS, data=st.data())
def test_flags_in_any_order_are_files_that_come_last(keys, data, folder):
    """Also those that choose a class, after the options of the class."""
    flags = [key for key in keys if key.startswith(("model.", "data."))]
    config = composed([("trainer.max_epochs", 9, "dotted")], folder)
    results = []
    for order in (flags, data.draw(st.permutations(flags))):
        words = [word for key in order for word in (f"--{key}", yaml.safe_dump((CLASSES | OPTIONS)[key]).strip("\n."))]
        results.append(plain(apply_flags(config, words)[0]))
    assert results[0] == results[1]
    assert results[0] == composed([("trainer.max_epochs", 9, "dotted"), *everything(flags, data)], folder)


@pytest.mark.parametrize("options", itertools.permutations(OF_VIEWS))
def test_options_of_views_follow_their_class_in_any_order(options, folder):
    chosen = ("data.views", "MultiCrop", "dotted")
    views = composed([chosen, *((key, OF_VIEWS[key], "dotted") for key in options)], folder)["data"]["views"]
    assert views == {"class_path": "MultiCrop", "init_args": {"size": 48, "local_crops": 2}}
    without = composed([*((key, OF_VIEWS[key], "dotted") for key in options), chosen], folder)["data"]["views"]
    assert without == {"class_path": "MultiCrop"}  # the options were those of the method's own views


# ---- the shipped overlays -------------------------------------------------------------------------------------------


def leaves(config: dict[str, Any], above: str = "") -> set[str]:
    """Dotted options that an overlay gives; a class is one with its arguments, a network one with its options."""
    found: set[str] = set()
    for key, value in config.items():
        whole = not isinstance(value, dict) or "class_path" in value or key == "backbone"
        found |= {f"{above}{key}"} if whole else leaves(value, f"{above}{key}.")
    return found


OVERLAYS = {"obd_sd_cub": "obd_sd_ablations", "cmd_cub": "cmd_ablations", "mls_coco": "mls_ablations"}
PAIRS = 12  # of each experiment; every file is read anew


@pytest.mark.parametrize("base", OVERLAYS)
def test_overlays_of_an_experiment_that_do_not_overlap_are_applied_in_any_order(base):
    names = sorted(f"{OVERLAYS[base]}/{path.stem}" for path in find(base).parent.glob(f"{OVERLAYS[base]}/*.yaml"))
    given = {name: leaves(compose([name])) - {"run.paper"} for name in names}
    pairs = [pair for pair in itertools.combinations(names, 2) if apart(*(given[name] for name in pair))]
    assert pairs, "no two overlays of this experiment can be combined"
    for one, other in pairs[:: max(1, len(pairs) // PAIRS)]:
        configs = [compose([base, *order]) for order in ((one, other), (other, one))]
        for config in configs:
            config.get("run", {}).pop("paper", None)
        assert configs[0] == configs[1], (one, other)


def apart(one: set[str], other: set[str]) -> bool:
    """Whether no option of one is, or is above or below, an option of the other."""
    return not any(f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.") for a in one for b in other)


def test_an_unknown_section_is_refused_wherever_it_stands(folder):
    for parts in itertools.permutations([("model.tau", 0.3, "dotted"), ("modle.tau", 0.3, "dotted")]):
        with pytest.raises(UserError, match="unknown section 'modle'"):
            composed(list(parts), folder)
