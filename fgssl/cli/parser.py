"""Parser of fit, validate, test and predict: Lightning's, with one-line errors that suggest the nearest name."""

import argparse
import dataclasses
import difflib
import re
from collections.abc import Iterable
from typing import Any

from jsonargparse import DefaultHelpFormatter
from jsonargparse._actions import _ActionConfigLoad
from jsonargparse._common import parser_context
from jsonargparse._parameter_resolvers import get_signature_parameters
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser

from fgssl.cli.help import GROUPS, NOTES, page
from fgssl.cli.shipped import experiments
from fgssl.data.datasets import ALL, DataSet
from fgssl.data.views import Views
from fgssl.errors import UserError, did_you_mean
from fgssl.methods.base import Method
from fgssl.methods.registry import known_methods, subclasses


class ExperimentParser(LightningArgumentParser):
    """Lightning's parser with one-line errors; options cannot be abbreviated.

    Attributes:
        method: class of the model section, whose options ``--model.*`` are; None: no model is named.
        suggests: whether errors suggest the nearest name: true for the parser of a command, false for the parsers
            that jsonargparse creates inside it for the options of one class.
        of: the class whose options such an inner parser reads.
    """

    method: type[Method] | None = None
    suggests = False
    of: type | None = None

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **{"formatter_class": Formatter, **options, "add_help": False})
        self.add_argument("-h", "--help", action=GroupHelp, help="Show one page, or all options of a group, and exit.")
        self.allow_abbrev = False

    def add_class_arguments(self, theclass: type, nested_key: str | None = None, *args: Any, **options: Any) -> Any:
        self.of = None if nested_key else theclass
        return super().add_class_arguments(theclass, nested_key, *args, **options)

    def format_help(self, *args: Any) -> str:
        if getattr(self, "_inner_parser", False):  # of --model.help=CMD: its usage would repeat all options
            self.usage = argparse.SUPPRESS
        return super().format_help(*args)

    def format_group(self, group: str) -> str:
        """The options of one of ``GROUPS`` with their help."""
        shown = [action for action in self._actions if group_of(action) == group and is_documented(action)]
        formatter = Formatter(prog=self.prog, width=WIDTH)
        formatter.start_section(f"{group} ({GROUPS[group]})")
        with parser_context(parent_parser=self):
            formatter.add_arguments(shown)
            formatter.end_section()
            text = formatter.format_help()
        return "\n".join([text, *([NOTES[group]] if group in NOTES else [])])

    def parse_args(self, *args: Any, **options: Any) -> Any:
        try:
            return super().parse_args(*args, **options)
        except UserError as fault:  # of a parser inside this one, which does not suggest
            raise UserError(suggest(str(fault), self) if self.suggests else str(fault)) from None

    def error(self, message: str, ex: Exception | None = None):
        text = unknown_in_class(message, self.of, self._actions) or clean(placed(message, self.of))
        raise UserError(suggest(text, self) if self.suggests else text)


WIDTH = 80  # of the help, in columns
# Instead of the libraries' texts, which describe what fgssl replaces.
OUR_HELP = {
    "config": "Experiment: a file, or a name (fgssl list experiments). May be repeated; later ones win.",
    "ckpt_path": "Run folder or .ckpt file: fit resumes from it, the others load its weights.",
}


class Formatter(DefaultHelpFormatter):
    """Help of options with types and defaults; without the import paths of all classes that could be given."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **{**options, "width": WIDTH})

    def _expand_help(self, action: argparse.Action) -> str:
        text = OUR_HELP.get(action.dest) or super()._expand_help(action)
        text = re.sub(r", known subclasses: [^)]*", "", text)
        return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text.replace("``", ""))


class GroupHelp(argparse._HelpAction):
    """``--help`` prints one page, ``--help GROUP`` the options of a group."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.nargs = "?"

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        command = parser.prog.split()[-1]
        print(parser.format_group(values) if values else page(command))
        parser.exit()


def group_of(action: argparse.Action) -> str:
    """The group of ``--help GROUP`` that an option belongs to."""
    section, dot, _ = action.dest.partition(".")
    return section if section in GROUPS and (dot or section == "logger") else "command"


def is_documented(action: argparse.Action) -> bool:
    """Whether an option is shown: not the help of a class, nor a file for a section, nor what fgssl sets itself."""
    hidden = action.dest.endswith(".help") or action.dest in ("help", "model", "trainer.logger", "weights_only")
    return not hidden and not isinstance(action, _ActionConfigLoad)


# Prefixes of message lines that repeat the enclosing options of a nested option.
FRAMES = (
    "Does not validate", "Subtypes:", "Errors:", "Expected a <class 'NoneType'>", "Expected a path but", "Given",
    "Option",
)  # fmt: skip


