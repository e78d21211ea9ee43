"""Every table and figure of the papers: ``tests/golden/tables.yaml`` as the page ``docs/tables.md``::

python -m tests.tables
"""

from pathlib import Path
from typing import NamedTuple

import yaml

from tests.recipes import PAPERS, ROOT

SOURCE = Path(__file__).parent / "golden" / "tables.yaml"
PAGE = ROOT / "docs" / "tables.md"
STATES = {"made": "made data", "real": "real data", "none": "not to be had", "later": "not yet"}
HEAD = """\
# Every table and figure

What the five papers print, and the commands that make it. Written by `python -m tests.tables` from
`tests/golden/tables.yaml`; the test suite resolves every command.

- **made data**: the commands run, on made data in the official layout; no run at full scale yet. On photographs, at the
  scale of one CPU core, [Results](results.md) has MaskCon's Tables 1 and 12, OBD-SD's Tables 1, 3 and 8, CMD's Table IV
  and Figs. 6 and 7, and FLSL's Tables 5 and 11 to 14.
- **real data**: seen on the real data, or on the real lists where the table is of lists alone.
- **not to be had**, **not yet**: with the reason.

`fgssl compare` sets the printed number beside ours where every condition of its row holds ([Compare](compare.md)). The
name of an experiment is enough from any folder; what starts from `runs/<experiment>/first` supposes `--run.name first`.
"""


class Row(NamedTuple):
    """A table or figure; ``commands`` make it."""

    paper: str
    item: str
    shows: str
    state: str
    commands: list[str]
    note: str


def read() -> list[Row]:
    """The rows in the order of the file."""
    return [
        Row(paper, item, row["shows"], row["state"], row.get("commands", []), row.get("note", ""))
        for paper, items in yaml.safe_load(SOURCE.read_text()).items()
        for item, row in items.items()
    ]


def page(rows: list[Row]) -> str:
    """The page in Markdown, one table a paper."""
    lines = [HEAD]
    for paper in dict.fromkeys(row.paper for row in rows):
        lines += [f"## {PAPERS[paper]}", "", "| | shows | commands | state |", "|---|---|---|---|"]
        for row in rows:
            if row.paper == paper:
                commands = "<br>".join(f"`{command}`" for command in row.commands)
                state = STATES[row.state] + (f": {row.note}" if row.note else "")
                lines.append(f"| {row.item} | {row.shows} | {commands} | {state} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(read()))
    print(f"Wrote {PAGE.relative_to(ROOT)}.")
