"""Mutation run: small changes of the source, each of which a test has to notice::

    make mutants                                  # a sample of each room; goes on where it was stopped
    python -m tests.mutants losses --count 100    # more of one room
    python -m tests.mutants --report              # the share caught, and what was not

cosmic-ray finds the places that can be changed and changes them. A place is drawn with a fixed seed, then one of its
changes. Each change is made in a copy of the package, by a fork of a process that has imported torch, which runs the
tests of the room and of the methods until one fails. The results are lines of ``.mutants/ROOM.jsonl``.

A change that alters nothing that a user could notice is listed with its reason in
``tests/golden/equivalent_mutants.csv`` and does not count.
"""

import argparse
import csv
import difflib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / ".mutants"
EQUIVALENT = ROOT / "tests" / "golden" / "equivalent_mutants.csv"
PATIENCE = 900  # s; a change that makes a loop endless is caught by it
METHODS = ("tests/methods",)
GOLDEN = ("tests/methods/test_golden_runs.py",)
ONE_PROCESS = "not ddp and not gpu and not long"
QUICK = f"{ONE_PROCESS} and not slow"

# room -> its source, its tests
ROOMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "losses": (("losses/*.py",), ("tests/losses", "tests/test_properties.py")),
    "metrics": (("metrics/*.py",), ("tests/metrics", "tests/test_properties.py", "tests/evaluation")),
    "nn": (("nn/*.py",), ("tests/nn", "tests/test_properties.py")),
    "methods": (("methods/*.py",), ()),
    "tasks": (("tasks/*.py",), ("tests/tasks",)),
    "callbacks": (("callbacks/*.py",), ("tests/callbacks", "tests/evaluation", "tests/trust")),
    "samplers": (("data/samplers.py",), ("tests/data/test_samplers.py", "tests/data", "tests/test_properties.py")),
    "protocols": (("data/protocols.py",), ("tests/data/test_protocols.py", "tests/data", "tests/test_properties.py")),
    "views": (("data/views.py", "data/draws.py"), ("tests/data/test_views.py", "tests/data")),
    "augment": (("data/augment.py", "data/auto_augment.py"), ("tests/data/test_augment.py", "tests/data")),
    "datamodule": (("data/datamodule.py",), ("tests/data/test_datamodule.py", "tests/data")),
    "optim": (("optim.py",), ("tests/test_optim.py",)),
    "checkpoint": (("checkpoint.py",), ("tests/trust", "tests/cli", "tests/inference")),
}

# Changes that once went unseen: room, file, what stood there, what stands there now. They are always tried.
ONCE_UNSEEN = (
    ("methods", "methods/maskcon.py", "return self.momentum\n", "return 0.99\n"),
    ("datamodule", "data/datamodule.py", "range(1, 2 * len(photometrics), 2)", "[1] * len(photometrics)"),
    ("views", "data/views.py", "stream=2 * view, count", "stream=0, count"),
)

# ``int | None`` of an annotation is no arithmetic.
LEFT_OUT = ("core/ReplaceBinaryOperator_BitOr_",)


@dataclass(frozen=True)
class Mutant:
    """One change: the ``occurrence``-th place in a file that an operator of cosmic-ray can change."""

    room: str
    file: str
    operator: str
    occurrence: int
    line: int

    def source(self) -> str:
        """The changed file."""
        before = (ROOT / "fgssl" / self.file).read_text()
        if self.operator == "once unseen":
            _, _, old, new = ONCE_UNSEEN[self.occurrence]
            return before.replace(old, new, 1)
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator

        return mutate_code(before, get_operator(self.operator)(), self.occurrence)

    def difference(self) -> str:
        """The changed lines, without those around them."""
        before = (ROOT / "fgssl" / self.file).read_text().splitlines()
        lines = list(difflib.unified_diff(before, self.source().splitlines(), lineterm="", n=0))[3:]
        return "\n".join(line for line in lines if not line.startswith("@@"))


# ---- the sample -----------------------------------------------------------------------------------------------------


