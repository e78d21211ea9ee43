"""The files that ``fgssl sweep`` reads, and the commands of their cells."""

import itertools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgssl.cli.compose import read_yaml
from fgssl.errors import UserError
from fgssl.report.metric_names import lower_is_better

RUN = "${run}"  # the run folder of the fit, in a command that follows it
FOLLOWING = ("fit", "probe", "embed")  # commands that may follow a fit; each takes --run.resume
SEED = "seed_everything"  # not an axis of the heat map, which shows means over seeds


@dataclass(frozen=True)
class Step:
    """A command that follows each fit of a sweep.

    Attributes:
        name: its name in the file; a step of several seeds is one of them a seed.
        arguments: of ``fgssl``, with ``RUN`` where the run folder of the fit stands.
        shows: metric of its picture, or None.
    """

    name: str
    arguments: list[str]
    shows: str | None


@dataclass(frozen=True)
class Sweep:
    """A grid of runs.

    Attributes:
        name: name of the sweep file.
        fit: arguments of ``fgssl fit`` for all cells.
        axes: varied options and their values.
        metric: metric of table and heat map. A validation metric (``val/...``) marks the best cell. Any other is
            of the test part, which chooses nothing: the cells are shown as a paper's table shows them.
        then: what follows each fit, by the end of its run folder's name.
    """

    name: str
    fit: list[str]
    axes: dict[str, list[Any]]
    metric: str
    then: dict[str, Step] = field(default_factory=dict)

    def cells(self) -> list[dict[str, Any]]:
        """All combinations of values."""
        return [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values())]


def read_sweep(path: Path) -> Sweep:
    """Read a W&B sweep file with method grid and command ``fgssl fit``.

    Raises:
        UserError: the file has another form.
    """
    content = read_yaml(path)
    parameters = content.get("parameters") if isinstance(content, dict) else None
    if not isinstance(parameters, dict) or not parameters:
        raise UserError(f"{path}: 'parameters' is missing: a mapping of options to {{values: [...]}}.")
    if content.get("method") != "grid":
        raise UserError(
            f"{path}: method is {content.get('method')}; fgssl sweep runs grid only (W&B runs all methods)."
        )
    line = content.get("command") or []
    told = [str(word) for word in line] if isinstance(line, list) else []
    if told[:2] != ["fgssl", "fit"] or told[-1] != "${args}":
        raise UserError(f"{path}: command is {line}; it must be [fgssl, fit, ..., '${{args}}'].")
    axes = {}
    for option, spec in parameters.items():
        if not isinstance(spec, dict) or not {"value", "values"} & spec.keys():
            raise UserError(f"{path}: parameters.{option} has neither 'value' nor 'values'.")
        axes[option] = spec["values"] if "values" in spec else [spec["value"]]
        if not isinstance(axes[option], list) or not axes[option]:
            raise UserError(
                f"{path}: parameters.{option}.values is {axes[option]}; it must be a list of one value or more."
            )
    fit = told[2:-1]
    if "--logger" in fit:  # for W&B's agent; without it each cell would be an offline W&B run
        place = fit.index("--logger")
        del fit[place : place + 2]
    then: dict[str, Step] = {}
    following = content.get("then") or {}
    if not isinstance(following, dict):
        raise UserError(f"{path}: then is {following}; it must be a mapping of names to {{command: [...]}}.")
    for name, step in following.items():
        then |= read_steps(path, name, step)
    chosen = content.get("metric") or {}
    if not isinstance(chosen, dict):
        raise UserError(f"{path}: metric is {chosen}; it must be {{name: {chosen}}}.")
    metric = chosen.get("name", "test/recall@1")
    goal = "minimize" if lower_is_better(metric) else "maximize"
    if chosen.get("goal", goal) != goal:
        raise UserError(f"{path}: metric.goal is {chosen['goal']}; of {metric} it must be {goal}.")
    return Sweep(path.stem, fit, axes, metric, then)


