"""Output into a pipe whose reader ends early, such as ``fgssl --help | head -1``."""

import os
import signal
import subprocess
import sys

import pytest


@pytest.mark.parametrize("arguments", [["--help"], ["data", "list"]])
def test_reader_that_ends_early_gets_no_traceback(arguments):
    reader, writer = os.pipe()
    os.close(reader)  # before the first line
    done = subprocess.run([sys.executable, "-m", "fgssl", *arguments], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode in (1, 128 + signal.SIGPIPE)  # 1 is rich's, which writes the tables


def test_broken_pipe_elsewhere_is_not_hidden(monkeypatch):
    from fgssl.cli import main as cli

    def broken(argv):
        raise BrokenPipeError("a worker's pipe")

    monkeypatch.setattr(cli, "_dispatch", broken)
    with pytest.raises(BrokenPipeError, match="worker"):
        cli.main(["fit"])
