"""Mutation run: small changes of the source, each of which a test has to notice::

    make mutants                                  # a sample of each room; goes on where it was stopped
    python -m tests.mutants losses --count 100    # more of one room
    python -m tests.mutants --again               # those that were not noticed, after better tests
    python -m tests.mutants --report              # the share caught, and what was not

cosmic-ray finds the places that can be changed and changes them. A place is drawn with a fixed seed, then one of its
changes. The suite runs once on the unchanged source to see which test runs which line. Then each change is made in a
copy of the package, by a fork of a process that has imported torch, which runs the tests of the changed line until one
fails; files of tests that were changed since that first run come before them. The results are lines of
``.mutants/ROOM.jsonl``.

A change that alters nothing that a user could notice is listed with its reason in
``tests/golden/equivalent_mutants.csv``, is not tried and does not count.
"""

import argparse
import collections
import csv
import difflib
import itertools
import json
import logging
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
COVERAGE, SECONDS = RESULTS / "coverage", RESULTS / "seconds.jsonl"
EQUIVALENT = ROOT / "tests" / "golden" / "equivalent_mutants.csv"
SOUND: set[str] = set()  # tests that passed on the unchanged source
UNSOUND: set[str] = set()  # tests that failed on it: they run no more
PATIENCE = 900  # s; a change that makes a loop endless is caught by it
ENOUGH = 120  # s of tests of the nearest files, and of the others, by the time that they took on the unchanged source
NEAREST = 5  # files of tests that run first: to collect fifty takes longer than most changes live
NO_TEST = 5  # exit status of pytest where it chose none
GOLDEN = "tests/methods/test_golden_runs.py"  # four steps of every method: they notice most
DEFAULTS = "tests/test_defaults.py"  # reads what classes and signatures state, which runs when a file is imported
ONE_PROCESS = "not ddp and not gpu and not long"

# room -> its source
ROOMS: dict[str, tuple[str, ...]] = {
    "losses": ("losses/*.py",),
    "metrics": ("metrics/*.py",),
    "evaluation": ("evaluation/*.py",),
    "tables": tuple(f"report/{name}.py" for name in ("compare", "conditions", "metric_names", "published", "runs")),
    "nn": ("nn/*.py",),
    "methods": ("methods/*.py",),
    "tasks": ("tasks/*.py",),
    "callbacks": ("callbacks/*.py",),
    "samplers": ("data/samplers.py",),
    "protocols": ("data/protocols.py",),
    "views": ("data/views.py", "data/draws.py"),
    "augment": ("data/augment.py", "data/auto_augment.py"),
    "datamodule": ("data/datamodule.py",),
    "optim": ("optim.py",),
    "checkpoint": ("checkpoint.py",),
}

