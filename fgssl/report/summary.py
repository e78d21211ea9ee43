"""The table that is printed at the end of a run."""

from typing import Any

from rich.console import Console
from rich.table import Table


def print_summary(results: dict[str, Any], folder: str) -> None:
    """Print a run's evaluation metrics and where its files are."""
    table = Table(title=f"{results['method']} on {results['dataset']}", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in results["metrics"].items():
        if name.startswith(("test/", "val/")):
            table.add_row(name, f"{value:.0f}" if "queries" in name else f"{value:.4f}")
    console = Console()
    console.print(table)
    console.print(f"{results['status']} in {results.get('duration_s', 0):.0f} s. Run folder: {folder}", soft_wrap=True)
