"""Comparisons as text: for the terminal, Markdown, LaTeX and CSV."""

import csv
import sys
from collections.abc import Callable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fgssl.report.compare import Cell, Comparison, Row, leaf, missing, sources
from fgssl.report.metric_names import EXTRA_TIME, is_count, is_share
from fgssl.report.runs import SECONDS

LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"±": "$\\pm$", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "\\": "\\textbackslash{}"}
)
MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\|*"})


def write(tables: list[Comparison], form: str, notes: list[str]) -> None:
    """Print the tables and notes; with CSV and LaTeX the notes go to standard error."""
    {"table": _terminal, "markdown": _markdown, "latex": _latex, "csv": _csv}[form](tables)
    console = Console(stderr=form in ("csv", "latex"), highlight=False, markup=False)
    for note in notes:
        console.print(note, soft_wrap=True)


def number(metric: str, value: float) -> str:
    """Format a metric: shares in percent, others as they are."""
    if is_count(metric):
        return f"{value:.0f}"
    if metric == SECONDS:
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return f"{100 * value:.2f}" if is_share(metric) else f"{value:.4f}"


def mean_and_spread(metric: str, cell: Cell, runs: int) -> str:
    """Format a cell as ``97.11 ± 0.32``, with the number of seeds if fewer than all runs of its row have the metric."""
    if cell.mean is None:
        return "-"
    spread = "" if cell.spread is None else f" ± {number(metric, cell.spread)}"
    seeds = "1 seed" if len(cell.values) == 1 else f"{len(cell.values)} seeds"
    fewer = f" ({seeds})" if len(cell.values) < runs else ""
    return number(metric, cell.mean) + spread + fewer


FACTS = ("settings", "backbone", "epochs")  # columns if the rows differ, else part of the footnote


def _facts(row: Row) -> dict[str, str]:
    settings = " ".join(f"{leaf(name)}={value}" for name, value in row.settings.items())
    return {"settings": settings, "backbone": row.backbone, "epochs": "-" if row.epochs is None else str(row.epochs)}


def _shared(table: Comparison) -> dict[str, str]:
    """Facts that all rows have in common."""
    facts = [_facts(row) for row in table.rows]
    return {name: facts[0][name] for name in FACTS if len({fact[name] for fact in facts}) == 1}


def in_words(table: Comparison, row: Row) -> str:
    """What tells a row from the others of its table, for pictures: its method, settings, backbone and epochs."""
    differing = {name: fact for name, fact in _facts(row).items() if name not in _shared(table)}
    words = [row.label]
    network = str(row.runs[0].config.get("model.backbone.name"))
    if "backbone" in differing and network not in row.method:  # a public network is its row's method
        words.append(differing["backbone"])
    if differing.get("epochs", "-") != "-":
        words.append(f"{row.epochs} epochs")
    return ", ".join(words)


def _columns(table: Comparison) -> list[str]:
    """The headings."""
    facts = [name for name in FACTS if name not in _shared(table)]
    return ["rank", "method", *facts, "seeds", *(name for name, _ in _values(table))]


def _cells(table: Comparison, row: Row) -> list[tuple[str, bool]]:
    """Text of a row below each heading, and whether it is the best of its column."""
    facts = [fact for name, fact in _facts(row).items() if name not in _shared(table)]
    words = [str(row.rank or "-"), row.method, *facts, str(len(row.runs))]
    return [(word, False) for word in words] + [show(row) for _, show in _values(table)]


def _measured(metric: str, row: Row) -> tuple[str, bool]:
    return mean_and_spread(metric, row.cells[metric], len(row.runs)), row.cells[metric].best


def _values(table: Comparison) -> list[tuple[str, Callable[[Row], tuple[str, bool]]]]:
    """Columns of the metrics, each followed by the printed numbers if there are any."""
    columns: list[tuple[str, Callable[[Row], tuple[str, bool]]]] = []
    for metric in table.metrics:
        columns.append((metric, lambda row, m=metric: _measured(m, row)))  # type: ignore[misc]
        if any(row.cells[metric].printed for row in table.rows):
            columns.append(("paper", lambda row, m=metric: (_printed(m, row.cells[m]), False)))  # type: ignore[misc]
    return columns