# What coverage does not see, since it runs in other processes: room -> files of tests. They run last.
IN_OTHER_PROCESSES = {
    "callbacks": ("tests/trust/test_interruption.py",),
    "methods": ("tests/ddp/test_mls_processes.py", "tests/ddp/test_processes.py"),
    "metrics": ("tests/ddp/test_processes.py",),
    "evaluation": ("tests/ddp/test_processes.py",),
    "nn": ("tests/ddp/test_mls_processes.py", "tests/ddp/test_processes.py"),
    "tasks": ("tests/ddp/test_downstream_processes.py",),
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
    files = [path for pattern in ROOMS[room] for path in sorted((ROOT / "fgssl").glob(pattern))]
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


@dataclass(frozen=True)
class Tests:
    """The tests that ran each line of the unchanged source, and how long each took.

    Attributes:
        of_line: (file, line) -> identifiers of the tests.
        of_file: file -> identifiers of the tests.
        seconds: identifier -> time that the test took.
    """

    of_line: dict[tuple[str, int], set[str]]
    of_file: dict[str, set[str]]
    seconds: dict[str, float]

    def of(self, mutant: Mutant) -> list[list[str]]:
        """Tests of a change: those of the nearest files, then the others.

        What no test ran by itself runs when the file is imported, or in another process: all tests beside those that
        run anything of the file, since a test of a constant runs nothing.
        """
        chosen = self.of_line.get((mutant.file, mutant.line)) or self.beside(self.of_file.get(mutant.file, set()))
        chosen = chosen | self.beside({DEFAULTS})
        tests_of_file = collections.Counter(file_of(test) for test in chosen)
        own = Path(mutant.file)

        def distance(file: str) -> tuple[bool, bool, int]:
            return own.stem not in Path(file).stem, own.parent.name != Path(file).parent.name, -tests_of_file[file]

        nearest = [GOLDEN, DEFAULTS, *sorted(sorted(tests_of_file), key=distance)[:NEAREST]]
        near = {test for test in chosen if file_of(test) in nearest}
        return [self.shortest(near), self.shortest(chosen - near)]

    def beside(self, tests: set[str]) -> set[str]:
        """All tests in the files of the tests."""
        files = {file_of(test) for test in tests}
        return {test for test in self.seconds if file_of(test) in files}

    def shortest(self, tests: set[str]) -> list[str]:
        """As many of the tests as take ``ENOUGH`` seconds, short ones first."""
        ordered = sorted(tests, key=lambda test: (self.seconds[test], test))
        sums = itertools.accumulate(self.seconds[test] for test in ordered)
        return [test for test, until in zip(ordered, sums, strict=True) if until <= ENOUGH]


def file_of(test: str) -> str:
    return test.split("::")[0]


class Timer:
    """Plugin of pytest that keeps the seconds of each test that passed."""

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" and report.passed:
            with SECONDS.open("a") as file:
                file.write(json.dumps([report.nodeid, report.duration]) + "\n")


class Chosen:
    """Plugin of pytest that runs the tests of a list only, in its order."""

    def __init__(self, tests: list[str]):
        self.place = {test: place for place, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items) -> None:
        chosen = [item for item in items if item.nodeid in self.place]
        items[:] = sorted(chosen, key=lambda item: self.place[item.nodeid])


def measure(processes: int) -> None:
    """Run the suite on the unchanged source and keep which test ran which line."""
    SECONDS.unlink(missing_ok=True)
    os.environ["COVERAGE_FILE"] = str(COVERAGE)
    options = ["-n", str(processes), "--cov=fgssl", "--cov-context=test", "--cov-report="]
    os.waitpid(fork(ROOT, [([*options, "tests"], Timer())]), 0)


def read_tests() -> Tests:
    """What ``measure`` kept."""
    from coverage import CoverageData

    seconds = dict(json.loads(line) for line in SECONDS.read_text().splitlines())
    of_file_of_tests: dict[str, set[str]] = {}
    for test in seconds:
        of_file_of_tests.setdefault(file_of(test), set()).add(test)
    data = CoverageData(str(COVERAGE))
    data.read()
    found = Tests({}, {}, seconds)
    for path in data.measured_files():
        file = str(Path(path).relative_to(ROOT / "fgssl"))
        for line, contexts in data.contexts_by_lineno(path).items():
            tests: set[str] = set()
            for context in contexts:
                test, _, phase = context.rpartition("|")
                # a fixture may serve every test of its file, and runs in the first
                tests |= of_file_of_tests.get(file_of(test), set()) if phase == "setup" else {test} & set(seconds)
            found.of_file.setdefault(file, set()).update(tests)
            if "" not in contexts:  # the line does not run when the file is imported
                found.of_line[file, line] = tests
    return found


def copy_of_the_tree(folder: Path) -> Path:
    """What the tests need, in a folder where the source may be changed."""
    for name in ("fgssl", "tests", "configs", "experiments", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "mkdocs.yml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def start(mutant: Mutant, tree: Path, stages: list[list[str]]) -> int:
    """Change the source in ``tree`` and start its tests; returns the number of the process."""
    (tree / "fgssl" / mutant.file).write_text(mutant.source())
    newer = newer_than_coverage("tests", "test_*.py")
    last = IN_OTHER_PROCESSES.get(mutant.room, ())
    plain = [(files_of(tests), Chosen(tests)) for tests in stages]
    return fork(tree, [(newer, None), *plain, (["-m", "not gpu and not long", *last] if last else [], None)])


def newer_than_coverage(folder: str, pattern: str) -> list[str]:
    """Files that were written or changed since ``measure``."""
    since = COVERAGE.stat().st_mtime
    files = [path for path in sorted((ROOT / folder).rglob(pattern)) if path.stat().st_mtime > since]
    return [str(path.relative_to(ROOT)) for path in files]


def files_of(tests: list[str]) -> list[str]:
    return list(dict.fromkeys(map(file_of, tests)))


def fork(tree: Path, stages: list[tuple[list[str], object | None]]) -> int:
    """Fork a process that runs tests in ``tree`` until one fails, and return its number.

    Args:
        tree: copy of the project, or the project itself.
        stages: options of pytest (files of tests, at least) and a plugin; a stage without options is left out.
    """
    child = os.fork()
    if child:
        return child
    os.setsid()
    said = (RESULTS if tree == ROOT else tree) / "said"
    for number in (1, 2):
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)
    sys.dont_write_bytecode = True  # a change within a second of the last one keeps its length and its time
    sys.path[:] = [str(tree), *(place for place in sys.path if place not in ("", str(ROOT)))]
    for name in [name for name in sys.modules if name.split(".")[0] in ("fgssl", "tests")]:
        del sys.modules[name]
    import pytest

    common = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--tb=line", "-m", ONE_PROCESS]
    common += [f"--deselect={test}" for test in sorted(UNSOUND)]
    if tree != ROOT:
        common.append("-x")
    for options, plugin in stages:
        status = int(pytest.main([*common, *options], plugins=[plugin] if plugin else [])) if options else 0
        if status not in (0, NO_TEST):
            os._exit(status)
    os._exit(0)


def fails_unchanged(said: list[str], tree: Path) -> bool:
    """Whether the test that failed fails on the unchanged source too; it runs no more then.

    Args:
        said: the line of a test that failed; empty: no test ran, since the changed source could not be imported.
        tree: copy of the unchanged source.
    """
    test = said[0].partition(" ")[2].split(" - ")[0] if said and "::" in said[0] else None
    if test is None or test in SOUND:
        return False
    _, status = os.waitpid(fork(tree, [([file_of(test)], Chosen([test]))]), 0)
    (UNSOUND if status else SOUND).add(test)
    return bool(status)


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
            yield late, "no end"
            return
        time.sleep(0.2)


def import_what_takes_long() -> None:
    logging.getLogger().addHandler(logging.NullHandler())  # as under pytest: Lightning then adds no handler of its own
    import lightning.pytorch.cli  # noqa: F401
    import timm.optim  # noqa: F401
    import torch
    import torchmetrics  # noqa: F401

    torch.set_num_threads(1)


def run(rooms: list[str], count: int, seed: int, processes: int, hours: float, again: bool) -> None:
    """Try the sample of each room, ``processes`` changes at a time; those that have a result are left out.

    With ``again`` those that survived and are not equivalent are tried instead.
    """
    until = time.monotonic() + 3600 * hours
    RESULTS.mkdir(exist_ok=True)
    import_what_takes_long()
    if not COVERAGE.is_file() or newer_than_coverage("fgssl", "*.py"):
        print("Running the suite to see which test runs which line ...", flush=True)
        measure(processes)
    if again:
        waiting = [mutant for room in rooms for mutant in not_noticed(room)]
    else:
        waiting = [mutant for room in rooms for mutant in sample(room, count, seed) if mutant not in results(room)]
    waiting.sort(key=lambda mutant: random.Random(f"{mutant} {seed}").random())  # stopped early, each room has a part
    print(f"{len(waiting)} changes to try in {', '.join(rooms)}", flush=True)
    try_each(waiting, processes, until)


def try_each(waiting: list[Mutant], processes: int, until: float) -> None:
    """Try changes, ``processes`` at a time, until there are none left or ``time.monotonic()`` is past ``until``."""
    tests, known = read_tests(), equivalent()
    with tempfile.TemporaryDirectory() as folder:
        trees = [copy_of_the_tree(Path(folder) / str(number)) for number in range(processes)]
        running: dict[int, tuple[Mutant, Path, float]] = {}
        while running or (waiting and time.monotonic() < until):
            while trees and waiting and time.monotonic() < until:
                mutant = waiting.pop()
                if (mutant.file, mutant.difference()) in known:
                    write(mutant, "equivalent", [], 0)
                    continue
                tree = trees.pop()
                running[start(mutant, tree, tests.of(mutant))] = (mutant, tree, time.monotonic())
            for number, outcome in ended(running) if running else ():
                mutant, tree, since = running.pop(number)
                shutil.copy(ROOT / "fgssl" / mutant.file, tree / "fgssl" / mutant.file)
                trees.append(tree)
                if not keep(mutant, outcome, tree, time.monotonic() - since):
                    waiting.append(mutant)


def keep(mutant: Mutant, outcome: str, tree: Path, seconds: float) -> bool:
    """Write a result to the room's file, unless the test that failed fails on the unchanged source too.

    Returns whether it wrote.
    """
    lines = (tree / "said").read_text().splitlines()
    said = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    if outcome == "no end":
        outcome, said = "caught", [f"no end after {PATIENCE} s"]
    if outcome == "caught" and fails_unchanged(said, tree):
        print(f"left out, it fails on the unchanged source too: {said[0]}", flush=True)
        return False
    write(mutant, outcome, said[:1], seconds)
    return True


def write(mutant: Mutant, outcome: str, by: list[str], seconds: float) -> None:
    """Add a result to the room's file."""
    with (RESULTS / f"{mutant.room}.jsonl").open("a") as file:
        file.write(json.dumps(asdict(mutant) | {"outcome": outcome, "by": by, "seconds": seconds}) + "\n")
    print(f"{outcome:10s} {mutant.file}:{mutant.line} {mutant.operator} {''.join(by)}", flush=True)


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


def not_noticed(room: str) -> list[Mutant]:
    """Changes that survived and are not listed as equivalent."""
    known = equivalent()
    survivors = [mutant for mutant, outcome in results(room).items() if outcome == "survived"]
    return [mutant for mutant in survivors if (mutant.file, mutant.difference()) not in known]


def report(rooms: list[str]) -> None:
    """Print the share caught by room, and the changes that nothing noticed."""
    lines = []
    print(f"{'room':12s} {'tried':>6s} {'equivalent':>11s} {'caught':>7s} {'share':>7s}")
    for room in rooms:
        tried = results(room)
        caught = sum(outcome == "caught" for outcome in tried.values())
        left = not_noticed(room)
        counted = caught + len(left)
        share = f"{caught / counted:7.1%}" if counted else "      -"
        print(f"{room:12s} {len(tried):6d} {len(tried) - counted:11d} {caught:7d} {share}")
        lines += [f"{m.file}:{m.line} {m.operator}\n{m.difference()}" for m in left]
    print("\nNot noticed:\n" + "\n".join(lines) if lines else "\nEvery change was noticed.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Change the source in small ways and see whether a test notices.")
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"rooms to change, all by default: {', '.join(ROOMS)}")
    parser.add_argument("--count", type=int, default=25, help="places in each room (default: 25)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample (default: 0)")
    one_more = (os.cpu_count() or 1) + 1  # tests of several processes wait for them
    parser.add_argument(
        "--processes", type=int, default=one_more, help="changes that are tried at a time (default: cores + 1)"
    )
    parser.add_argument("--hours", type=float, default=2, help="start no further change after it (default: 2)")
    parser.add_argument("--again", action="store_true", help="try those again that were not noticed")
    parser.add_argument("--report", action="store_true", help="run nothing, show what was found")
    options = parser.parse_args()
    if unknown := set(options.rooms) - set(ROOMS):
        parser.error(f"no room {', '.join(sorted(unknown))}; there are {', '.join(ROOMS)}")
    chosen = options.rooms or list(ROOMS)
    if not options.report:
        run(chosen, options.count, options.seed, options.processes, options.hours, options.again)
    report(chosen)