def clean(message: str) -> str:
    """Message of the parser in one line: the option, the expected type and the given value."""
    found = re.search(r"Option '\S+' is not accepted by .*", str(message))
    if found and "Got value" not in str(message)[: found.start()]:
        return found[0]  # of the class that was named; what other classes lack is no help
    lines = [line.strip().removeprefix("- ") for line in str(message).splitlines()]
    given = next((line.removeprefix("Given value: ") for line in lines if line.startswith("Given value: ")), "")
    text = " ".join(dict.fromkeys(line for line in lines if line and not line.startswith(FRAMES)))
    for pattern, replacement in (
        (r'Parser key "([^"]+)":', r"\1:"),
        (r"<class '(\w+)'>", r"\1"),
        (r"typing\.Literal", "one of "),
        (r"Expected a dot import path string: (\S+)", r"unknown class '\1'."),
        (r"[. ]+Expected an? ", ", or "),  # the alternatives of a union, after the first
        (r": *, or ", ": expected "),
        (r": Expected an? ", ": expected "),
        (r"^([\w.]+): (?=\1\.)", ""),
    ):
        text = re.sub(pattern, replacement, text)
    is_value = given and len(given) <= 40 and "expected" in text and "Got value" not in text
    return f"{text}. Got value: {given}" if is_value else text


# Names that other programs have for our options.
OTHER_NAMES = {
    "epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "gpus": "trainer.devices",
    "nodes": "trainer.num_nodes",
    "seed": "seed_everything",
    "learning_rate": "model.optim.lr",
    "optimizer": "model.optim.name",
    "temperature": "model.tau",
    "batch": "data.batch_size",
    "bs": "data.batch_size",
    "workers": "data.num_workers",
    "image_size": "data.views.size",
    "img_size": "data.views.size",
    "checkpoint": "ckpt_path",
    "ckpt": "ckpt_path",
    "resume": "ckpt_path",
    "wandb": "logger wandb",
    "output": "run.root",
    "output_dir": "run.root",
    "arch": "model.backbone.name",
    "backbone": "model.backbone.name",
    "conf": "config",
    "method": "model",
}


def suggest(message: str, parser: ExperimentParser) -> str:
    """Append the nearest valid name to a message about an unknown class, choice or option."""
    if "Did you mean" in message or " is not accepted by " in message:  # said for an inner option
        return message
    if found := re.search(r"^(?:model: )?(?:--)?([\w.]+?)(?:\.help)?: .*?unknown class '([\w.]+)'", message):
        place, name = found.groups()
        choices = classes_at(place)
        ours = sorted(short for short, cls in choices.items() if not cls.__module__.startswith(LIGHTNINGS))
        every = f" Known: {', '.join(ours)}." if ours else ""
        return f"{place}: unknown class '{name}'." + did_you_mean(name.rpartition(".")[2], choices) + every
    if found := re.search(r"one of \[(.*?)\].*Got value: (\S+)$", message):
        return sentence(message) + did_you_mean(found[2], re.findall(r"'(.*?)'", found[1]))
    known = known_options(parser)
    if found := re.search(r"^([\w.]+): Unable to load config '(\S+)'", message):
        section, value = found.groups()
        hint = f" Did you mean '--{section}.name {value}'?" if f"{section}.name" in known else ""
        return f"--{section} takes a YAML file or a mapping, not '{value}'.{hint}"
    if found := re.search(r"^[Uu]nrecognized arguments: ([^-\s]\S*)", message):
        return sentence(message) + option_without_dashes(found[1], known)
    return sentence(message) + nearest_option(unknown_option(message), known)


def option_without_dashes(word: str, known: set[str]) -> str:
    """Hint for a word without dashes: an option such as ``model.tau=3``, or the name of an experiment."""
    if word.partition("=")[0] in known:
        return f" Did you mean '--{word}'?"
    near = did_you_mean(word.removesuffix(".yaml").removeprefix("experiments/"), experiments())
    return near.replace("mean '", "mean '--config ")


def sentence(message: str) -> str:
    """The message, ending with one full stop."""
    return message.rstrip(". ") + "."


LIGHTNINGS = ("lightning", "pytorch_lightning")


def classes_at(place: str) -> dict[str, type]:
    """Classes by short name that an option such as ``data.views`` accepts, Lightning's too."""
    accepted: dict[str, Iterable[type]] = {
        "model": known_methods().values(),
        "data.dataset": ALL.values(),
        "data.views": subclasses(Views),
        "trainer.callbacks": subclasses(Callback),
    }
    return {cls.__name__: cls for cls in accepted.get(place, ())}


