"""The first look: four methods on scikit-learn's handwritten digits, ten digits seen only through three coarse groups.

    make demo        (about 3 minutes on 2 CPU cores)

Each is an ordinary run of ``fgssl fit --config experiments/maskcon_digits.yaml --model.variant ...``.
"""

import json
import os
import sys
from pathlib import Path

# Before torch: on so small images a second thread gains little, and where another program wants a core too, two threads
# that wait for each other are ten times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console
from rich.table import Table

from fgssl.cli.main import main as fgssl

HERE = Path(__file__).parent
RUNS = Path("runs/demo")
METRICS = {
    "Recall@1": "recall@1",
    "Recall@2": "recall@2",
    "Recall@5": "recall@5",
    "Recall@10": "recall@10",
    "mAP": "map",
}
VARIANTS = {"SupCE": "supce", "SelfCon": "selfcon", "Grafit": "grafit", "MaskCon": "maskcon"}


def run(name: str, command: str, *flags: str) -> dict[str, float]:
    """Run one command and give its test metrics."""
    folder = RUNS / next_name(name)
    experiment = ["--config", str(HERE / "maskcon_digits.yaml"), "--run.root", str(RUNS.parent)]
    status = fgssl([command, *experiment, "--run.experiment", RUNS.name, "--run.name", folder.name, *flags])
    if status:
        sys.exit(status)
    metrics = json.loads((folder / "results.json").read_text())["metrics"]
    return {"folder": folder} | {key.removeprefix("test/"): value for key, value in metrics.items()}


def next_name(name: str) -> str:
    """A name that no earlier demo has taken: nothing is overwritten."""
    taken = [name, *(f"{name}-{number}" for number in range(2, 1000))]
    return next(free for free in taken if not (RUNS / free).exists())


def demo() -> None:
    rows = {"untrained network": run("untrained", "test")}
    for name, variant in VARIANTS.items():
        rows[name] = run(variant, "fit", "--model.variant", variant)
    table = Table(title="Digits: trained on 3 coarse groups, tested on the 10 digits", title_justify="left")
    table.add_column("")
    for metric in METRICS:
        table.add_column(metric, justify="right")
    best = {key: max(row[key] for row in rows.values()) for key in METRICS.values()}
    for name, row in rows.items():
        cells = [f"{100 * row[key]:.1f}" for key in METRICS.values()]
        bold = [f"[bold]{c}[/bold]" if row[k] == best[k] else c for c, k in zip(cells, METRICS.values(), strict=True)]
        table.add_row(name, *bold)
    console = Console()
    console.print(table)
    console.print(f"Nearest neighbours by MaskCon, as a picture: {rows['MaskCon']['folder'] / 'retrieval.jpg'}")
    console.print("Every run's configuration, log and checkpoint: " + str(RUNS))


if __name__ == "__main__":
    demo()
