"""The registers of recipes: every number of a paper's recipe beside the released code's and ours.

``tests/golden/recipes/<paper>.csv`` holds the rows, ``test_recipes.py`` compares their ``ours`` with the experiments as
``fgssl fit --config A --config B --print_config`` resolves them, and this module writes what differs to
``docs/deviations.md``::

    python -m tests.recipes
"""

import contextlib
import csv
import io
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser

from fgssl.cli.compose import _Loader as YamlLoader
from fgssl.cli.defaults import set_normalisation
from fgssl.cli.main import main
from fgssl.data.datamodule import DataModule
from fgssl.errors import UserError, did_you_mean

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
REGISTERS = Path(__file__).parent / "golden" / "recipes"
DEVIATIONS = ROOT / "docs" / "deviations.md"
PAPERS = {
    "arcface": "ArcFace (Deng et al., CVPR 2019; recipe of Roth et al., ICML 2020)",
    "barlow_twins": "Barlow Twins (Zbontar et al., ICML 2021)",
    "byol": "BYOL (Grill et al., NeurIPS 2020)",
    "cmd": "CMD (Bi et al., 2024)",
    "contrastive_crop": "ContrastiveCrop (Peng et al., CVPR 2022)",
    "cross_entropy": "Cross-entropy (Boudiaf et al., ECCV 2020)",
    "densecl": "DenseCL (Wang et al., CVPR 2021)",
    "flsl": "FLSL (Su et al., NeurIPS 2023)",
    "lcr": "LCR (Shu et al., CVPR 2023)",
    "lewel": "LEWEL (Huang et al., CVPR 2022)",
    "mae": "MAE (He et al., CVPR 2022)",
    "maskcon": "MaskCon (Feng & Patras, CVPR 2023)",
    "mls": "MLS (Zhu et al., ICCV 2023)",
    "obd_sd": "OBD-SD (Zeng et al., 2022)",
    "proxy_anchor": "ProxyAnchor (Kim et al., CVPR 2020)",
    "proxy_nca_pp": "ProxyNCA++ (Teh et al., ECCV 2020)",
    "simclr": "SimCLR (Chen et al., ICML 2020)",
    "simsiam": "SimSiam (Chen & He, CVPR 2021)",
    "soft_triple": "SoftTriple (Qian et al., ICCV 2019)",
    "swav": "SwAV (Caron et al., NeurIPS 2020)",
    "vicreg": "VICReg (Bardes, Ponce & LeCun, ICLR 2022)",
}
COLUMNS = ["experiment", "option", "paper", "paper_place", "code", "code_place", "ours", "reason"]


class Row(NamedTuple):
    """One row of a register; ``where`` names its file and line."""

    where: str
    experiment: str
    option: str
    paper: str
    paper_place: str
    code: str
    code_place: str
    ours: str
    reason: str

    @property
    def deviates(self) -> bool:
        """Whether paper, code and ours are not all equal, of those that are stated."""
        return any(stated and not equal(read(stated), read(self.ours)) for stated in (self.paper, self.code))


# ---- registers ------------------------------------------------------------------------------------------------------


def read_register(path: Path) -> list[Row]:
    """The rows of one register.

    Raises:
        UserError: the columns are not those of a register, or a row has a cell too many or too few.
    """
    with path.open(newline="") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        if header != COLUMNS:
            raise UserError(f"{path.name}: the first line must be {','.join(COLUMNS)}")
        rows = []
        for cells in lines:
            where = f"{path.name}:{lines.line_num}"
            if len(cells) != len(COLUMNS):
                raise UserError(f"{where}: {len(cells)} cells, not {len(COLUMNS)}. Quote a cell that holds a comma.")
            rows.append(Row(where, *(cell.strip() for cell in cells)))
    return rows


def faults(rows: list[Row]) -> list[str]:
    """What is wrong with the rows, each fault named by file and line."""
    found, seen = [], {}
    for row in rows:
        key = (row.experiment, row.option)
        if key in seen:
            found.append(f"{row.where}: {row.experiment}, {row.option} stands in {seen[key]} already")
        seen[key] = row.where
        try:
            found += [f"{row.where}: {fault}" for fault in _faults(row)]
        except UserError as fault:
            found.append(f"{row.where}: {fault}")
    return found


def _faults(row: Row) -> list[str]:
    found = []
    actual = lookup(row.experiment, row.option)
    if not equal(read(row.ours), actual):
        found.append(
            f"{row.experiment} resolves {row.option} to {shown(actual)}, the register has {row.ours or 'nothing'}"
        )
    if row.deviates and not row.reason:
        found.append(f"{row.option}: paper, code and ours are not all equal; state the reason")
    if not row.paper and not row.code:
        found.append(f"{row.option}: neither the paper's value nor the code's is stated")
    for name, value, place in (("paper", row.paper, row.paper_place), ("code", row.code, row.code_place)):
        if value and not place:
            found.append(f"{row.option}: {name}_place is empty")
    return found


# ---- experiments ----------------------------------------------------------------------------------------------------