def places(room: str) -> dict[tuple[str, tuple[int, int]], list[Mutant]]:
    """Every change of a room, by file and position."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    found: dict[tuple[str, tuple[int, int]], list[Mutant]] = {}
    files = [path for pattern in ROOMS[room][0] for path in sorted((ROOT / "fgssl").glob(pattern))]
    for path in files:
        text, name = path.read_text(), str(path.relative_to(ROOT / "fgssl"))
        nodes, lines = list(ast_nodes(get_ast(text))), text.splitlines()
        for operator in operator_names():
            kind = get_operator(operator)
            if kind.arguments() or operator.startswith(LEFT_OUT):
                continue
            positions = [start for node in nodes for start, _ in kind().mutation_positions(node)]
            for occurrence, start in enumerate(positions):
                if "BinaryOperator" in operator and not follows_a_value(lines, start):
                    continue
                mutant = Mutant(room, name, operator, occurrence, start[0])
                found.setdefault((name, start), []).append(mutant)
    return found


def follows_a_value(lines: list[str], position: tuple[int, int]) -> bool:
    """Whether what stands at (line from 1, column) can be arithmetic: the star of ``def f(*, x)`` cannot."""
    line, column = position
    before = " ".join([*lines[max(0, line - 3) : line - 1], lines[line - 1][:column]]).rstrip()
    return bool(before) and (before[-1].isalnum() or before[-1] in "_)]}\"'")


def sample(room: str, count: int, seed: int) -> list[Mutant]:
    """Those that once went unseen, and ``count`` places with one change each; a larger count begins with a smaller."""
    known = [
        Mutant(room, file, "once unseen", number, 0)
        for number, (of, file, _, _) in enumerate(ONCE_UNSEEN)
        if of == room
    ]
    rng, drawn = random.Random(f"{room} {seed}"), sorted(places(room).items())
    rng.shuffle(drawn)
    return known + [random.Random(f"{place} {seed}").choice(mutants) for place, mutants in drawn[:count]]


# ---- the run --------------------------------------------------------------------------------------------------------


def stages_of(room: str) -> list[tuple[str, tuple[str, ...]]]:
    """Marks and paths of the tests, the quick ones of the room first."""
    own = ROOMS[room][1]
    return [(QUICK, own or METHODS), (ONE_PROCESS, GOLDEN), (QUICK, METHODS), (ONE_PROCESS, (own or METHODS)[:1])]


def copy_of_the_tree(folder: Path) -> Path:
    """What the tests need, in a folder where the source may be changed."""
    for name in ("fgssl", "tests", "configs", "experiments", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "mkdocs.yml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def start(mutant: Mutant, tree: Path) -> int:
    """Fork a process that changes the source in ``tree`` and runs the tests; returns its number."""
    (tree / "fgssl" / mutant.file).write_text(mutant.source())
    child = os.fork()
    if child:
        return child
    os.setsid()
    for number in (1, 2):
        os.dup2(os.open(tree / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    sys.dont_write_bytecode = True  # a change within a second of the last one keeps its length and its time
    sys.path[:] = [str(tree), *(place for place in sys.path if place not in ("", str(ROOT)))]
    for name in [name for name in sys.modules if name.split(".")[0] in ("fgssl", "tests")]:
        del sys.modules[name]
    import pytest

    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--tb=line"]
    status = 0
    for marks, tests in stages_of(mutant.room):
        status = status or int(pytest.main([*options, "-m", marks, *tests]))
    os._exit(status)


def ended(running: dict[int, tuple]) -> Iterator[tuple[int, str]]:
    """Wait for processes that end or take too long: their numbers and what became of the change."""
    while True:
        number, status = os.waitpid(-1, os.WNOHANG)
        if number in running:
            yield number, "survived" if os.waitstatus_to_exitcode(status) == 0 else "caught"
            return
        for late in [pid for pid, (_, _, since) in running.items() if time.monotonic() - since > PATIENCE]:
            os.killpg(late, signal.SIGKILL)
            os.waitpid(late, 0)
            yield late, "caught"
            return
        time.sleep(0.2)


def import_what_takes_long() -> None:
    import lightning.pytorch.cli  # noqa: F401
    import timm.optim  # noqa: F401
    import torch
    import torchmetrics  # noqa: F401

    torch.set_num_threads(1)


def run(rooms: list[str], count: int, seed: int, processes: int, hours: float) -> None:
    """Try the sample of each room, ``processes`` changes at a time; those that have a result are left out."""
    until = time.monotonic() + 3600 * hours
    waiting = [mutant for room in rooms for mutant in sample(room, count, seed) if mutant not in results(room)]
    waiting.sort(key=lambda mutant: random.Random(f"{mutant} {seed}").random())  # stopped early, each room has a part
    print(f"{len(waiting)} changes to try in {', '.join(rooms)}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    import_what_takes_long()
    with tempfile.TemporaryDirectory() as folder:
        trees = [copy_of_the_tree(Path(folder) / str(number)) for number in range(processes)]
        running: dict[int, tuple[Mutant, Path, float]] = {}
        while running or (waiting and time.monotonic() < until):
            while trees and waiting and time.monotonic() < until:
                mutant, tree = waiting.pop(), trees.pop()
                running[start(mutant, tree)] = (mutant, tree, time.monotonic())
            for number, outcome in ended(running) if running else ():
                mutant, tree, since = running.pop(number)
                shutil.copy(ROOT / "fgssl" / mutant.file, tree / "fgssl" / mutant.file)
                trees.append(tree)
                lines = (tree / "said").read_text().splitlines()
                said = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
                record = asdict(mutant) | {"outcome": outcome, "by": said[:1], "seconds": time.monotonic() - since}
                with (RESULTS / f"{mutant.room}.jsonl").open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(f"{outcome:8s} {mutant.file}:{mutant.line} {mutant.operator} {''.join(said[:1])}", flush=True)


# ---- the report -----------------------------------------------------------------------------------------------------


def results(room: str) -> dict[Mutant, str]:
    """Outcome of each change that was tried."""
    path = RESULTS / f"{room}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {Mutant(**{name: row[name] for name in Mutant.__annotations__}): row["outcome"] for row in rows}


def equivalent() -> dict[tuple[str, str], str]:
    """Reasons of the changes that nobody could notice, by file and changed lines."""
    with EQUIVALENT.open(newline="") as file:
        return {(row["file"], row["difference"]): row["reason"] for row in csv.DictReader(file)}


def report(rooms: list[str]) -> None:
    """Print the share caught by room, and the changes that nothing noticed."""
    known, lines = equivalent(), []
    print(f"{'room':12s} {'tried':>6s} {'equivalent':>11s} {'caught':>7s} {'share':>7s}")
    for room in rooms:
        tried = results(room)
        survivors = [mutant for mutant, outcome in tried.items() if outcome == "survived"]
        alike = [mutant for mutant in survivors if (mutant.file, mutant.difference()) in known]
        caught, counted = len(tried) - len(survivors), len(tried) - len(alike)
        share = f"{caught / counted:7.1%}" if counted else "      -"
        print(f"{room:12s} {len(tried):6d} {len(alike):11d} {caught:7d} {share}")
        lines += [f"{m.file}:{m.line} {m.operator}\n{m.difference()}" for m in survivors if m not in alike]
    print("\nNot noticed:\n" + "\n".join(lines) if lines else "\nEvery change was noticed.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Change the source in small ways and see whether a test notices.")
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"rooms to change, all by default: {', '.join(ROOMS)}")
    parser.add_argument("--count", type=int, default=25, help="places in each room (default: 25)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample (default: 0)")
    parser.add_argument("--processes", type=int, default=2, help="changes that are tried at a time (default: 2)")
    parser.add_argument("--hours", type=float, default=2, help="start no further change after it (default: 2)")
    parser.add_argument("--report", action="store_true", help="run nothing, show what was found")
    options = parser.parse_args()
    if unknown := set(options.rooms) - set(ROOMS):
        parser.error(f"no room {', '.join(sorted(unknown))}; there are {', '.join(ROOMS)}")
    chosen = options.rooms or list(ROOMS)
    if not options.report:
        run(chosen, options.count, options.seed, options.processes, options.hours)
    report(chosen)
