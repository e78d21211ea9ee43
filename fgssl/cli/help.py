"""Help of the command line: ``fgssl --help``, one page for each command, and ``--help GROUP``.

This module does not import torch, so that help is there at once.
"""

from collections.abc import Iterable

from fgssl.errors import UserError, did_you_mean

# Commands by what they are for. All but fit, validate, test and predict are files of fgssl/commands/ with a function
# ``main(arguments)``.
COMMANDS_BY_GROUP = {
    "look around": {
        "list": "methods, experiments, data sets and backbones, one line each",
        "init": "write a commented experiment of your own: method and data",
        "data": "list the data sets in detail, or check one on disk",
    },
    "train and evaluate": {
        "fit": "train a method, then test its last weights",
        "validate": "evaluate on the validation rows",
        "test": "evaluate on the test rows",
        "predict": "write what a network says of images: embeddings, classes",
        "probe": "linear probe of a network: top-1 and top-5 accuracy",
    },
    "use a network": {
        "embed": "embeddings of a checkpoint or a public network, evaluated",
        "search": "nearest neighbours of images among such embeddings",
        "maps": "GradCAM, attention, patch similarity, drawn over images",
        "davis": "video object segmentation by label propagation",
        "export": "write a network for timm, torch.export, ONNX or MoCo v2",
    },
    "many runs": {
        "compare": "tables and plots over seeds, beside the papers' numbers",
        "report": "pages for the browser, with a map of the embeddings",
        "sweep": "fit over a grid of options; finished cells are skipped",
    },
}
COMMANDS = {name: text for group in COMMANDS_BY_GROUP.values() for name, text in group.items()}
LIGHTNING = ("fit", "validate", "test", "predict")
OWN = tuple(name for name in COMMANDS if name not in LIGHTNING)

TOP = """\
usage: fgssl COMMAND [OPTIONS]

Fine-grained and self-supervised visual learning: published methods, one
evaluation.

{commands}

first steps
  fgssl fit --config maskcon_digits       train on the digits of scikit-learn
  fgssl fit --config maskcon_digits --model.tau 0.1       change an option
  fgssl compare runs/maskcon_digits       tables of the runs
  fgssl init mine --method mls --data FOLDER      begin with your own images

  fgssl COMMAND --help                    the options of a command
  fgssl --print_completion bash           completion for bash, zsh or tcsh
"""

PAGE = """\
usage: fgssl {command} [--config FILE] [--ckpt_path RUN] [--OPTION VALUE ...]

{what}

{examples}

most used options (a value is YAML: 0.1, null, '[1, 2]')
{options}

all options: fgssl {command} --help GROUP
{groups}

--config maskcon_cars --help model shows the options of that experiment's
method; --model.help=CMD those of any other (fgssl list methods).
"""

