"""The rooms of the package: imports run one way, and no room is in a circle."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Lowest first. A module imports from its own room and from those before it.
FLOORS = (
    ("errors",),
    ("distributed", "metrics", "losses"),
    ("checkpoint", "optim", "data", "nn"),
    ("evaluation", "run", "loggers"),
    ("report",),
    ("callbacks",),
    ("methods",),
    ("tasks",),
    ("inference",),
    ("cli",),
    ("commands",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    files = (ROOT / "fgssl").rglob("*.py")
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def imports(file: Path, known: dict[str, Path]) -> set[str]:
    """The package's own modules that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in inner}
    return {name for name in found if name in known}


def room(module: str) -> str:
    """``fgssl.nn.memory`` is in ``nn``; ``fgssl.optim`` is a room of its own."""
    return module.split(".")[1] if "." in module else "fgssl"


def arrows() -> list[tuple[str, str]]:
    known = modules()
    return [(name, target) for name, file in known.items() for target in imports(file, known) if name != target]


def test_every_room_has_its_floor():
    rooms = {room(name) for name in modules()} - {"fgssl"}
    assert rooms == set(FLOOR)


@pytest.mark.parametrize("name", sorted(FLOOR))
def test_imports_run_downwards(name):
    upward = [
        f"{source} imports {target}"
        for source, target in arrows()
        if room(source) == name and room(target) not in (name, "fgssl") and FLOOR[room(target)] > FLOOR[name]
    ]
    assert not upward


def test_no_circle_of_modules():
    graph: dict[str, set[str]] = {}
    for source, target in arrows():
        if source != "fgssl":  # the package's face hands names on; it is asked for its version alone
            graph.setdefault(source, set()).add(target)
    graph.pop("fgssl", None)
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_no_circle_of_rooms():
    graph: dict[str, set[str]] = {}
    for source, target in arrows():
        if room(source) != room(target) and "fgssl" not in (room(source), room(target)):
            graph.setdefault(room(source), set()).add(room(target))
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", ["losses", "metrics"])
def test_losses_and_metrics_import_nothing_of_the_package(name):
    outside = [f"{source} imports {target}" for source, target in arrows() if room(source) == name != room(target)]
    assert not outside
