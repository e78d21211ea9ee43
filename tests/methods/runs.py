"""One tiny run of each method through the command line, for the tests that every method has to pass.

A method joins them by a line in RUNS: interrupted equals uninterrupted (``tests/trust``), several processes equal one
(``tests/ddp``).
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.warm import Forked

ROOT = Path(__file__).parents[2]
PATIENCE = 1200  # s; a process that waits for ever fails its test, one on a loaded machine does not
# GroupNorm: BatchNorm sees each process's part of the batch, and is not meant to give the same on several.
NETWORK = "{layers: [1, 1, 1, 1], channels: [8, 8, 16, 16], norm_layer: groupnorm1}"
MASKCON = ("maskcon_digits", "--model.memory", "50", "--model.weight", "0.7")

MLS = ("mls_digits", "--model.memory", "50")

# All ten digits, for as many batches an epoch as the others; the teacher acts in the second epoch.
OBD_SD = ("obd_sd_digits", "--data.protocol.split", "official", "--data.images_per_class", "4")
# Triplets drawn at random and boundaries that are learnt at a rate of their own: more that could go wrong.
MARGIN = ("--model.dml_loss", "Margin", "--model.miner", "DistanceWeighted")
BETA = ("--model.optim.groups", "[{of: dml_loss.beta, lr: 5e-3}]")

# Of features that are computed once, which is where order and position are not the data module's own.
PROBE = ("finetune_digits", "--model", "Probe", "--model.augment", "false")

# Drop path draws for each process: off, or several could not equal one.
VIT = (
    "{class_token: false, global_pool: avg, fc_norm: false, dynamic_img_size: true, img_size: 32, patch_size: 4, "
    "depth: 1, embed_dim: 16, num_heads: 2}"
)
# The second epoch's centroids move; batch-softmax and the volume term see all processes.
FLSL = ("flsl_digits", "--model.backbone.options", VIT, "--model.prototypes", "16", "--model.targets", "sinkhorn")

# Instances need a map of several patches. Every term, and both kinds of clipping. No ReLU: a patch whose few channels
# are all 0 has no direction, and the gradient of its unit length would leave nothing of the others when clipped.
CMD_NETWORK = NETWORK.replace("norm_layer", "output_stride: 8, norm_layer")
GELU = CMD_NETWORK.replace("norm_layer", "act_layer: gelu, norm_layer")
CMD = (
    "cmd_digits", "--model.backbone.options", GELU, "--model.prototypes", "16", "--model.hidden", "16",
    "--model.bottleneck", "8", "--model.l_ts", "0.1", "--model.koleo", "0.1", "--trainer.gradient_clip_val", "5",
)  # fmt: skip

RUNS: dict[str, tuple[str, ...]] = {  # name -> experiment and its flags
    "maskcon": MASKCON,
    "coins": (*MASKCON, "--model.variant", "coins"),
    "mls": (*MLS, "--model.nce_warmup_epochs", "1"),
    "obd_sd": (*OBD_SD, *MARGIN, *BETA),
    "finetune": ("finetune_digits",),
    "flsl": FLSL,
    "cmd": CMD,
    "probe": PROBE,
}

# The rivals of the papers' tables: name -> flags of tests/methods/rivals.yaml, which tests/methods/test_rivals.py runs.
RESNET = ("--model.backbone", f"{{name: resnet18, pretrained: false, options: {NETWORK}}}")
RESNET_8 = ("--model.backbone", f"{{name: resnet18, pretrained: false, options: {CMD_NETWORK}}}")
RIVAL_OPTIM = ("--model.optim", "{name: sgd, lr: 0.05, weight_decay: 1e-4, warmup: 0}")
LARS = ("--model.optim", "{name: lars, lr: 1, lr_1d: 0.001, weight_decay: 1e-4, decay_1d: false, warmup: 0}")
HEADS = ("--model.dim", "8", "--model.hidden", "16")
MAE_VIT = f"{{name: vit_tiny_patch16_224, options: {VIT.replace('dynamic_img_size: true, ', '')}}}"
MAE = (
    "--model", "MAE", "--model.backbone", MAE_VIT, "--model.decoder_dim", "8", "--model.decoder_depth", "1",
    "--model.decoder_heads", "2", *RIVAL_OPTIM,
)  # fmt: skip
RIVALS: dict[str, tuple[str, ...]] = {
    "simclr": ("--model", "SimCLR", *RESNET, *HEADS, *LARS),
    "byol": ("--model", "BYOL", *RESNET, *HEADS, *LARS, "--model.momentum", "0.8"),
    "simsiam": ("--model", "SimSiam", *RESNET, *HEADS, *RIVAL_OPTIM, "--model.optim.constant", "predictor"),
    "barlow_twins": ("--model", "BarlowTwins", *RESNET, "--model.dim", "24", "--model.hidden", "16", *LARS),
    "vicreg": ("--model", "VICReg", *RESNET, "--model.dim", "24", "--model.hidden", "16", *LARS),
    # The prototypes are trained and the queue takes part in the second epoch; crops of two sizes.
    "swav": (
        "--model", "SwAV", *RESNET, "--model.dim", "8", "--model.hidden", "16", "--model.prototypes", "12",
        "--model.queue", "40", "--model.queue_start", "1", "--data.views.local_size", "16",
        "--data.views.local_crops", "2", *LARS,
    ),
    "mae": MAE,
    # A map of several positions, on which the attention has something to fit.
    "lcr": (
        "--model", "LCR", *RESNET_8, "--model.memory", "40", "--model.hidden", "16", "--model.nu", "0.05",
        "--model.attention_over", "map", "--model.attention_tau", "0.4", *RIVAL_OPTIM,
    ),
    "byol_lcr": (
        "--model", "BYOLLCR", *RESNET_8, *HEADS, "--model.nu", "0.05", "--model.momentum", "0.8", *LARS,
    ),
    "lewel": (
        "--model", "LEWEL", *RESNET_8, *HEADS, "--model.tau", "0.2", "--model.momentum", "0.8", *LARS,
    ),
    "densecl": ("--model", "DenseCL", *RESNET_8, "--model.memory", "40", "--model.hidden", "16", *RIVAL_OPTIM),
    # The boxes are computed between the two epochs.
    "contrastive_crop": (
        "--model", "MLS", "--model.variant", "moco_v2", *RESNET_8, "--model.memory", "40", "--model.hidden", "16",
        "--data.views",
        "{class_path: ContrastiveCrop, init_args: {recipe: digits, size: 32, warmup: 1, every: 1, threshold: 0.8}}",
        *RIVAL_OPTIM,
    ),
    # The centres have a rate of their own; the network is frozen in the first of the two epochs.
    "metric_learning": (
        "--model", "MetricLearning", *RESNET, "--model.dim", "8", "--model.dml_loss", "SoftTriple",
        "--model.frozen_epochs", "1", "--model.optim",
        "{name: adam, lr: 1e-3, eps: 0.01, warmup: 0, groups: [{of: dml_loss, lr: 1e-2}]}",
    ),
}  # fmt: skip


def rival_line(name: str, root: Path, run: str, *flags: str) -> list[str]:
    """The command line of a rival's run, without the program."""
    config = str(ROOT / "tests" / "methods" / "rivals.yaml")
    place = ("--run.root", str(root), "--run.experiment", name, "--run.name", run)
    return ["fit", "--config", config, *RIVALS[name], *place, *flags]


