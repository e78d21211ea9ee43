"""The table that is printed at the end of a run."""

from typing import Any

from rich.console import Console
from rich.table import Table

from fgssl.report.metric_names import is_share
from fgssl.report.tables import number


def print_summary(results: dict[str, Any], folder: str) -> None:
    """Print a run's evaluation metrics, shares in percent as in all tables, and where its files are."""
    table = Table(title=f"{results['method']} on {results['dataset']}", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in results["metrics"].items():
        if name.startswith(("test/", "val/")):
            metric = name.partition("/")[2]
            table.add_row(name, number(metric, value) + (" %" if is_share(metric) else ""))
    console = Console()
    if table.row_count:
        console.print(table)
    console.print(f"{results['status']} in {results.get('duration_s', 0):.0f} s. Run folder: {folder}", soft_wrap=True)
