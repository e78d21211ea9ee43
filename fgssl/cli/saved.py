"""Configurations of earlier runs: read for another command, and compared with the options of a run that goes on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fgssl.checkpoint import checkpoint_file
from fgssl.cli.compose import assign, compose
from fgssl.errors import UserError
from fgssl.report.runs import TRAINING, flatten
from fgssl.run import shown

OF_THE_FIT = ("run", "logger", "ckpt_path", "quiet", "trainer.devices", "trainer.num_nodes", "trainer.strategy")
# Options that decide which images a training step sees and how many steps there are.
OF_THE_ROWS = (
    "data.dataset", "data.protocol.", "data.images_per_class", "data.replacement",
    "trainer.limit_train_batches", "trainer.overfit_batches",
)  # fmt: skip
OF_THE_DISK = ("data.dataset.root",)  # the same images at another place


def configuration(ckpt_path: str | None, files: list[str]) -> dict[str, Any]:
    """Configuration of the files, or of the run of a checkpoint without the options in ``OF_THE_FIT``.

    Args:
        ckpt_path: checkpoint or run folder; None: no checkpoint.
        files: configuration files; empty: ``config.yaml`` of the run folder.

    Raises:
        UserError: there are no files, and the checkpoint is in no run folder.
    """
    if not files and ckpt_path:
        config = compose([_saved(ckpt_path)])
        for option in OF_THE_FIT:
            *parents, last = option.split(".")
            section = config
            for name in parents:
                section = section.get(name) or {}
            section.pop(last, None)
    else:
        config = compose(files)
    if ckpt_path:
        assign(config, "ckpt_path", str(Path(ckpt_path)))
    return config


def configuration_of_run(command: str, ckpt_path: str) -> dict[str, Any]:
    """Configuration of the run of a checkpoint, for fit, validate, test or predict without ``--config``.

    A fit resumes the run as it was started. The other commands write to a new folder beside the run.

    Raises:
        UserError: the checkpoint is in no run folder.
    """
    saved = _saved(ckpt_path)
    config = compose([saved]) if command == "fit" else configuration(ckpt_path, [])
    for option in ("ckpt_path", "quiet"):  # of a command, not of the run
        config.pop(option, None)
    folder = saved.parent.resolve()
    place = {"root": shown(folder.parent.parent), "experiment": folder.parent.name}
    own = {"name": folder.name, "resume": False} if command == "fit" else {}
    config["run"] = {**(config.get("run") or {}), **place, **own}
    return config


def _saved(ckpt_path: str) -> Path:
    saved = checkpoint_file(ckpt_path).parent.parent / "config.yaml"
    if not saved.is_file():
        raise UserError(f"{ckpt_path} is in no run folder. Give its experiment with --config FILE.")
    return saved


def differences(theirs: dict[str, Any], ours: dict[str, Any], command: str) -> dict[str, tuple[Any, Any]]:
    """Options of model, data, seed and, for fit, training that differ from those of a checkpoint.

    Args:
        theirs: configuration in the checkpoint.
        ours: resolved configuration of this run, as plain values.
        command: fit, validate, test or predict.

    Returns:
        ``{"model.tau": (value in the checkpoint, value now)}``. An option that only one of them has is left out: it
        belongs to another version or to another class, which is named itself.
    """
    theirs, ours = flatten(theirs), flatten(ours)
    compared = ("model", "data", "seed_everything", *(TRAINING if command == "fit" else ()))
    names = [name for name in ours if name in theirs and (name in compared or name.startswith(("model.", "data.")))]
    return {name: (theirs[name], ours[name]) for name in names if repr(theirs[name]) != repr(ours[name])}


def explain(differing: dict[str, tuple[Any, Any]]) -> Iterator[str]:
    """One line for each differing option."""
    for name, (before, now) in differing.items():
        schedule = " The learning-rate schedule goes on as one of this length." if "trainer.max_" in name else ""
        yield f"{name}: {before} in the checkpoint, {now} now. Using {now}.{schedule}"


def check_rows(differing: dict[str, tuple[Any, Any]], ckpt_path: str) -> None:
    """Refuse to resume a fit on other training images.

    Raises:
        UserError: names the options.
    """
    changed = [name for name in differing if name.startswith(OF_THE_ROWS) and name not in OF_THE_DISK]
    if changed:
        told = "; ".join(f"{name} {differing[name][0]}, now {differing[name][1]}" for name in changed)
        raise UserError(
            f"{ckpt_path} cannot be resumed on other training images ({told}): its schedule and the order of its "
            "images count them. Leave these options as they were, or start a new run from its weights with "
            "--model.backbone.weights RUN."
        )


def check_epochs(trained: int, max_epochs: int | None, ckpt_path: str) -> str | None:
    """Compare the number of epochs of a checkpoint with that of the resumed run.

    Returns:
        A line for a run that has all of its epochs already, else None.

    Raises:
        UserError: the checkpoint has more epochs than the run is to have.
    """
    if max_epochs is None or max_epochs < 0 or trained < max_epochs:
        return None
    if trained > max_epochs:
        raise UserError(f"{ckpt_path} was trained for {trained} epochs, but trainer.max_epochs is {max_epochs}.")
    return f"All {trained} epochs are trained already. To train longer, raise --trainer.max_epochs."
