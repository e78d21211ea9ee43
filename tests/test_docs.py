"""The documentation's pages on methods: options with their defaults, and experiments that exist."""

import inspect
import re
from pathlib import Path

import pytest
import yaml

import fgssl
from fgssl.methods import (
    BYOL,
    CMD,
    FLSL,
    LCR,
    LEWEL,
    MAE,
    MLS,
    OBDSD,
    BarlowTwins,
    DenseCL,
    MaskCon,
    MetricLearning,
    SimCLR,
    SimSiam,
    SwAV,
    VICReg,
)

ROOT = Path(__file__).parents[1]
PAGES = {
    "barlow_twins": BarlowTwins,
    "byol": BYOL,
    "cmd": CMD,
    "densecl": DenseCL,
    "flsl": FLSL,
    "lcr": LCR,
    "lewel": LEWEL,
    "mae": MAE,
    "maskcon": MaskCon,
    "metric_learning": MetricLearning,
    "mls": MLS,
    "obd_sd": OBDSD,
    "simclr": SimCLR,
    "simsiam": SimSiam,
    "swav": SwAV,
    "vicreg": VICReg,
}
OPTION = re.compile(r"^\| (`model\.[^|]+) \| ([^|]+) \|", re.M)  # first two columns of a row of the options table
EXPERIMENT = "starts|rivals|maskcon|obd_sd|cmd|dino|esvit|mocov2|flsl|mls|detect|segment|finetune|table|fig|sweeps"
PATHS = ("", "cmd_ablations/", "maskcon_baselines/", "mls_ablations/", "obd_sd_ablations/", "flsl_ablations/")


def page_of(name: str) -> str:
    return (ROOT / "docs" / "methods" / f"{name}.md").read_text()


def default_of(method: type, option: str):
    """Default of ``model.<option>``, where the option may be a field of a settings class."""
    first, *fields = option.split(".")
    classes = [cls for cls in method.__mro__ if first in inspect.signature(cls.__init__).parameters]
    assert classes, f"{method.__name__} has no option {option}"
    value = inspect.signature(classes[0].__init__).parameters[first].default
    for field in fields:
        value = getattr(value, field)
    return getattr(value, "class_path", value)


def options_of(name: str) -> list[tuple[str, str]]:
    """(option, default) of each row; a row of several options has as many defaults or one for all."""
    pairs = []
    for names, defaults in OPTION.findall(page_of(name)):
        options = [option.removeprefix("model.") for option in re.findall(r"`([^`]+)`", names)]
        values = [value.strip(" `") for value in defaults.split(",")]
        pairs += list(zip(options, values * (len(options) if len(values) == 1 else 1), strict=True))
    return pairs


@pytest.mark.parametrize("name", PAGES)
def test_page_of_a_method_states_the_defaults_of_its_options(name):
    pairs = options_of(name)
    assert len(pairs) >= 5
    for option, stated in pairs:
        assert yaml.safe_load(stated) == default_of(PAGES[name], option), f"docs/methods/{name}.md: {option}"


@pytest.mark.parametrize("name", PAGES)
def test_experiments_named_on_the_page_of_a_method_exist(name):
    tables = page_of(name).split("## Tables")[1]
    assert tables
    for named in re.findall(r"`([a-z0-9_*./]+)`", tables):
        stem = named.removeprefix("experiments/").removesuffix(".yaml")
        if not re.match(EXPERIMENT, stem):
            continue
        where = [f"{folder}{stem}" for folder in PATHS]
        found = [file for path in where for file in (ROOT / "experiments").glob(f"{path}*".replace("**", "*"))]
        assert found, f"docs/methods/{name}.md names {named}"


def test_every_method_of_the_package_has_a_page():
    methods = {name for name, room in fgssl._PUBLIC.items() if room == "fgssl.methods"}
    pages = "".join(map(page_of, PAGES))
    assert {cls.__name__ for cls in PAGES.values()} <= methods
    assert {name for name in methods if f"`--model {name}`" in pages} == methods
    site = (ROOT / "mkdocs.yml").read_text()
    assert all(f"methods/{name}.md" in site for name in PAGES)
