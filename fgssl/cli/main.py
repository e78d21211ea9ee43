"""The command: ``fgssl fit|validate|test|predict``, and the commands that have a parser of their own (``OWN``).

``main`` answers help and finds mistakes before anything heavy is imported; ``application.py`` does the rest.
"""

import importlib
import os
import sys
import tempfile
from pathlib import Path

import yaml

from fgssl.cli.compose import apply_flags, class_of, compose, split_config_files
from fgssl.errors import UserError, did_you_mean

COMMANDS = {
    "fit": "train a method; ends with a test of the last weights",
    "validate": "evaluate on the validation rows (data.protocol.val_fraction)",
    "test": "evaluate on the test rows; without --ckpt_path the untrained network",
    "predict": "write the embeddings of the test rows to embeddings.npz",
    "data": "list the data sets, or check one on disk (fgssl data --help)",
    "compare": "tables and pictures from run folders, over the seeds, beside the papers' numbers",
    "embed": "write embeddings, labels and paths, of a checkpoint or a public network; evaluate it",
    "probe": "linear probe of a checkpoint, a public or an untrained network: top-1, top-5",
    "search": "nearest neighbours of given images in an embedded folder",
    "davis": "video object segmentation by label propagation (DAVIS 2017), of a checkpoint or a public network",
    "maps": "what a trained network sees where, drawn over given images",
    "export": "a trained network as a timm model with a card, by torch.export and as ONNX",
    "sweep": "fit over a grid of options, finished cells skipped; a heat map",
}
# Commands beside Lightning's four: each is a file of that name in fgssl/commands/ with a ``main(arguments)``.
OWN = ("data", "compare", "embed", "probe", "search", "davis", "maps", "export", "sweep")

HELP = """\
usage: fgssl <command> [--config FILE ...] [--ckpt_path FILE] [--section.option VALUE ...]

Fine-grained and self-supervised visual learning: published methods, one evaluation.

commands:
{commands}

first steps:
  fgssl fit --config experiments/maskcon_digits.yaml       train on the digits that ship with scikit-learn
  fgssl fit --config FILE --model.tau 0.05                 override a number
  fgssl fit --config FILE --print_config                   print the whole resolved configuration
  fgssl fit --config FILE --ckpt_path RUN_FOLDER           resume from a run's last checkpoint
  fgssl compare runs/maskcon_digits --plots runs/plots     tables and pictures of the runs
  fgssl fit --help                                         every option of a command
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status (0, 1: a fault was found, 2: the user's mistake)."""
    argv = sys.argv[1:] if argv is None else argv
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # classes of the user's own package, named by a configuration
    try:
        return _dispatch(argv)
    except UserError as mistake:
        if os.environ.get("FGSSL_TRACEBACK"):
            raise
        print(f"fgssl: {mistake}", file=sys.stderr)
        return 2


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        commands = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
        print(HELP.format(commands=commands))
        return 0
    if argv[0] == "--version":
        from fgssl import __version__

        print(f"fgssl {__version__}")
        return 0
    command, *arguments = argv
    if command not in COMMANDS:
        raise UserError(f"unknown command '{command}'.{did_you_mean(command, COMMANDS)} See fgssl --help.")
    if command in OWN:
        return importlib.import_module(f"fgssl.commands.{command}").main(arguments)
    return _run(command, arguments)


def _run(command: str, arguments: list[str]) -> int:
    files, flags = split_config_files(arguments)
    return start(command, compose(files), flags, Path(files[-1]).stem if files else "fgssl")


def start(command: str, config: dict, flags: list[str], experiment: str, kind: type | None = None) -> int:
    """Check the data and run one of Lightning's commands.

    Args:
        command: fit, validate, test or predict.
        config: the composed configuration.
        flags: the command line's, which win.
        experiment: name of the folder above the run's.
        kind: a subclass of ``Application`` that does something else with what is built.
    """
    former = config.get("model")
    config, flags = apply_flags(config, flags)
    if not any(asks_for_help(flag.split("=")[0]) for flag in flags):
        check_data(config)
    from fgssl.cli.application import Application, run  # torch and Lightning take seconds to import
    from fgssl.cli.defaults import fill_in, method_of

    method = method_of(config)
    if kind is not None and method is not None and not method.embeds:
        raise UserError(
            f"{method.__name__} gives no embeddings: take the checkpoint it started from (model.init_from)."
        )
    config = fill_in(config, method, former)
    with tempfile.TemporaryDirectory() as folder:
        composed = Path(folder) / "composed.yaml"
        composed.write_text(yaml.safe_dump(config, sort_keys=False))
        first = ["--config", str(composed)] if config else []  # flags come after the files, so they win
        return run([command, *first, *flags], experiment, kind or Application, method)


def asks_for_help(flag: str) -> bool:
    """``--help``, ``--model.help``, ``--print_config``: nothing is run, so no data set is needed."""
    return flag in ("-h", "--help", "--print_config") or (flag.startswith("--") and flag.endswith(".help"))


def check_data(config: dict) -> None:
    """Say within a second that a data set is not there, or that its name is misspelt."""
    from fgssl.data.datasets import ALL

    name, options = class_of((config.get("data") or {}).get("dataset"))
    if name is None:
        raise UserError("no data set is named: give --config experiments/<method>_<data>.yaml, or --data.dataset NAME.")
    known = {cls.__name__: cls for cls in ALL.values()}
    if "." in name and not name.startswith("fgssl."):
        return  # a data set of the user's own package, which the parser imports
    name = name.rsplit(".", 1)[-1]
    if name not in known:
        hint = did_you_mean(name, known)
        raise UserError(f"data.dataset: unknown data set '{name}'.{hint} Known: {', '.join(known)}.")
    try:
        dataset = known[name](**options)
    except TypeError:
        return  # a wrong option: the parser names it better
    dataset.check_files()


if __name__ == "__main__":
    sys.exit(main())