@cache
def resolve(experiment: str) -> dict[str, Any]:
    """The whole configuration of ``maskcon_cars``, or of ``obd_sd_cub+obd_sd_ablations/table3_psd``.

    Raises:
        UserError: there is no such file, or the files do not parse.
    """
    flags = []
    for name in experiment.split("+"):
        path = EXPERIMENTS / f"{name}.yaml"
        if not path.is_file():
            known = [str(p.relative_to(EXPERIMENTS).with_suffix("")) for p in EXPERIMENTS.rglob("*.yaml")]
            raise UserError(f"no experiments/{name}.yaml.{did_you_mean(name, known)}")
        flags += ["--config", str(path)]
    printed, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        main(["fit", *flags, "--print_config"])
    if not printed.getvalue():
        raise UserError(f"{experiment}: {said.getvalue().strip()}")
    config = yaml.load(printed.getvalue(), YamlLoader)
    set_normalisation(config["data"], config["model"])
    return config


@cache
def _data(experiment: str) -> DataModule:
    """The data module of an experiment, built as the command line builds it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DataModule, "data")
    try:
        parsed = parser.parse_object({"data": resolve(experiment)["data"]})
    except Exception as fault:  # detectors and segmenters have other data modules
        raise UserError(f"{experiment} has no views of its own: name the options themselves ({fault})") from fault
    return parser.instantiate_classes(parsed).data


def lookup(experiment: str, option: str) -> Any:
    """The resolved value of a dotted option, of ``views.<n>.<attribute>`` or of ``eval_view.<attribute>``.

    Raises:
        UserError: there is no such option; the message lists what there is.
    """
    place, *keys = option.split(".")
    if place == "views":
        crops, number = _data(experiment).views.crops, keys[0] if keys else ""
        if not number.isdigit() or int(number) >= len(crops):
            raise UserError(f"{option}: {experiment} has views.0 to views.{len(crops) - 1}")
        return _attribute(crops[int(number)], keys[1:], option)
    if place == "eval_view":
        view = _data(experiment).eval_view
        return _attribute(view if hasattr(view, keys[0]) else view.crops[0], keys, option)
    value: Any = resolve(experiment)
    for key in option.split("."):
        value = value.get("init_args", value) if isinstance(value, dict) and "class_path" in value else value
        if not isinstance(value, dict) or key not in value:
            known = ", ".join(value) if isinstance(value, dict) else "nothing"
            raise UserError(f"{experiment} has no option {option}: at '{key}' it has {known}")
        value = value[key]
    return value


def _attribute(value: Any, names: list[str], option: str) -> Any:
    for name in names:
        if not hasattr(value, name):
            raise UserError(f"no {option}: at '{name}' there is {', '.join(vars(value))}")
        value = getattr(value, name)
    return value


# ---- values ---------------------------------------------------------------------------------------------------------


def read(text: str) -> Any:
    """A cell as YAML (``0.1``, ``[0.2, 1.0]``, ``null``); text that is no YAML as it stands."""
    try:
        return yaml.load(text, YamlLoader) if text else ""
    except yaml.YAMLError:
        return text


def shown(value: Any) -> str:
    """A value as one line of YAML."""
    return yaml.safe_dump(_plain(value), default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def _plain(value: Any) -> Any:
    """Classes by their short names, tuples as lists."""
    if isinstance(value, dict) and "class_path" in value:
        name, arguments = str(value["class_path"]).rsplit(".", 1)[-1], _plain(value.get("init_args") or {})
        return {name: arguments} if arguments else name
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def equal(one: Any, other: Any) -> bool:
    """Whether two values are the same: numbers however they are written, a class by its short name."""
    if isinstance(other, dict) and "class_path" in other and isinstance(one, str):
        return one == str(other["class_path"]).rsplit(".", 1)[-1]
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-9)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        one, other = _plain(one), _plain(other)
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


# ---- the page of deviations -----------------------------------------------------------------------------------------

HEAD = """\
# Deviations

What is not as a paper or its released code has it, and why: the rows of `tests/golden/recipes/` in which the paper, the
code and ours are not all equal. Written by `python -m tests.recipes`; the test suite compares every number of the
registers with what `fgssl fit --config experiments/<experiment>.yaml --print_config` gives. `-`: not stated.
"""


def page(registers: list[Path]) -> str:
    """The page of deviations in Markdown, one table a paper."""
    return "\n".join([HEAD, *(_section(path) for path in registers)])


def _section(path: Path) -> str:
    rows = read_register(path)
    every = list(dict.fromkeys(row.experiment for row in rows))
    alike: dict[tuple, list[str]] = {}
    for row in rows:
        if row.deviates:
            alike.setdefault(row[2:], []).append(row.experiment)
    lines = [f"## {PAPERS[path.stem]}", "", f"{len(rows)} rows, {len(every)} experiments.", ""]
    lines += ["| experiments | option | paper | released code | ours | reason |", "|---|---|---|---|---|---|"]
    for (option, paper, paper_place, code, code_place, ours, reason), experiments in alike.items():
        named = "all" if len(experiments) == len(every) > 1 else ", ".join(f"`{name}`" for name in experiments)
        cells = [named, f"`{option}`", _stated(paper, paper_place), _stated(code, code_place), ours, reason]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _stated(value: str, place: str) -> str:
    return f"{value} ({place})" if value else "-"


def registers() -> list[Path]:
    return sorted(REGISTERS.glob("*.csv"))


if __name__ == "__main__":
    DEVIATIONS.parent.mkdir(exist_ok=True)
    DEVIATIONS.write_text(page(registers()))
    print(f"Wrote {DEVIATIONS.relative_to(ROOT)}.")
