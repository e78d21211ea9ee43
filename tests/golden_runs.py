"""Four steps of every method on the digits, in float64: the losses, and checksums of the weights after them.

``tests/golden/runs.json`` holds them, and ``tests/methods/test_golden_runs.py`` compares. Where a change of the numbers
is meant, write the file anew, read the difference, and name the change in CHANGELOG.md::

    python -m tests.golden_runs
"""

import json
import re
import tempfile
from collections import defaultdict
from pathlib import Path

import torch

from fgssl.cli.main import main
from tests.methods.runs import RIVALS, RUNS, arguments, losses, rival_line, state

GOLDEN = Path(__file__).parent / "golden" / "runs.json"
# Two steps in each of two epochs: some methods change in the second. No test: the features have tests of their own.
FOUR_STEPS = (
    "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "2", "--trainer.precision", "64-true",
    "--trainer.limit_test_batches", "0", "--data.num_workers", "0",
)  # fmt: skip
VARIANTS = {  # further variants of the entries of RUNS: name -> entry, flags
    "grafit": ("maskcon", "--model.variant", "grafit"),
    "supfine": ("maskcon", "--model.variant", "supfine"),
    "obd_sd alone": ("obd_sd", "--model.distillation.teacher", "none"),
    "flsl plain": ("flsl", "--model.targets", "plain"),
    "cmd within crop": ("cmd", "--model.inter_level", "within_crop", "--model.image_bag", "instances"),
}
NAMES = (*RUNS, *VARIANTS, *RIVALS)

Figures = dict[str, list[float]]


def figures(name: str, root: Path) -> Figures:
    """Losses of a run, and sum, norm and number of the values of each part of its state."""
    if name in RIVALS:
        line, run = rival_line(name, root, "run", *FOUR_STEPS), root / name / "run"
    else:
        entry, *flags = VARIANTS.get(name, (name,))
        line, run = arguments(entry, root, name, *FOUR_STEPS, *flags), root / entry / name
    assert main(line) == 0
    parts = defaultdict(list)
    for key, value in state(run).items():
        if isinstance(value, torch.Tensor):
            whole = "" if value.is_floating_point() else ", whole numbers"  # labels and rows in a memory, counts
            parts[key.split(".")[0] + whole].append(value.double().flatten())
    joined = {part: torch.cat(values) for part, values in parts.items()}
    sums = {part: [x.sum().item(), x.norm().item(), x.numel()] for part, x in joined.items()}
    return {"loss": [float(loss) for _, loss in losses(run)], **sums}


def read_golden() -> dict[str, Figures]:
    return json.loads(GOLDEN.read_text())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = {name: figures(name, Path(folder)) for name in NAMES}
    text = json.dumps(found, indent=1)
    GOLDEN.write_text(re.sub(r"\s+(?=[-\d\]])", " ", text) + "\n")  # a list on one line
