"""Entry point ``fgssl``: fit, validate, test and predict, and the commands of ``fgssl/commands/``.

``main`` prints help and reports mistakes before torch is imported; ``application.py`` runs the first four commands.
"""

import errno
import importlib
import os
import select
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from fgssl.cli import help
from fgssl.cli.compose import apply_flags, class_of, compose, split_config_files
from fgssl.cli.help import COMMANDS, OWN
from fgssl.cli.shipped import experiments, find
from fgssl.errors import UserError, did_you_mean

# Names that other programs have for our commands.
OTHER_NAMES = {"train": "fit", "eval": "test", "evaluate": "test", "infer": "predict", "finetune": "fit"}

# What a folder or file of the user refuses: its permissions, a full disk, a file where a folder is needed.
DENIED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
)  # fmt: skip


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
        return _refused(mistake)
    except OSError as fault:
        if fault.errno not in DENIED:
            raise
        return _refused(fault, f"{fault.filename or 'a file could not be written'}: {fault.strerror}.")
    except KeyboardInterrupt:
        print("fgssl: stopped by Ctrl-C.", file=sys.stderr)
        return 128 + signal.SIGINT


def _refused(fault: Exception, message: str | None = None) -> int:
    """Print what is wrong in one line; returns the exit status."""
    if os.environ.get("FGSSL_TRACEBACK"):
        raise fault
    print(f"fgssl: {message or fault}", file=sys.stderr)
    return 2


def _reader_left() -> bool:
    """Whether standard output is a pipe whose reader has ended, such as ``| head``; it then leads to nowhere."""
    try:
        output = sys.stdout.fileno()
    except OSError:  # a stream of a test, say
        return False
    pipe = select.poll()
    pipe.register(output, 0)
    if not any(event & select.POLLERR for _, event in pipe.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help.top())
        return 0
    if argv[0].partition("=")[0] == "--print_completion":
        from fgssl.cli.completion import script

        print(script(argv[0].partition("=")[2] or (argv[1] if len(argv) > 1 else "")))
        return 0
    if argv[0] == "--version":
        from fgssl import __version__

        print(f"fgssl {__version__}")
        return 0
    command, *arguments = argv
    if command not in COMMANDS:
        other = OTHER_NAMES.get(command)
        hint = f" Did you mean '{other}'?" if other else did_you_mean(command, COMMANDS)
        raise UserError(f"unknown command '{command}'.{hint} See fgssl --help.")
    if command in OWN:
        return importlib.import_module(f"fgssl.commands.{command}").main(arguments)
    return _run(command, arguments)


def _run(command: str, arguments: list[str]) -> int:
    files, flags = split_config_files(arguments)
    if help.asked_group(flags) == "":
        print(help.page(command))
        return 0
    run = value_of("--ckpt_path", flags)
    if run and not files:
        from fgssl.cli.saved import configuration_of_run

        config = configuration_of_run(command, run)
        return start(command, config, flags, config["run"]["experiment"])
    if not files:
        refuse_misspelt(flags)
    return start(command, compose(files), flags, find(files[-1]).stem if files else "fgssl")


def refuse_misspelt(flags: list[str]) -> None:
    """Refuse what was meant to name an experiment or a run, where there is none.

    Raises:
        UserError: names ``--config`` or ``--ckpt_path``.
    """
    if flags and flags[0] in experiments():
        raise UserError(f"unknown argument '{flags[0]}'. Did you mean '--config {flags[0]}'?")
    for name in (flag.partition("=")[0] for flag in flags):
        hint = did_you_mean(name, ("--config", "--ckpt_path")) if name.startswith("--") and "." not in name else ""
        if hint and name not in ("--ckpt_path", "--print_config"):
            raise UserError(f"unknown option {name}.{hint}")


def value_of(option: str, flags: list[str]) -> str | None:
    """Value of ``--option VALUE`` or ``--option=VALUE``; None if it is not given."""
    for place, flag in enumerate(flags):
        if flag == option:
            return next(iter(flags[place + 1 :]), None)
        if flag.startswith(f"{option}="):
            return flag.partition("=")[2]
    return None


def start(
    command: str, config: dict, flags: list[str], experiment: str, kind: type | None = None, needs_data: bool = True
) -> int:
    """Check the data set and run fit, validate, test or predict; returns the exit status.

    Args:
        command: fit, validate, test or predict.
        config: composed configuration.
        flags: options of the command line, which override ``config``.
        experiment: name of the folder above the run folder, unless ``run.experiment`` is set.
        kind: subclass of ``Application`` to run.
        needs_data: refuse missing files of the data set. False: ``kind`` reads no data.
    """
    former = config
    config, flags = apply_flags(config, flags)
    if not any(asks_for_help(flag.split("=")[0]) for flag in flags):
        check_data(config, files=needs_data)
    flags = help_of_method(config, flags)
    from fgssl.cli.application import Application, run  # torch and Lightning take seconds to import
    from fgssl.cli.defaults import fill_in, method_of

    method = method_of(config)
    if kind is not None:
        check_embeds(method)
    config = fill_in(config, method, former)
    with tempfile.TemporaryDirectory() as folder:
        composed = Path(folder) / "composed.yaml"
        composed.write_text(yaml.safe_dump(config, sort_keys=False))
        first = ["--config", str(composed)] if config else []  # flags override the files
        return run([command, *first, *flags], experiment, kind or Application, method)


def check_embeds(method: Any) -> None:
    """Refuse a method class without embeddings, for the commands that need them; None: no method is named yet.

    Raises:
        UserError: the method embeds no images, such as a detector.
    """
    if method is not None and not method.embeds:
        raise UserError(
            f"{method.__name__} has no embeddings. Use the checkpoint that it started from (model.init_from)."
        )


def help_of_method(config: dict, flags: list[str]) -> list[str]:
    """Put the configured method into ``--help model`` and ``--model.help``.

    Raises:
        UserError: no method is named.
    """
    asked = [i for i, flag in enumerate(flags) if flag == "--model.help"]
    named_there = asked and flags[asked[0] + 1 : asked[0] + 2] and not flags[asked[0] + 1].startswith("-")
    if help.asked_group(flags) != "model" and (not asked or named_there):
        return flags
    name = class_of(config.get("model"))[0]
    if name is None:
        raise UserError(
            "the options of which method? Give --config NAME --help model, or --model.help=NAME, such as "
            "--model.help=MaskCon. fgssl list methods has the names."
        )
    return [f"--model.help={name}"]


def asks_for_help(flag: str) -> bool:
    """Whether a flag only prints help or the configuration, which needs no data set."""
    return flag in ("-h", "--help", "--print_config") or (flag.startswith("--") and flag.endswith(".help"))


def check_data(config: dict, files: bool = True) -> None:
    """Refuse a missing data set or an unknown name before torch is imported.

    Args:
        config: composed configuration.
        files: look for the files of the data set too.

    Raises:
        UserError: no data set is named, its name is unknown, or its files are missing.
    """
    from fgssl.data.datasets import ALL
    from fgssl.data.datasets.base import readable

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
    if files:
        with readable(dataset.name):
            dataset.check_files()


if __name__ == "__main__":
    sys.exit(main())