def _printed(metric: str, cell: Cell) -> str:
    return number(metric, cell.printed.value) if cell.printed else "-"


def _footnotes(table: Comparison) -> list[str]:
    said = [f"{name} {fact}" for name, fact in _shared(table).items() if fact not in ("", "-")]
    lines = [f"All rows: {', '.join(said)}."] * bool(said)
    if any(len(row.runs) > 1 for row in table.rows):
        single = any(len(row.runs) == 1 for row in table.rows)
        lines.append("±: standard deviation over the seeds." + " A row of one seed has none." * single)
    if EXTRA_TIME in table.metrics:
        lines.append("extra_time: % by which a training epoch takes longer than one of the baseline (-).")
    lines += [f"paper: {source}." for source in sources(table.rows)]
    return lines + [reason if reason.endswith((".", "?")) else f"{reason}." for reason in missing(table.rows)]


def _terminal(tables: list[Comparison]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    for table in tables:
        console.print(table.title, soft_wrap=True, markup=False)
        shown = Table(box=SIMPLE_HEAD, pad_edge=False)
        for heading in _columns(table):
            words = heading in ("method", "settings", "backbone")
            shown.add_column(heading, justify="left" if words else "right", no_wrap=not words)
        for row in table.rows:
            shown.add_row(*(Text(words, "bold" if best else "") for words, best in _cells(table, row)))
        console.print(shown)
        for line in [*_footnotes(table), ""]:
            console.print(line, soft_wrap=True, markup=False)


def _markdown(tables: list[Comparison]) -> None:
    for table in tables:
        print(markdown(table) + "\n")


def markdown(table: Comparison) -> str:
    """A table in Markdown with its title and footnotes."""
    columns = [heading.translate(MARKDOWN) for heading in _columns(table)]
    lines = [f"**{table.title}**", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in table.rows:
        cells = [(words.translate(MARKDOWN), best) for words, best in _cells(table, row)]
        lines.append("| " + " | ".join(f"**{words}**" if best else words for words, best in cells) + " |")
    return "\n".join([*lines, *(f"\n{line}" for line in _footnotes(table))])


def as_lists(table: Comparison) -> tuple[list[str], list[list[tuple[str, bool]]], list[str]]:
    """Headings, rows and footnotes of a table; a cell is its text and whether it is the best of its column."""
    return _columns(table), [_cells(table, row) for row in table.rows], _footnotes(table)


def _latex(tables: list[Comparison]) -> None:
    """Print LaTeX tables; they need the package booktabs."""
    for table in tables:
        headings = [heading.translate(LATEX) for heading in _columns(table)]
        print(f"% {table.title}\n\\begin{{tabular}}{{{'l' * len(headings)}}}\n\\toprule")
        print(" & ".join(headings) + r" \\" + "\n\\midrule")
        for row in table.rows:
            cells = [(words.translate(LATEX), best) for words, best in _cells(table, row)]
            print(" & ".join(f"\\textbf{{{words}}}" if best else words for words, best in cells) + r" \\")
        print("\\bottomrule\n\\end{tabular}")
        print("".join(f"% {line}\n" for line in _footnotes(table)))


def _csv(tables: list[Comparison]) -> None:
    """Print CSV: one line for each row and metric, fractions unrounded."""
    protocol = list(dict.fromkeys(name for table in tables for name in table.protocol))
    facts = ["method", "settings", "backbone", "epochs", "metric", "mean", "std", "seeds", "rank", "best"]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*protocol, *facts, "paper", "source", "missing", "runs"])
    for table in tables:
        for row in table.rows:
            settings = ";".join(f"{name}={value}" for name, value in row.settings.items())
            about = [row.method, settings, row.backbone, row.epochs]
            for metric, cell in row.cells.items():
                spread, printed = "" if cell.spread is None else cell.spread, cell.printed
                values = [metric, cell.mean, spread, len(cell.values), row.rank, int(cell.best)]
                paper = [*(printed or ("", "")), cell.missing or ""]
                runs = " ".join(run.name for run in row.runs)
                writer.writerow([*(table.protocol.get(name, "") for name in protocol), *about, *values, *paper, runs])