WHAT = {
    "fit": "Train a method, then test its last weights on the test rows.",
    "validate": "Evaluate on the validation rows (data.protocol.val_fraction).",
    "test": "Evaluate on the test rows; without --ckpt_path the untrained network.",
    "predict": "Write what a network says of the test rows; without test rows, of all images:\nembeddings.npz, and "
    "predictions.csv of a classifier; detections.json of a\ndetector; masks/ of a segmenter.",
}
EXAMPLES = {
    "fit": {
        "--config maskcon_digits": "an experiment, by name",
        "--config FILE --model.tau 0.05": "one option changed",
        "--ckpt_path RUN": "resume a run",
        "--config FILE --print_config": "show all settings and stop",
    },
    "validate": {"--ckpt_path RUN": "a trained network"},
    "test": {"--ckpt_path RUN": "a trained network", "--config FILE": "an untrained one"},
    "predict": {"--ckpt_path RUN": "a trained network"},
}
# Option, placeholder of its value, help. The first part goes for all four commands, the second for fit alone.
COMMON = (
    ("config", "NAME|FILE", "experiment; may be repeated, later ones win"),
    ("ckpt_path", "RUN", "run folder or .ckpt file"),
    ("seed_everything", "N", "seed of weights, order and augmentation; 0"),
    ("model", "NAME", "method, as in fgssl list methods"),
    ("model.backbone.name", "NAME", "timm network, as in fgssl list backbones"),
    ("data.dataset", "NAME", "data set, as in fgssl list data"),
    ("data.dataset.root", "FOLDER", "its folder; default under $FGSSL_DATA"),
    ("data.protocol.split", "NAME", "official, zero_shot, ..."),
    ("data.eval_size", "PX", "side of an evaluated image"),
    ("data.num_workers", "N|auto", "processes that read images"),
    ("trainer.devices", "N", "GPUs or processes of this machine"),
    ("trainer.precision", "NAME", "32-true, bf16-mixed, ..."),
    ("retrieval.ks", "LIST", "values of K for Recall@K"),
    ("run.name", "NAME", "name of the run folder"),
    ("logger", "NAME", "csv; and wandb, tensorboard or mlflow"),
    ("quiet", "", "print warnings, errors and results only"),
)
OF_FIT = (
    ("model.backbone.pretrained", "BOOL", "start from timm's weights"),
    ("model.backbone.weights", "FILE", "start from a file of any origin"),
    ("model.optim.lr", "RATE", "learning rate"),
    ("data.batch_size", "N", "batch over all processes"),
    ("data.views.size", "PX", "side of a training view"),
    ("trainer.max_epochs", "N", "epochs"),
    ("trainer.fast_dev_run", "N", "N batches of everything: does it run?"),
    ("run.resume", "BOOL", "go on with the run of --run.name"),
    ("checkpoint.every_n_epochs", "N", "epochs between checkpoints"),
)
GROUPS = {
    "command": "experiment, checkpoint, seed",
    "model": "the method: network, loss, optimiser",
    "data": "data set, protocol, views, loaders",
    "trainer": "Lightning's: epochs, devices, precision, callbacks",
    "retrieval": "evaluation by nearest neighbours, and its pictures",
    "run": "place and name of the run folder",
    "checkpoint": "when checkpoints are written",
    "logger": "metrics.csv, W&B, TensorBoard, MLflow",
}
NOTES = {
    "data": "A class has a help of its own: --data.dataset.help=CUB (fgssl list data),\n--data.views.help=MultiCrop "
    "(PairViews, SingleView, NestedCrops, Views).",
    "trainer": "Callbacks of fgssl, added by --trainer.callbacks+ NAME: BestOnTest, BoxKNN,\nCollapse, OnlineKNN, "
    "OnlineProbe. Their help: --trainer.callbacks.help=BoxKNN.",
    "logger": "Options of Weights & Biases: --logger.help.",
}


def rows(pairs: Iterable[tuple[str, str]], width: int) -> str:
    """Two columns, the first ``width`` wide."""
    return "\n".join(f"  {left:<{width}} {right}" for left, right in pairs)


def top() -> str:
    """The text of ``fgssl --help``."""
    parts = [f"{group}\n{rows(some.items(), 10)}" for group, some in COMMANDS_BY_GROUP.items()]
    return TOP.format(commands="\n\n".join(parts))


def page(command: str) -> str:
    """The text of ``fgssl <command> --help`` for fit, validate, test and predict."""
    options = [(f"--{name} {value}".strip(), text) for name, value, text in most_used(command)]
    examples = [(f"fgssl {command} {line}", text) for line, text in EXAMPLES[command].items()]
    return PAGE.format(
        command=command, what=WHAT[command], examples=rows(examples, 46), options=rows(options, 34),
        groups=rows(GROUPS.items(), 11),
    )  # fmt: skip


def most_used(command: str) -> list[tuple[str, str, str]]:
    """The options that the page of a command shows, by section: name, placeholder and help."""
    options = [*COMMON, *(OF_FIT if command == "fit" else ())]
    sections = list(dict.fromkeys(name.partition(".")[0] for name, _, _ in COMMON))
    sections.append("checkpoint")
    return sorted(options, key=lambda option: sections.index(option[0].partition(".")[0]))


def asked_group(flags: list[str]) -> str | None:
    """The group that ``--help GROUP`` names; ``""`` for ``--help`` alone, None without ``--help``.

    Raises:
        UserError: there is no such group.
    """
    for place, flag in enumerate(flags):
        name, _, group = flag.partition("=")
        if name in ("-h", "--help"):
            following = flags[place + 1 : place + 2]
            group = group or next((word for word in following if not word.startswith("-")), "")
            if group and group not in GROUPS:
                raise UserError(
                    f"--help: unknown group '{group}'.{did_you_mean(group, GROUPS)} Known: {', '.join(GROUPS)}."
                )
            return group
    return None