def unknown_option(message: str) -> str | None:
    """The unknown option in a message, dotted (``model.optm.lr``), or None."""
    patterns = (
        r"^Group '(?P<group>[\w.]+)' does not accept option '(?P<option>[\w.]+)'",
        r"^Subcommand '\w+' does not accept option '(?P<option>[\w.]+)'",
        r"^(?:(?P<place>[\w.]+): )?[Uu]nrecognized arguments: --?(?P<option>[\w.-]+)",
    )
    for pattern in patterns:
        if found := re.search(pattern, message):
            parts = found.groupdict()
            return ".".join(part for part in (parts.get("place"), parts.get("group"), parts["option"]) if part)
    return None


# Where a class stands among the options, by its base class.
PLACES = ((Method, "model"), (DataSet, "data.dataset"), (Views, "data.views"), (Callback, "trainer.callbacks"))


def placed(message: str, cls: type | None) -> str:
    """Message on a value of an option of a class, with the dotted name of the option: ``data.views.size``."""
    place = next((place for base, place in PLACES if cls is not None and issubclass(cls, base)), None)
    return re.sub('^Parser key "', f'Parser key "{place}.', str(message)) if place else message


def unknown_in_class(message: str, cls: type | None, actions: list[argparse.Action]) -> str | None:
    """Message on an option that a class does not have; None for another message.

    Args:
        message: message of the parser of the class.
        cls: the class; None: the parser is of no class.
        actions: its options.
    """
    option = unknown_option(message) or (re.findall(r"^Option '(\S+)' is not accepted$", message) or [None])[0]
    if cls is None or option is None:
        return None
    place = next((f"--{place}." for base, place in PLACES if issubclass(cls, base)), "")
    known = [action.dest for action in actions if action.dest != "help" and not action.dest.endswith(".help")]
    section = option.rpartition(".")[0]  # optim of optim.lrr; empty: the option is none of a section
    inner = [name.removeprefix(f"{section}.") for name in known if name.startswith(f"{section}.")]
    listed = ", ".join(inner or [name for name in known if "." not in name])
    has = f" {place}{section} has {listed}." if inner else f" It has {listed}." if listed else " It has no options."
    hint = nearest_option(option, set(known), place) or has
    return f"Option '{place}{option}' is not accepted by {cls.__name__}.{hint}"


def nearest_option(option: str | None, known: set[str], place: str = "--") -> str:
    """``" Did you mean '--model.optim.lr'?"`` for an unknown option, or an empty string when none is near.

    Args:
        option: the unknown option, dotted.
        known: all options.
        place: what stands before them: ``--model.`` for the options of a method.
    """
    if option is None:
        return ""
    option = option.replace("-", "_")
    leaf = option.rpartition(".")[2]
    other = f"--{OTHER_NAMES.get(leaf, '')}"
    if other.startswith(place) and other.removeprefix(place).partition(" ")[0] in known:
        return f" Did you mean '{other}'?"
    same_leaf = [name for name in known if name.rpartition(".")[2] == leaf]
    begun = [name for name in known if name.startswith(option)]
    section = option.removesuffix(leaf)  # with its dot; empty: none
    of_section = [name for name in sorted(known) if name.startswith(section)]
    if same_leaf or begun:  # nothing is abbreviated, but it can be meant so: --trainer.max_ep
        near = difflib.get_close_matches(option, same_leaf or begun, n=1, cutoff=0.0)
    elif of_section:  # the section is right: its own options first, then those of the sections within it
        beside = {name.removeprefix(section): name for name in of_section}
        near = [beside[found] for found in difflib.get_close_matches(leaf, beside, n=1, cutoff=0.6)]
    else:
        near = difflib.get_close_matches(option, sorted(known), n=1, cutoff=0.75)
    if not near:
        leaves = {name.rpartition(".")[2]: name for name in of_section or sorted(known)}
        near = [leaves[found] for found in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.7)]
    return f" Did you mean '{place}{near[0]}'?" if near else ""


def known_options(parser: ExperimentParser) -> set[str]:
    """All options of the command, dotted, including those of the method, the views and the data sets."""
    inner = parser._subcommands_action.choices.values() if parser._subcommands_action else ()
    every = [action for each in (parser, *inner) for action in each._actions]
    options = {action.dest for action in every if action.dest not in ("help", "subcommand")}
    for section, classes in (("data.views", subclasses(Views)), ("data.dataset", ALL.values())):
        options |= {
            f"{section}.{parameter.name}" for cls in classes for parameter in get_signature_parameters(cls, None)
        }
    for parameter in get_signature_parameters(parser.method, None) if parser.method else ():
        options.add(f"model.{parameter.name}")
        if dataclasses.is_dataclass(parameter.default):
            options |= {f"model.{parameter.name}.{field.name}" for field in dataclasses.fields(parameter.default)}
    return options
