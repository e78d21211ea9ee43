"""Processes that start at once: forks of a process that has imported torch and the application, and done nothing else.

An interpreter of its own takes five seconds of a core to import them.
"""

import multiprocessing
import os
import sys
from pathlib import Path

from fgssl.cli.main import main

IMPORTED = ("fgssl.cli.application", "timm.optim", "tests.trust.callbacks")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(list(IMPORTED))


def hide_gpus() -> None:
    """In a process that has to do without them."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


class Forked:
    """A command line of ``fgssl`` in a process of its own, with the part of ``subprocess.Popen`` that the tests use.

    Args:
        line: arguments of the program.
        folder: folder in which it runs, and in which its output is kept until it is read.
        environment: environment of the process.
    """

    returncode: int | None = None

    def __init__(self, line: list[str], folder: Path, environment: dict[str, str]):
        self.said = [folder / f"said_{os.urandom(4).hex()}.{stream}" for stream in ("out", "err")]
        self._process = CONTEXT.Process(target=_run, args=(line, folder, environment, self.said))
        self._process.start()
        self.pid = self._process.pid

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for the end; returns standard output and standard error."""
        self._process.join(timeout)
        self.returncode = self._process.exitcode
        if self.returncode is None:
            self.kill()
            raise TimeoutError(f"{self._process} still runs after {timeout} s")
        texts = [path.read_text() for path in self.said]
        for path in self.said:
            path.unlink()
        return texts[0], texts[1]

    def kill(self) -> None:
        self._process.kill()


def _run(line: list[str], folder: Path, environment: dict[str, str], said: list[Path]) -> None:
    """In the process: take over folder, environment and streams, and run the command line."""
    for number, path in zip((1, 2), said, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # The installed program, with which Lightning starts the other processes of a run.
    sys.argv = [str(Path(sys.executable).with_name("fgssl")), *line]
    sys.exit(main(line))
