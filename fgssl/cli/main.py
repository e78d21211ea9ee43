"""Entry point ``fgssl``: fit, validate, test and predict, and the commands of ``fgssl/commands/``.

``main`` prints help and reports mistakes before torch is imported; ``application.py`` runs the first four commands.
"""

import importlib
import os
import signal
import sys
import tempfile
from pathlib import Path

import yaml

from fgssl.cli.compose import apply_flags, class_of, compose, split_config_files
from fgssl.cli.shipped import find
from fgssl.errors import UserError, did_you_mean

COMMANDS = {
    "fit": "train a method, then test its last weights",
    "validate": "evaluate on the validation rows (data.protocol.val_fraction)",
    "test": "evaluate on the test rows; without --ckpt_path the untrained network",
    "predict": "write the embeddings of the test rows to embeddings.npz",
    "list": "the methods, experiments, data sets and backbones, one line each",
    "init": "write a commented experiment of your own: method and data",
    "data": "list the data sets, or check one on disk (fgssl data --help)",
    "compare": "tables and plots of runs: mean and standard deviation over seeds, beside the papers' numbers",
    "report": "runs as pages for the browser, with a map of the embeddings, photographs and neighbours",
    "embed": "write embeddings, labels and paths of a checkpoint or a public network, and evaluate it",
    "probe": "linear probe of a checkpoint, a public or an untrained network: top-1 and top-5 accuracy",
    "search": "nearest neighbours of images among the embeddings of fgssl embed",
    "davis": "video object segmentation by label propagation (DAVIS 2017) with a checkpoint or a public network",
    "maps": "activations, GradCAM, attention or patch similarity of a network, drawn over images",
    "export": "write a trained network for timm, torch.export, ONNX or MoCo v2, with a model card",
    "sweep": "fit over a grid of options, finished cells are skipped; draws a heat map",
}
# Commands that are files in fgssl/commands/ with a function ``main(arguments)``.
OWN = ("list", "init", "data", "compare", "report", "embed", "probe", "search", "davis", "maps", "export", "sweep")

HELP = """\
usage: fgssl <command> [--config FILE ...] [--ckpt_path FILE] [--section.option VALUE ...]

Fine-grained and self-supervised visual learning: published methods, one evaluation.

commands:
{commands}

first steps:
  fgssl fit --config experiments/maskcon_digits.yaml       train on the digits that ship with scikit-learn
  fgssl fit --config FILE --model.tau 0.05                 override an option
  fgssl fit --config FILE --print_config                   print the whole resolved configuration
  fgssl fit --config FILE --ckpt_path RUN_FOLDER           resume from a run's last checkpoint
  fgssl compare runs/maskcon_digits --plots runs/plots     tables and plots of the runs
  fgssl fit --help                                         all options of a command
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 if a run or check failed, 2 for a mistake of the user."""
    argv = sys.argv[1:] if argv is None else argv
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for classes of the user's own package
    try:
        status = _dispatch(argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if not _reader_left():
            raise
        return 128 + signal.SIGPIPE
    except UserError as mistake:
        if os.environ.get("FGSSL_TRACEBACK"):
            raise
        print(f"fgssl: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fgssl: stopped by Ctrl-C.", file=sys.stderr)
        return 128 + signal.SIGINT


def _reader_left() -> bool:
    """Whether standard output is a pipe whose reader has ended, such as ``| head``; it is then written to nowhere."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


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
    run = value_of("--ckpt_path", flags)
    if run and not files:
        from fgssl.cli.saved import configuration_of_run

        config = configuration_of_run(command, run)
        return start(command, config, flags, config["run"]["experiment"])
    return start(command, compose(files), flags, find(files[-1]).stem if files else "fgssl")


def value_of(option: str, flags: list[str]) -> str | None:
    """Value of ``--option VALUE`` or ``--option=VALUE``; None if it is not given."""
    for place, flag in enumerate(flags):
        if flag == option:
            return next(iter(flags[place + 1 :]), None)
        if flag.startswith(f"{option}="):
            return flag.partition("=")[2]
    return None


def start(command: str, config: dict, flags: list[str], experiment: str, kind: type | None = None) -> int:
    """Check the data set and run fit, validate, test or predict; returns the exit status.

    Args:
        command: fit, validate, test or predict.
        config: composed configuration.
        flags: options of the command line, which override ``config``.
        experiment: name of the folder above the run folder, unless ``run.experiment`` is set.
        kind: subclass of ``Application`` to run.
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
            f"{method.__name__} has no embeddings. Use the checkpoint that it started from (model.init_from)."
        )
    config = fill_in(config, method, former)
    with tempfile.TemporaryDirectory() as folder:
        composed = Path(folder) / "composed.yaml"
        composed.write_text(yaml.safe_dump(config, sort_keys=False))
        first = ["--config", str(composed)] if config else []  # flags override the files
        return run([command, *first, *flags], experiment, kind or Application, method)


def asks_for_help(flag: str) -> bool:
    """Whether a flag only prints help or the configuration, which needs no data set."""
    return flag in ("-h", "--help", "--print_config") or (flag.startswith("--") and flag.endswith(".help"))


def check_data(config: dict) -> None:
    """Refuse a missing data set or an unknown name before torch is imported.

    Raises:
        UserError: no data set is named, its name is unknown, or its files are missing.
    """
    from fgssl.data.datasets import ALL

    name, options = class_of((config.get("data") or {}).get("dataset"))
    if name is None:
        raise UserError("no data set is named: give --config experiments/<method>_<data>.yaml, or --data.dataset NAME.")
    known = {cls.__name__: cls for cls in ALL.values()}
    if "." in name and not name.startswith("fgssl."):
        return  # of the user's own package: imported by the parser
    name = name.rsplit(".", 1)[-1]
    if name not in known:
        hint = did_you_mean(name, known)
        raise UserError(f"data.dataset: unknown data set '{name}'.{hint} Known: {', '.join(known)}.")
    try:
        dataset = known[name](**options)
    except TypeError:
        return  # a wrong option is reported by the parser
    dataset.check_files()


if __name__ == "__main__":
    sys.exit(main())