# 135 digits to train with: 8 batches of 16 an epoch, and a rest
SMALL = (
    "--data.protocol.label_fraction", "0.1", "--data.batch_size", "16", "--model.backbone.options", NETWORK,
    "--retrieval.grid", "0", "--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.max_epochs", "2",
    "--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false",
    "--trainer.enable_model_summary", "false",
)  # fmt: skip


def arguments(method: str, root: Path, name: str, *flags: str, command: str = "fit") -> list[str]:
    """The command line of a method's run, without the program."""
    experiment, *own = RUNS[method]
    config = str(ROOT / "experiments" / f"{experiment}.yaml")
    place = ("--run.root", str(root), "--run.experiment", method, "--run.name", name)
    return [command, "--config", config, *SMALL, *own, *place, *flags]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **extra}


def start(
    method: str, root: Path, name: str, *flags: str, command: str = "fit", **extra: str
) -> subprocess.Popen | Forked:
    """Start a run in a process of its own.

    It is a new interpreter where the run is of several processes: its output ends with that of the last of them.
    """
    line, variables = arguments(method, root, name, *flags, command=command), environment(**extra)
    if "--trainer.strategy" not in flags:
        return Forked(line, root, variables)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-m", "fgssl", *line], text=True, env=variables, cwd=root, **streams)


def finish(process: subprocess.Popen | Forked, timeout: float = PATIENCE) -> tuple[int, str]:
    """Exit status, and what was said."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out + err


def in_a_terminal(line: list[str], folder: Path) -> tuple[int, str]:
    """Run a command in a process group of its own, as a shell does."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    where = {"env": environment(), "cwd": folder, "start_new_session": True}
    return finish(subprocess.Popen([sys.executable, "-m", "fgssl", *line], **streams, **where))


def complete(method: str, root: Path, name: str, *flags: str, command: str = "fit", **extra: str) -> Path:
    """Run to the end; returns the run folder."""
    line = arguments(method, root, name, *flags, command=command)
    status, said = finish(Forked(line, root, environment(**extra)))
    assert status == 0, said[-3000:]
    return root / method / name


def results(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def state(run: Path, name: str = "last.ckpt") -> dict:
    return torch.load(run / "checkpoints" / name, weights_only=True)["state_dict"]


def losses(run: Path) -> list[tuple[str, str]]:
    """Step and loss of every logged training step."""
    with (run / "metrics.csv").open() as file:
        return [(row["step"], row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def assert_same_state(ours: dict, theirs: dict) -> None:
    """Bit for bit."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        same = torch.equal(ours[name], value) if isinstance(value, torch.Tensor) else ours[name] == value
        assert same, name