def read_steps(path: Path, name: str, step: Any) -> dict[str, Step]:
    """Read an entry of ``then``: one step, or one for each of its seeds.

    Raises:
        UserError: it has another form.
    """
    told = [str(word) for word in step.get("command") or []] if isinstance(step, dict) else []
    if told[:1] != ["fgssl"] or told[1:2] == [] or told[1] not in FOLLOWING or not any(RUN in word for word in told):
        raise UserError(
            f"{path}: then.{name}.command is {told}; it must be [fgssl, {' or '.join(FOLLOWING)}, ...] and name the "
            f"run folder of the fit, '{RUN}'."
        )
    if "seeds" not in step:
        return {name: Step(name, told[1:], step.get("shows"))}
    if not isinstance(step["seeds"], int) or step["seeds"] < 1:
        raise UserError(f"{path}: then.{name}.seeds is {step['seeds']}; it must be a number of seeds, 1 or more.")
    return {
        f"{name}_seed{seed}": Step(name, [*told[1:], f"--{SEED}", str(seed)], step.get("shows"))
        for seed in range(step["seeds"])
    }


def name_of(cell: Mapping[str, Any]) -> str:
    """Folder name of a cell, such as ``weight0.5_tau0.1``; of an experiment file its name."""
    words = [
        experiment_name(value) if option == "config" else f"{option.rsplit('.', 1)[-1]}{value}"
        for option, value in cell.items()
        if not option.startswith("run.")
    ]
    return "_".join(words).replace("/", "-").replace(" ", "")


def experiment_name(file: Any) -> str:
    """Name of an experiment file without its folder: ``lambda_0.01`` for ``mine/lambda_0.01`` with or without .yaml."""
    return Path(str(file)).name.removesuffix(".yaml").removesuffix(".yml")


@dataclass(frozen=True)
class Command:
    """What a cell runs.

    Attributes:
        arguments: of ``fgssl``.
        follows: name of the cell of the fit that must have finished before; None for a fit of the grid.
    """

    arguments: list[str]
    follows: str | None = None


def commands_of(
    sweep: Sweep, folder: Path, flags: Sequence[str], later_flags: Sequence[str] = ()
) -> dict[str, Command]:
    """The command of each cell by the name of its run folder: the fits of the grid, then what follows them.

    Args:
        sweep: the sweep.
        folder: folder of its runs.
        flags: further options of each fit of the grid.
        later_flags: further options of what follows a fit.

    Raises:
        UserError: two cells have the same name, or an option names another run folder.
    """
    taken = [flag for flag in (*flags, *later_flags) if flag.partition("=")[0] in placed(folder, "")]
    if taken:
        raise UserError(f"{taken[0]}: the sweep sets it. Cells are in the folder --name NAME of --runs FOLDER.")
    fits = [(name_of(cell), Command(command(sweep, folder, cell, flags))) for cell in sweep.cells()]
    later = []
    for (fit, _), (name, step) in itertools.product(fits, sweep.then.items()):
        told = [word.replace(RUN, str(folder / fit)) for word in step.arguments]
        own = [*told, *placed(folder, f"{fit}_{name}"), *later_flags]
        later.append((f"{fit}_{name}", Command(own, follows=fit)))
    commands: dict[str, Command] = {}
    for name, each in fits + later:
        if name in commands:
            raise UserError(
                f"two cells of the sweep have the same name '{name}', which is that of their run folder:\n"
                f"  fgssl {shlex.join(commands[name].arguments)}\n  fgssl {shlex.join(each.arguments)}\n"
                "Rename an experiment file or a step of 'then', or remove a value that is given twice."
            )
        commands[name] = each
    return commands


def command(sweep: Sweep, folder: Path, cell: Mapping[str, Any], flags: Sequence[str]) -> list[str]:
    """Arguments of ``fgssl`` for a fit of the grid."""
    varied = [f"--{option}={'null' if value is None else value}" for option, value in cell.items()]
    return ["fit", *sweep.fit, *placed(folder, name_of(cell)), *varied, *flags]


def placed(folder: Path, name: str) -> list[str]:
    """Options for the run folder of a cell, whose earlier start is resumed."""
    where = ["--run.root", str(folder.parent), "--run.experiment", folder.name, "--run.name", name]
    return [*where, "--run.resume", "true"]
